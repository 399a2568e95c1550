"""One module a verb: what is asked in, a typed result out."""

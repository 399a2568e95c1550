"""Using a finished run: classifier, decoding ahead, prediction files, activation maps."""

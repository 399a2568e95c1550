"""A finished run behind a web page and HTTP."""

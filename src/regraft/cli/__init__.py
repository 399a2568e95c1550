"""The command line: flags in, one command, one thing printed."""

from regraft.cli.main import app, main

__all__ = ["app", "main"]

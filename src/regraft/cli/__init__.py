"""The command line: turns words into calls of `regraft.commands`, and prints what they return."""

from regraft.cli.app import main

__all__ = ["main"]

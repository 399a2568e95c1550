"""Front door: words in, one call, one thing printed.

Refuses logic. `--json` prints one object on stdout and nothing else there; what people read is a rendering of the same object.
"""

from regraft.cli.main import app, main

__all__ = ["app", "main"]

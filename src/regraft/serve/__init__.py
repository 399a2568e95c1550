"""A finished run behind a web page and HTTP: classes, activation maps, similar training images.

It calls no other machine, and accepts no more than its limits say. Import `serve.app` and
`serve.page` late: they load FastAPI and Gradio.
"""

from regraft.serve.limits import Limits
from regraft.serve.server import Backend, ServeOptions, serve, serve_run

__all__ = ["Backend", "Limits", "ServeOptions", "serve", "serve_run"]

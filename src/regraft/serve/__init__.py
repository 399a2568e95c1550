"""A finished run behind a web page and HTTP: classes with probabilities, what the network looked at, similar training images.

Refuses to call anybody outside, and to take in more than its limits say. Import `serve.app` and `serve.page` late: they load FastAPI and Gradio.
"""

from regraft.serve.limits import Limits
from regraft.serve.server import serve

__all__ = ["Limits", "serve"]

"""The process that serves a run: its port, its threads, its end.

Refuses a port that is taken, and ends cleanly on SIGINT and SIGTERM.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from regraft.data.dataset import Dataset
from regraft.errors import UserError
from regraft.inference.classifier import Classifier, load_classifier
from regraft.serving.limits import Limits
from regraft.system.progress import SILENT, ProgressReporter
from regraft.workflow.named import asked

if TYPE_CHECKING:
    from regraft.serving.similar import SimilarImages

_LOCAL = ("127.0.0.1", "::1", "localhost")
_PATIENCE = 5  # seconds that requests have to end in when the server does


def serve(
    path: str | Path,
    host: str = "127.0.0.1",
    port: int = 7860,
    data: str | Path | Dataset | None = None,
    similar: bool = True,
    limits: Limits | None = None,
    watcher: ProgressReporter = SILENT,
    began: Callable[[Any, int], None] | None = None,
    **settings: Any,
) -> None:
    """Serve a run as a web page and over HTTP until SIGINT or SIGTERM.

    Args:
        path: The run's folder.
        host: Address to listen on; only this machine reaches 127.0.0.1.
        port: 0 takes a free one.
        data: The run's images, for examples and similar ones; where they were when it was fitted, if None.
        similar: Whether similar training images are looked up.
        limits: What is taken in.
        watcher: Hears the address.
        began: Called with the server, whose `should_exit` ends it, and the port.
        **settings: `home`, `device`, `keep` of `workflow.Settings`.

    Raises:
        UserError: When the extra is not installed, the port cannot be had, or there is no whole run.
    """
    for module in ("gradio", "fastapi", "uvicorn", "multipart"):
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"`regraft serve` needs {module}, which is not installed. Expected the extra 'serve'. Install it with: pip install 'regraft[serve]'"
            )
    where = asked(settings)
    with _listening(host, port) as taken:
        classifier = load_classifier(path, where.device)
        _ = classifier.network  # broken weights are told of now
        from regraft.serving.similar import SimilarImages, find_similar_images, stoppable

        images = (
            find_similar_images(classifier, data, where)
            if similar
            else SimilarImages(classifier, note="Similar training images were switched off.")
        )
        ended, scratch = Event(), Path(tempfile.mkdtemp(prefix="regraft-serve-"))
        looking = Thread(target=images.prepare, args=(stoppable(where, ended),), name="gallery")
        looking.start()
        try:
            server = _server(classifier, images, limits or Limits(), scratch)
            address = f"http://{f'[{host}]' if ':' in host else host}:{taken.getsockname()[1]}"
            watcher.say(
                f"Serving {classifier.run.path} at {address}; POST an image to {address}/predict, or see {address}/openapi.json. Ctrl-C ends it."
            )
            if host not in _LOCAL:
                watcher.say(f"Everybody who reaches {host} can use it: there is no password.")
            if images.note:
                watcher.say(images.note)
            if began is not None:
                began(server, taken.getsockname()[1])
            server.run(sockets=[taken])
        finally:
            ended.set()
            looking.join()
            shutil.rmtree(scratch, ignore_errors=True)
    watcher.say("Stopped.")


def _server(classifier: Classifier, images: SimilarImages, limits: Limits, scratch: Path) -> Any:
    """Return the server of page and interface, not running yet."""
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(scratch), HF_HUB_DISABLE_TELEMETRY="1"
    )  # read when Gradio is loaded
    import uvicorn

    from regraft.serving.app import Service, make_app
    from regraft.serving.page import mount_page

    class Server(uvicorn.Server):  # type: ignore[misc]
        def handle_exit(self, sig: int, frame: Any) -> None:
            """Note that the end was asked for; uvicorn's own would raise the signal again afterwards, and the exit status would not be 0."""
            self.force_exit, self.should_exit = (
                getattr(self, "should_exit", False),
                True,
            )  # asked twice, it ends at once

    service = Service(classifier, images, limits)
    whole = mount_page(make_app(service), service, scratch)
    config = uvicorn.Config(
        whole,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_PATIENCE,
        lifespan="on",
        ws="none",
    )
    return Server(config)


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that has the port; raises `UserError` when it cannot be had."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen(2048)
        except OSError:
            made.close()
            raise
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"Port {port} of {host} cannot be listened on ({why}). Expected a free port. Give another one with --port, or 0 for any."
        ) from error
    return made

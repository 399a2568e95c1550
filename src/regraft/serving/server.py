"""The process that serves a run: its port, its threads, and a clean end on SIGINT and SIGTERM."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from regraft.errors import UserError
from regraft.inference.cam import activation_maps
from regraft.inference.classifier import Classifier, load_classifier
from regraft.options import Options
from regraft.serving.options import Limits
from regraft.serving.options import ServeOptions as ServeOptions
from regraft.system.hardware import tune_allocator
from regraft.system.progress import ProgressReporter

if TYPE_CHECKING:
    from regraft.serving.similar import SimilarImages

_LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")
_SHUTDOWN_SECONDS = 5  # that open requests have to finish in
_BACKLOG = 2048  # connections
_MODULES = ("gradio", "fastapi", "uvicorn", "multipart")


@dataclass(frozen=True)
class Backend:
    """The functions that a server answers with.

    Args:
        load: From a run folder and a device to a classifier.
        compute_maps: From classifier, images and class numbers to class-activation maps.
    """

    load: Callable[[str | Path, str], Classifier] = load_classifier
    compute_maps: Callable[..., Any] = activation_maps


def serve(
    path: str | Path,
    asked: ServeOptions = ServeOptions(),
    options: Options = Options(),
    on_start: Callable[[Any, int], None] | None = None,
    backend: Backend | None = None,
) -> None:
    """Serve a run as a web page and over HTTP until SIGINT or SIGTERM.

    Args:
        path: The run's folder.
        asked: Address, images and limits.
        options: `cache` and `runtime` count; the reporter hears the address.
        on_start: Called with the server, whose `should_exit` stops it, and the port.
        backend: What loads the run and explains its predictions.

    Raises:
        UserError: When the extra is not installed, the port is not free, or there is no run.
    """
    _require_modules()
    tune_allocator()
    backend = backend or Backend()
    reporter = options.runtime.reporter
    with _listen(asked.host, asked.port) as listener:
        port = listener.getsockname()[1]
        classifier = backend.load(path, options.runtime.device)
        _ = classifier.network  # damaged weights are reported now
        similar = _find_images(classifier, asked, options)
        with _scratch_folder() as scratch, _preparing(similar, options):
            server = _build_server(classifier, similar, asked.limits, scratch, backend.compute_maps)
            _announce(reporter, classifier, asked.host, port)
            if similar.note:
                reporter.log(similar.note)
            if on_start is not None:
                on_start(server, port)
            server.run(sockets=[listener])
    reporter.log("Stopped.")


def _require_modules() -> None:
    for module in _MODULES:
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"`regraft serve` needs {module}, which is not installed. "
                "Expected the extra 'serve'. Install it with: pip install 'regraft[serve]'"
            )


def _find_images(classifier: Classifier, asked: ServeOptions, options: Options) -> SimilarImages:
    from regraft.serving.similar import SimilarImages, find_images

    if not asked.similar:
        note = "Similar training images were switched off."
        return SimilarImages(classifier, note=note)
    return find_images(classifier, asked.data, options)


@contextmanager
def _preparing(similar: SimilarImages, options: Options) -> Iterator[None]:
    """Prepare the similar images in a thread, which stops when the block ends."""
    from regraft.serving.similar import with_stop_event

    stop = Event()
    stoppable = with_stop_event(options, stop)
    thread = Thread(target=similar.prepare, args=(stoppable,), name="similar-images")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """Make a temporary folder for examples and uploads, and remove it when the block ends."""
    scratch = Path(tempfile.mkdtemp(prefix="regraft-serve-"))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _announce(reporter: ProgressReporter, classifier: Classifier, host: str, port: int) -> None:
    url_host = f"[{host}]" if ":" in host else host  # IPv6 has brackets
    address = f"http://{url_host}:{port}"
    reporter.log(
        f"Serving {classifier.run.path} at {address}; POST an image to {address}/predict, "
        f"or see {address}/openapi.json. Ctrl-C stops it."
    )
    if host not in _LOCAL_HOSTS:
        reporter.log(f"Everybody who reaches {host} can use it: there is no password.")


def _build_server(
    classifier: Classifier,
    similar: SimilarImages,
    limits: Limits,
    scratch: Path,
    compute_maps: Callable[..., Any],
) -> Any:
    """Return the uvicorn server of page and interface, not running yet."""
    # Gradio reads these when it is loaded
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(scratch)
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import uvicorn

    from regraft.serving.app import Service, make_app
    from regraft.serving.page import mount_page

    class Server(uvicorn.Server):  # type: ignore[misc]
        def handle_exit(self, sig: int, frame: Any) -> None:
            """Stop; at once when asked a second time.

            uvicorn's own would raise the signal again afterwards: the exit status would not be 0.
            """
            self.force_exit = getattr(self, "should_exit", False)
            self.should_exit = True

    service = Service(classifier, similar, limits, compute_maps)
    config = uvicorn.Config(
        mount_page(make_app(service), service, scratch),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        lifespan="on",
        ws="none",
    )
    return Server(config)


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raises `UserError` when the port cannot be had."""
    try:
        return _open_listener(host, port)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"Port {port} of {host} cannot be listened on ({reason}). Expected a free port. "
            "Give another one with --port, or 0 for any."
        ) from error


def _open_listener(host: str, port: int) -> socket.socket:
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, kind, _, _, address = infos[0]
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener

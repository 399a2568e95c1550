"""How a run is served; read by the command line, so nothing here loads torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from regraft.options import option

if TYPE_CHECKING:
    from regraft.data.dataset import Dataset


@dataclass(frozen=True)
class Limits:
    """How much a server accepts.

    Args:
        body: Bytes of a request.
        pixels: Of one image, before it is decoded.
        batch: Images of one request.
        requests: Answered at once; more are refused with 503.
        waiting: Images waiting for the network; more are refused with 503.
        seconds: Until a request's body must be complete.
    """

    body: int = 32_000_000
    pixels: int = 50_000_000
    batch: int = 64
    requests: int = 256
    waiting: int = 1024
    seconds: float = 60.0


@dataclass(frozen=True)
class ServeOptions:
    """How a run is served.

    Args:
        host: Address to listen on; only this machine reaches 127.0.0.1.
        port: 0 takes a free one.
        data: The run's images, for examples and similar images; where they were when it was
            fitted, if None.
        similar: Whether similar training images are shown.
        limits: What is accepted.
    """

    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0 lets others in.")
    port: int = option(7860, "Port; 0 takes a free one.", least=0, most=65_535)
    data: str | Path | Dataset | None = option(
        None,
        "The run's images, for examples and similar ones; by default where they were when it was "
        "fitted.",
        type=str,
    )
    similar: bool = option(
        True, "Show similar training images; their features are computed at the start."
    )
    limits: Limits = field(default_factory=Limits)

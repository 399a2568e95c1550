"""What a server takes in: how large a request, how many pixels, how many at once; and encoded images refused in a sentence.

Refuses before it reads: a body that says it is too large is not received, an image that says so is not decoded.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regraft.data.decode import decode_image

FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "TIFF",
    "GIF",
    "PPM",
    "JPEG2000",
    "AVIF",
)  # none that runs a program or fetches a file
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, OverflowError, MemoryError)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """How much a server takes in.

    Args:
        body: Bytes of a request.
        pixels: Of one image, before it is decoded.
        batch: Images of one request.
        requests: Being answered at once; more are refused with 503.
        waiting: Images waiting for the network; more are refused with 503.
        seconds: Until a request's body must have come.
    """

    body: int = 32_000_000
    pixels: int = 50_000_000
    batch: int = 64
    requests: int = 256
    waiting: int = 1024
    seconds: float = 60.0


class Refused(Exception):
    """Something is not taken in: an HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        self.status, self.sentence = status, sentence
        super().__init__(sentence)


def decode_upload(content: bytes, limits: Limits) -> NDArray[np.uint8]:
    """Return an image file's pixels, `(h, w, 3)` uint8 RGB.

    Raises:
        Refused: 422 when the bytes are no whole image of a kind that is known, or of more pixels than allowed; says why.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            width, height = opened.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused(
            422,
            f"The image has more pixels than the {limits.pixels:,} allowed. Send a smaller one.",
        ) from error
    except _UNREADABLE as error:
        raise Refused(
            422,
            "This is not an image that can be read. Expected a JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF file. Send one of those.",
        ) from error
    if width * height > limits.pixels:
        raise Refused(
            422,
            f"The image has {width:,} × {height:,} pixels, more than the {limits.pixels:,} allowed. Send a smaller one.",
        )
    try:
        return decode_image(content)
    except _UNREADABLE as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refused(
            422,
            f"The image cannot be decoded ({why}). Expected a whole file. Send it again, or save it anew.",
        ) from error


class Guard:
    """An ASGI application that passes on what is within the limits, and answers the rest with 413, 408 or 503 itself."""

    def __init__(
        self,
        app: App,
        limits: Limits,
        too_large: Callable[[int, str], Exception],
        counted: str = "/predict",
    ) -> None:
        self.app, self.limits, self.refusal, self.counted = app, limits, too_large, counted
        self.open = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = next(
            (value for name, value in scope["headers"] if name == b"content-length"), b"0"
        )
        counted = scope["path"].startswith(self.counted)
        if announced.isdigit() and int(announced) > self.limits.body:
            await _answer(send, 413, self._large())
        elif counted and self.open >= self.limits.requests:
            await _answer(
                send,
                503,
                f"{self.open:,} requests are being answered, as many as are taken at once. Try again in a second.",
            )
        else:
            self.open += counted
            try:
                await self.app(scope, self._measured(receive), send)
            finally:
                self.open -= counted

    def _large(self) -> str:
        return f"The request is larger than the {self.limits.body / 1e6:g} MB allowed. Send fewer or smaller images."

    def _measured(self, receive: Receive) -> Receive:
        """Return a `receive` that raises the framework's own refusal when the body grows too large, or takes too long to come."""
        read, more, until = 0, True, asyncio.get_running_loop().time() + self.limits.seconds

        async def measured() -> Message:
            nonlocal read, more
            try:
                async with asyncio.timeout_at(until if more else None):
                    message = await receive()
            except TimeoutError:
                raise self.refusal(
                    408,
                    f"The request has not come whole in {self.limits.seconds:g} s. Send it again.",
                ) from None
            read += len(message.get("body", b""))
            more = more and bool(message.get("more_body", False))
            if read > self.limits.body:
                raise self.refusal(413, self._large())
            return message

        return measured


async def _answer(send: Send, status: int, sentence: str) -> None:
    """Answer without having read the request, and hang up."""
    body = json.dumps({"detail": sentence}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": headers + ([(b"retry-after", b"1")] if status == 503 else []),
        }
    )
    await send({"type": "http.response.body", "body": body})

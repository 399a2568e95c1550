"""What a server accepts: bytes of a request, pixels of an image, requests at once.

A body that announces too many bytes is refused before it is received, and an image that announces
too many pixels before it is decoded.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regraft.data import decode
from regraft.data.decode import FORMATS
from regraft.serving.options import Limits as Limits

_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, OverflowError, MemoryError)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class RequestRefused(Exception):
    """A request is refused: an HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        self.status = status
        self.sentence = sentence
        super().__init__(sentence)


def decode_image(content: bytes, limits: Limits) -> NDArray[np.uint8]:
    """Return the pixels of an image file, `(h, w, 3)` uint8 RGB.

    Raises:
        RequestRefused: 422 if the bytes are not a complete image of a known format, or have more
            pixels than allowed; says why.
    """
    width, height = _read_size(content, limits)
    if width * height > limits.pixels:
        raise RequestRefused(
            422,
            f"The image has {width:,} × {height:,} pixels, more than the {limits.pixels:,} "
            "allowed. Send a smaller one.",
        )
    try:
        return decode.decode_image(content)
    except _UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RequestRefused(
            422,
            f"The image cannot be decoded ({reason}). Expected a complete file. "
            "Send it again, or save it anew.",
        ) from error


class LimitsMiddleware:
    """An ASGI application that passes on what is within the limits and answers the rest itself.

    Args:
        app: The application behind it.
        limits: What is accepted.
        to_error: From a status (413 or 408) and a sentence to the exception that is raised inside
            the application while it receives a body.
        counted_path: Start of the paths whose requests `limits.requests` counts.
    """

    def __init__(
        self,
        app: App,
        limits: Limits,
        to_error: Callable[[int, str], Exception],
        counted_path: str = "/predict",
    ) -> None:
        self.app = app
        self.limits = limits
        self.to_error = to_error
        self.counted_path = counted_path
        self.open_requests = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_counted = scope["path"].startswith(self.counted_path)
        if _get_announced_bytes(scope) > self.limits.body:
            await _send_refusal(send, 413, self._describe_too_large())
        elif is_counted and self.open_requests >= self.limits.requests:
            sentence = (
                f"{self.open_requests:,} requests are being answered, the most at one time. "
                "Try again in a second."
            )
            await _send_refusal(send, 503, sentence)
        else:
            self.open_requests += is_counted
            try:
                await self.app(scope, self._limit_body(receive), send)
            finally:
                self.open_requests -= is_counted

    def _describe_too_large(self) -> str:
        return (
            f"The request is larger than the {self.limits.body / 1e6:g} MB allowed. "
            "Send fewer or smaller images."
        )

    def _limit_body(self, receive: Receive) -> Receive:
        """Return a `receive` that raises when the body is too large or takes too long."""
        received_bytes = 0
        is_incomplete = True
        deadline = asyncio.get_running_loop().time() + self.limits.seconds

        async def receive_limited() -> Message:
            nonlocal received_bytes, is_incomplete
            try:
                async with asyncio.timeout_at(deadline if is_incomplete else None):
                    message = await receive()
            except TimeoutError:
                sentence = (
                    f"The request was not complete after {self.limits.seconds:g} s. Send it again."
                )
                raise self.to_error(408, sentence) from None
            received_bytes += len(message.get("body", b""))
            is_incomplete = is_incomplete and bool(message.get("more_body", False))
            if received_bytes > self.limits.body:
                raise self.to_error(413, self._describe_too_large())
            return message

        return receive_limited


def _read_size(content: bytes, limits: Limits) -> tuple[int, int]:
    """Return width and height that an image file announces, without decoding it."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            return opened.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RequestRefused(
            422,
            f"The image has more pixels than the {limits.pixels:,} allowed. Send a smaller one.",
        ) from error
    except _UNREADABLE as error:
        raise RequestRefused(
            422,
            "This is not an image that can be read. Expected a JPEG, PNG, WebP, BMP, TIFF, GIF or "
            "AVIF file. Send one of those.",
        ) from error


def _get_announced_bytes(scope: MutableMapping[str, Any]) -> int:
    """Return the length of the body by its header; 0 where there is none."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


async def _send_refusal(send: Send, status: int, sentence: str) -> None:
    """Answer without having read the request, and close the connection."""
    body = json.dumps({"detail": sentence}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

"""Requests that come at the same time go through the network together: collected for a few milliseconds, up to 64 images in one forward.

Refuses to let the queue grow beyond its bound.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

MOST = 64  # images in one forward
COLLECT = 0.004  # seconds that the first image waits for others, where the network is idle

Images = Sequence[NDArray[np.uint8]]
Result = TypeVar("Result")


class Full(Exception):
    """As many images wait as may."""


class Batcher:
    """A bounded queue in front of a function of many images, with one thread behind it in which alone the network runs.

    Args:
        say: From images to a row of numbers for each.
        waiting: Images that may wait.
        most: Images in one call.
        collect: Seconds that the first image waits for others.
    """

    def __init__(
        self,
        say: Callable[[Images], NDArray[Any]],
        waiting: int,
        most: int = MOST,
        collect: float = COLLECT,
    ) -> None:
        self.say, self.bound, self.most, self.collect = say, waiting, most, collect
        self.queue: deque[tuple[NDArray[np.uint8], asyncio.Future[NDArray[Any]]]] = deque()
        self.calls: deque[int] = deque(maxlen=10_000)  # images of each of the last calls
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to answer; belongs to the event loop that runs now."""
        self._filled = asyncio.Event()
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """End; whoever still waits is told that the work was cancelled."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for _, future in self.queue:
            future.cancel()
        self.queue.clear()
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def ask(self, images: Images) -> NDArray[Any]:
        """Return a row for each image, `(n, …)`, n at least 1; raises `Full` when they have no place in the queue."""
        if len(self.queue) + len(images) > self.bound:
            raise Full
        futures = [asyncio.get_running_loop().create_future() for _ in images]
        self.queue.extend(zip(images, futures, strict=True))
        self._filled.set()
        try:
            return np.stack([await future for future in futures])
        finally:
            for future in futures:
                future.cancel()  # does nothing to those that are done

    async def alone(self, work: Callable[..., Result], *given: Any) -> Result:
        """Return what a function gives, run in the thread of the network."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *given)

    async def _work(self) -> None:
        while True:
            await self._filled.wait()
            if len(self.queue) < self.most:
                await asyncio.sleep(self.collect)
            taken = [self.queue.popleft() for _ in range(min(self.most, len(self.queue)))]
            if not self.queue:
                self._filled.clear()
            taken = [
                (image, future) for image, future in taken if not future.done()
            ]  # whoever hung up needs no answer
            if not taken:
                continue
            self.calls.append(len(taken))
            try:
                rows = await self.alone(self.say, [image for image, _ in taken])
            except Exception as error:
                _settle([future for _, future in taken], error)
            else:
                _settle([future for _, future in taken], rows)


def _settle(
    futures: Sequence[asyncio.Future[NDArray[Any]]], found: NDArray[Any] | Exception
) -> None:
    for number, future in enumerate(futures):
        if future.done():
            continue
        if isinstance(found, Exception):
            future.set_exception(found)
        else:
            future.set_result(found[number])

"""Micro-batching: images of requests that arrive together go through the network together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

MAX_BATCH = 64  # images in one forward pass
MAX_WAIT = 0.004  # seconds that the first image waits for others while the network is idle

Images = Sequence[NDArray[np.uint8]]
Result = TypeVar("Result")


class QueueFull(Exception):
    """As many images are waiting as the queue holds."""


class Batcher:
    """A bounded queue in front of a network, with one thread in which alone the network runs.

    Args:
        predict: From images to a row of numbers for each.
        capacity: Images that may wait.
        max_batch: Images in one call of `predict`.
        max_wait: Seconds that the first image waits for others.
    """

    def __init__(
        self,
        predict: Callable[[Images], NDArray[Any]],
        capacity: int,
        max_batch: int = MAX_BATCH,
        max_wait: float = MAX_WAIT,
    ) -> None:
        self.predict = predict
        self.capacity = capacity
        self.max_batch = max_batch
        self.max_wait = max_wait
        self.queue: deque[tuple[NDArray[np.uint8], asyncio.Future[NDArray[Any]]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start to answer, in the running event loop."""
        self._has_images = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop, and cancel the futures of images that are still waiting."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for _, future in self.queue:
            future.cancel()
        self.queue.clear()
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def submit(self, images: Images) -> NDArray[Any]:
        """Return a row for each image, `(n, …)`; n is at least 1.

        Raises:
            QueueFull: When the queue has no room for all of them.
        """
        if len(self.queue) + len(images) > self.capacity:
            raise QueueFull
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in images]
        self.queue.extend(zip(images, futures, strict=True))
        self._has_images.set()
        try:
            return np.stack([await future for future in futures])
        finally:
            for future in futures:
                future.cancel()  # no effect on futures that are done

    async def run_in_thread(self, work: Callable[..., Result], *args: Any) -> Result:
        """Return what a function returns, run in the thread of the network."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    async def _run(self) -> None:
        """Predict batch after batch until the task is cancelled."""
        while True:
            await self._has_images.wait()
            if len(self.queue) < self.max_batch:
                await asyncio.sleep(self.max_wait)
            batch = self._take_batch()
            if batch:
                await self._predict_batch(batch)

    def _take_batch(self) -> list[tuple[NDArray[np.uint8], asyncio.Future[NDArray[Any]]]]:
        """Return the next images of the queue without those whose client has disconnected."""
        count = min(self.max_batch, len(self.queue))
        taken = [self.queue.popleft() for _ in range(count)]
        if not self.queue:
            self._has_images.clear()
        return [(image, future) for image, future in taken if not future.done()]

    async def _predict_batch(
        self, batch: Sequence[tuple[NDArray[np.uint8], asyncio.Future[NDArray[Any]]]]
    ) -> None:
        """Set the futures of a batch to their rows, or all of them to the error."""
        images = [image for image, _ in batch]
        pending = [future for _, future in batch]
        try:
            rows = await self.run_in_thread(self.predict, images)
        except Exception as error:
            for future in pending:
                if not future.done():
                    future.set_exception(error)
        else:
            for future, row in zip(pending, rows, strict=True):
                if not future.done():
                    future.set_result(row)

"""`Admission`: which requests may go to the engine now, which wait, and which are refused.

The engine batches what it is given; requests beyond that wait here, where waiting takes no model memory and where they
can be refused, timed out and counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from glm4.server.errors import busy


class Admission:
    """First-come, first-served slots.

    Args:
        slots: samples that may be in the engine at once.
        max_queue: requests that may wait; more are refused at once.
        timeout: seconds a request may wait.
    """

    def __init__(self, slots: int, max_queue: int, timeout: float) -> None:
        self._slots = slots
        self._max_queue = max_queue
        self._timeout = timeout
        self._taken = 0
        self._queue: deque[tuple[asyncio.Future[None], int]] = deque()
        self._closed = False

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def num_taken(self) -> int:
        """Slots in use."""
        return self._taken

    @property
    def share(self) -> int:
        """Slots that one request may hold: half of them, so that others get on. Its further samples run later."""
        return max(1, self._slots // 2)

    @asynccontextmanager
    async def slot(self, samples: int = 1) -> AsyncIterator[None]:
        """Hold slots for a request of `samples` samples.

        Raises:
            ApiError: the queue is full (429), the wait was too long or the server is stopping (503).
        """
        count = min(samples, self.share)
        await self._enter(count)
        try:
            yield
        finally:
            self._taken -= count
            self._wake()

    def close(self) -> None:
        """Refuse all waiting requests and all later ones."""
        self._closed = True
        while self._queue:
            future, _ = self._queue.popleft()
            if not future.done():
                future.set_exception(_stopping())

    async def _enter(self, count: int) -> None:
        if self._closed:
            raise _stopping()
        if not self._queue and self._taken + count <= self._slots:
            self._taken += count
            return
        if len(self._queue) >= self._max_queue:
            raise busy(
                f"{len(self._queue)} requests are already waiting; try again later",
                status=429, seconds=2, code="queue_full",
            )  # fmt: skip
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (future, count)
        self._queue.append(entry)
        try:
            with anyio.fail_after(self._timeout):
                await future
        except BaseException as error:
            if entry in self._queue:
                self._queue.remove(entry)
            elif future.done() and not future.cancelled() and future.exception() is None:
                self._taken -= count  # the slot was granted just as the request gave up
            self._wake()
            if isinstance(error, TimeoutError):
                raise busy(f"no slot became free within {self._timeout:g} seconds", 5, code="queue_timeout") from None
            raise

    def _wake(self) -> None:
        while self._queue:
            future, count = self._queue[0]
            if not future.done():
                if self._taken + count > self._slots:
                    return
                self._taken += count
                future.set_result(None)
            self._queue.popleft()


def _stopping() -> Exception:
    return busy("the server is stopping", 5, code="shutting_down")

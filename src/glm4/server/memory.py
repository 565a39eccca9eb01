"""`RequestMemory`: what reading and preparing requests may take, and how much of it happens at once.

A body holds its share from its first byte until its request ends. Rendering and tokenizing take many times the size of
a text for a moment, so requests with long texts do that a few at a time; ordinary ones pass them by. The engine bounds
its KV cache itself, and the response store its responses; `shares` gives each its part of `--max-memory`.

Not covered: what answers take that their clients have not read. Streams are merged, and stalled clients disconnected.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import NamedTuple, TypeVar

import anyio

from glm4.server.errors import ApiError, busy
from glm4.system.cpus import default_num_threads
from glm4.system.event_loops import post

_T = TypeVar("_T")

BODY_COST = 8
"""Bytes per byte of a body: itself, its text in a wide form while it is decoded, and its values."""
PREPARING_COST = 160
"""Bytes per byte of a text while it is tokenized: measured, for the tokenizers library."""
LIGHT = 1 << 16
"""Bodies up to this size are prepared at once; so many bytes cost less than the threads that work on them."""
MIN_PREPARING = 64 << 20
WAITING_THREADS = 12
"""Requests that wait for pictures at once, fewer than may wait for the decoder; the others wait for a thread."""
BODY_MEMORY = "glm4.body"
"""In a request's state: its `BodyMemory`, if it has read a body."""


class Shares(NamedTuple):
    """Bytes for bodies, for preparing them, for responses stored in memory, and for decoded pictures."""

    bodies: int
    preparing: int
    store: int
    pictures: int

    @property
    def total(self) -> int:
        """What is left to weights and KV cache is `--max-memory` minus this."""
        return sum(self)


def shares(max_memory: int, store: int) -> Shares:
    """Parts of `--max-memory` bytes; `store` is what the response store would like to have in memory."""
    preparing = max(MIN_PREPARING, max_memory // 8)
    return Shares(max_memory // 16, preparing, min(store, max_memory // 16), max_memory // 32)


class Budget:
    """Bytes given out in order of arrival.

    Args:
        timeout: seconds a request may wait for its bytes.
    """

    def __init__(self, total: int, timeout: float) -> None:
        self.total = total
        self.free = total
        self._timeout = timeout
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, nbytes: int) -> None:
        """Wait for bytes; whoever takes them gives them back.

        Raises:
            ApiError: more than there are in all (413), or they did not become free in time (503).
        """
        if nbytes > self.total:
            raise ApiError(
                413, f"this request would take {nbytes / 1e6:.0f} MB to prepare; the server has"
                f" {self.total / 1e6:.0f} MB for that. Send less, or start the server with a larger --max-memory",
                code="request_too_large",
            )  # fmt: skip
        if not self._waiting and nbytes <= self.free:
            self.free -= nbytes
            return
        entry = (nbytes, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        try:
            with anyio.fail_after(self._timeout):
                await entry[1]
        except BaseException as error:
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._wake()
            elif entry[1].done() and not entry[1].cancelled():
                self.give(nbytes)
            if isinstance(error, TimeoutError):
                raise busy("other long requests are being prepared; try again later", 5, code="out_of_memory") from None
            raise

    def give(self, nbytes: int) -> None:
        """Give bytes back."""
        self.free += nbytes
        self._wake()

    def _wake(self) -> None:
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self.free):
            nbytes, future = self._waiting.popleft()
            if not future.done():
                self.free -= nbytes
                future.set_result(None)


class RequestMemory:
    """The budgets of one server.

    Args:
        parts: bytes for each of them.
        timeout: seconds a request may wait for its part.
    """

    def __init__(self, parts: Shares, timeout: float) -> None:
        self.bodies = Budget(parts.bodies, timeout)
        self.preparing = Budget(parts.preparing, timeout)
        # Half of the processors: the engine and the other requests go on meanwhile.
        self.lanes = Budget(max(1, default_num_threads() // 2), timeout)
        # Apart from that of bodies: who has some of it needs nothing more to get on.
        self.pictures = Budget(parts.pictures, timeout)
        self.waiting = WaitingThreads(timeout)

    def body(self) -> BodyMemory:
        """The memory of a new request's body; release it when the request has ended."""
        memory = BodyMemory(self)
        _current.set(memory)
        return memory


class BodyMemory:
    """What one request's body takes.

    Attributes:
        size: bytes of the body read so far.
    """

    def __init__(self, owner: RequestMemory) -> None:
        self._owner = owner
        self._held = self._held_pictures = 0
        self.size = 0

    @property
    def is_light(self) -> bool:
        """True for an ordinary request, which may be parsed on the event loop."""
        return self.size <= LIGHT

    async def add(self, size: int) -> None:
        """Hold the memory of something else that is prepared along with the body, such as earlier turns."""
        await self.grow(self.size + size)

    async def grow(self, size: int) -> None:
        """Hold the memory of a body of so many bytes; see `Budget.take` for the errors."""
        more = BODY_COST * size - self._held
        if more > 0:
            await self._owner.bodies.take(more)
            self._held += more
        self.size = max(self.size, size)

    async def work(self, function: Callable[[], _T]) -> _T:
        """Call a function that goes through the body: at once if that is short, else on a worker thread, in turn."""
        if self.is_light:
            return function()
        await self._owner.lanes.take(1)
        try:
            return await asyncio.to_thread(function)
        finally:
            self._owner.lanes.give(1)

    async def hold_pictures(self, nbytes: int) -> None:
        """Hold so many bytes for pictures, or all there are. A request asks for more once, so that none is stuck."""
        pictures = self._owner.pictures
        more = min(nbytes, pictures.total) - self._held_pictures
        if more > 0:
            await pictures.take(more)
        elif more < 0:
            pictures.give(-more)
        self._held_pictures += more

    async def wait(self, function: Callable[[], _T]) -> _T:
        """Call a function that waits for something outside of this process."""
        return await self._owner.waiting.run(function)

    @asynccontextmanager
    async def preparing(self, longest_text: Callable[[], int | None], aside: int) -> AsyncIterator[None]:
        """Hold what tokenizing takes, if the longest text that is tokenized has so many bytes (None: all of it).

        Args:
            aside: bytes of the body that are no text.
        """
        owner = self._owner
        await owner.lanes.take(1)
        try:
            most = await asyncio.to_thread(longest_text)
            size = max(0, self.size - aside)
            size = size if most is None else min(size, most)
            await owner.preparing.take(PREPARING_COST * size)
            try:
                yield
            finally:
                owner.preparing.give(PREPARING_COST * size)
        finally:
            owner.lanes.give(1)

    def release(self) -> None:
        """Give everything back. Idempotent."""
        held, self._held = self._held, 0
        if held:
            self._owner.bodies.give(held)
        pictures, self._held_pictures = self._held_pictures, 0
        if pictures:
            self._owner.pictures.give(pictures)


class WaitingThreads:
    """Threads for what waits for a remote server or a helper process, apart from those that other requests need.

    Args:
        timeout: seconds a request may wait for a thread.
    """

    def __init__(self, timeout: float) -> None:
        self._threads = ThreadPoolExecutor(WAITING_THREADS, "glm4-pictures")
        self._free = Budget(WAITING_THREADS, timeout)

    async def run(self, function: Callable[[], _T]) -> _T:
        """Call a function there. If the caller is canceled, the thread is busy until the function returns."""
        await self._free.take(1)
        loop = asyncio.get_running_loop()
        job = self._threads.submit(function)
        job.add_done_callback(lambda _: post(loop, partial(self._free.give, 1)))
        return await asyncio.wrap_future(job)

    def close(self) -> None:
        """End them, once they have nothing to do."""
        self._threads.shutdown(wait=False, cancel_futures=True)


# The body of the request that the running task serves; tasks that it starts inherit it.
_current: ContextVar[BodyMemory | None] = ContextVar("glm4_body", default=None)


def current_body() -> BodyMemory | None:
    """The body of the request that this task serves."""
    return _current.get()


async def parse(function: Callable[[], _T]) -> _T:
    """Read the fields of a body: at once if it is ordinary, otherwise on a worker thread."""
    memory = _current.get()
    return function() if memory is None else await memory.work(function)


async def prepare(longest_text: Callable[[], int | None], function: Callable[[], _T], *, aside: int = 0) -> _T:
    """Render, tokenize and compile, off the event loop and off the engine's thread.

    Args:
        longest_text: gives the bytes of the longest text that would be tokenized; None if nothing bounds it but the
            body. Called on a worker thread.
        aside: bytes of the body that are not text to tokenize: pictures, as they were sent.

    Raises:
        ApiError: there is not enough memory; see `Budget.take`.
    """
    memory = _current.get()
    if memory is None or memory.is_light:
        return await asyncio.to_thread(function)
    async with memory.preparing(longest_text, aside):
        return await asyncio.to_thread(function)

"""`Job`: something to be done with a connected client, for a thread that waits for it."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

from glm4.agent.mcp.text import one_line

if TYPE_CHECKING:
    from mcp import Client

_T = TypeVar("_T")

MAX_NOTES = 200
"""Of the progress of one call; a server may send thousands."""


class Job(Generic[_T]):
    """`wait` and `result` are for the waiting thread, all else for the event loop.

    Args:
        run: what is to be done.
    """

    def __init__(self, run: Callable[[Client, Job[_T]], Awaitable[_T]]) -> None:
        self._run = run
        self._future: Future[_T] = Future()
        self._wake: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._future.add_done_callback(lambda _: self._wake.put(None))
        self._num_notes = 0
        self.task: asyncio.Task[None] | None = None
        self.on_broken: Callable[[], None] = lambda: None

    def wait(self, seconds: float, note: Callable[[str], None] | None = None) -> bool:
        """Wait for the end, but not longer; notes are handed on. Whether it has ended."""
        try:
            text = self._wake.get(timeout=seconds)
        except queue.Empty:
            return False
        if text is None:
            return True
        if note is not None:
            note(text)
        return False

    def result(self) -> _T:
        """What it came to, or its error."""
        return self._future.result()

    @property
    def done(self) -> bool:
        """Whether it has ended, or nobody waits for it anymore."""
        return self._future.done()

    def start(self, client: Client, on_broken: Callable[[], None]) -> None:
        """Begin.

        Args:
            on_broken: called when it finds that the connection has ended. Then the connection says why, with `fail`.
        """
        self.on_broken = on_broken
        self.task = asyncio.ensure_future(self._do(client))

    async def _do(self, client: Client) -> None:
        try:
            result = await self._run(client, self)
        except asyncio.CancelledError:
            pass  # who cancels it says what that means
        except Exception as error:
            if is_closed(error):
                self.on_broken()
            else:
                self.fail(error)
        else:
            if not self.done:
                self._future.set_result(result)

    def fail(self, error: Exception) -> None:
        """End with an error, if it has not ended."""
        if not self.done:
            self._future.set_exception(error)

    def cancel(self) -> None:
        """Nobody waits anymore. The server is told, if it has begun."""
        self._future.cancel()
        if self.task is not None:
            self.task.cancel()

    async def note(self, progress: float, total: float | None, message: str | None) -> None:
        """Hand on what the server says on its progress. The library's `ProgressFnT`."""
        if self._num_notes < MAX_NOTES:
            self._num_notes += 1
            share = f"{progress:g}" if total is None else f"{progress:g} of {total:g}"
            self._wake.put(": ".join(filter(None, (share, one_line(message or "", 200)))) + "\n")


def is_closed(error: BaseException) -> bool:
    """Whether the library says that the connection has ended."""
    from mcp.shared.exceptions import MCPError
    from mcp_types import CONNECTION_CLOSED

    return isinstance(error, MCPError) and error.code == CONNECTION_CLOSED

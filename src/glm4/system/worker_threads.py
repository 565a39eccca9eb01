"""`WorkerThreads`: an executor for `asyncio.to_thread` that an event loop does not wait for at its end."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class WorkerThreads(ThreadPoolExecutor):
    """Its calls may outlast the event loop: nobody waits for their results any more.

    The interpreter still joins its threads when the program ends. A program that cannot wait for that ends with
    `os._exit` if there are `unfinished` calls.

    Args:
        count: the number of threads.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count, thread_name_prefix="glm4-worker")
        self._calls: set[Future[Any]] = set()

    @property
    def unfinished(self) -> int:
        """Calls that run or wait for a thread."""
        return len(self._calls)

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """See `ThreadPoolExecutor`."""
        future = super().submit(fn, *args, **kwargs)
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; never waits."""
        super().shutdown(wait=False, cancel_futures=True)

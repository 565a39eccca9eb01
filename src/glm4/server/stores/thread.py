"""`OwnThread`: a blocking object, such as a SQLite store, used from the event loop through a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from glm4.errors import StoreError


class _Closes(Protocol):
    def close(self) -> None: ...


_T = TypeVar("_T", bound=_Closes)
_P = ParamSpec("_P")
_R = TypeVar("_R")


class OwnThread(Generic[_T]):
    """Creates an object, calls it and closes it, all on one thread. A subclass lists its methods with `on_thread`.

    Args:
        make: creates the object.
        now: create it at once and raise any error; otherwise at the first call.
    """

    def __init__(self, make: Callable[[], _T], *, now: bool) -> None:
        self._make = make
        self._made: _T | None = None
        self._closed = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="glm4-store")
        if now:
            try:
                self._thread.submit(self._object).result()
            except BaseException:
                self._thread.shutdown()
                raise

    async def close(self) -> None:
        """Finish the calls in progress, then close the object. Idempotent."""
        if not self._closed:
            self._closed = True
            self._thread.submit(self._close_made)
            await asyncio.to_thread(self._thread.shutdown)

    def _object(self) -> _T:
        if self._made is None:
            self._made = self._make()
        return self._made

    def _close_made(self) -> None:
        if self._made is not None:
            self._made.close()

    async def _run(self, work: Callable[[_T], _R]) -> _R:
        if self._closed:
            raise StoreError("the server is stopping; responses can no longer be stored")
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(self._object()))


def on_thread(
    method: Callable[Concatenate[_T, _P], _R],
) -> Callable[Concatenate[OwnThread[_T], _P], Coroutine[Any, Any, _R]]:
    """A method of the object as an asynchronous method of its `OwnThread`: same arguments, same errors.

    Raises:
        StoreError: the thread is closed.
    """

    async def call(self: OwnThread[_T], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return await self._run(lambda made: method(made, *args, **kwargs))

    return call

"""`Readers`: threads on which files of users are read. Each document takes a process, so few are read at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakValueDictionary

_T = TypeVar("_T")


class Readers:
    """Reads files for the event loop; who waits for a turn takes no thread of the others.

    Args:
        most: files read at once.
    """

    def __init__(self, most: int) -> None:
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="glm4-reading")

    async def run(self, work: Callable[[], _T]) -> _T:
        """The result of `work`, when it is its turn; what is cancelled before that is not begun."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """Begin nothing more; what is being read goes on to its end."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Shared:
    """Threads of `Readers` for several owners: one work of each at a time: none waits for another's."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, owner: str) -> OfOwner:
        """What runs the work of this owner."""
        lock = self._locks.get(owner)
        if lock is None:
            lock = self._locks[owner] = asyncio.Lock()
        return OfOwner(self._readers, lock)

    def close(self) -> None:
        """See `Readers.close`."""
        self._readers.close()


class OfOwner:
    """See `Shared`."""

    def __init__(self, readers: Readers, lock: asyncio.Lock) -> None:
        self._readers = readers
        self._lock = lock

    async def run(self, work: Callable[[], _T]) -> _T:
        """See `Readers.run`."""
        async with self._lock:
            return await self._readers.run(work)

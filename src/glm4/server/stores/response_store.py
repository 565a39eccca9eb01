"""`ResponseStore`: the stored responses of a server, off the event loop: one thread owns the database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from glm4.errors import StoreError
from glm4.server.stores.response_database import ResponseDatabase, StoredResponse

_T = TypeVar("_T")


class ResponseStore:
    """Asynchronous twin of `ResponseDatabase`, same arguments, same errors.

    A file is opened here, so that a server that cannot keep its promise does not start. A store in memory is made when
    it is first used.
    """

    def __init__(
        self, path: Path | None, max_bytes: int, max_age: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._make = partial(ResponseDatabase, path, max_bytes, max_age, clock)
        self._database: ResponseDatabase | None = None
        self._closed = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="glm4-responses")
        if path is not None:
            try:
                self._thread.submit(self._opened).result()
            except BaseException:
                self._thread.shutdown()
                raise

    async def get(self, response_id: str) -> StoredResponse | None:
        """See `ResponseDatabase.get`."""
        return await self._run(lambda database: database.get(response_id))

    async def conversation(self, response_id: str) -> list[StoredResponse] | None:
        """See `ResponseDatabase.conversation`."""
        return await self._run(lambda database: database.conversation(response_id))

    async def output_items(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The output items among these ids that are there."""

        def find(database: ResponseDatabase) -> dict[str, dict[str, Any]]:
            found = {item_id: database.output_item(item_id) for item_id in ids}
            return {item_id: item for item_id, item in found.items() if item is not None}

        return await self._run(find)

    async def insert(self, body: dict[str, Any], items: Sequence[dict[str, Any]]) -> None:
        """See `ResponseDatabase.insert`."""
        await self._run(lambda database: database.insert(body, items))

    async def finish(self, body: dict[str, Any]) -> bool:
        """See `ResponseDatabase.finish`."""
        return await self._run(lambda database: database.finish(body))

    async def delete(self, response_id: str) -> bool:
        """See `ResponseDatabase.delete`."""
        return await self._run(lambda database: database.delete(response_id))

    async def close(self) -> None:
        """Write what is under way and close the file."""
        await asyncio.to_thread(self.close_now)

    def close_now(self) -> None:
        """The same, waiting for it on this thread. Idempotent."""
        if self._closed:
            return
        self._closed = True

        def close() -> None:
            if self._database is not None:
                self._database.close()

        self._thread.submit(close)
        self._thread.shutdown()

    def _opened(self) -> ResponseDatabase:
        if self._database is None:
            self._database = self._make()
        return self._database

    async def _run(self, work: Callable[[ResponseDatabase], _T]) -> _T:
        if self._closed:
            raise StoreError("the server is stopping; nothing is stored any more")
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(self._opened()))

"""A document is read once, however many ask for it at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from glm4.agent.file_store import FolderFileStore
from glm4.errors import Glm4Error
from glm4.sandbox.launch import unavailable
from glm4.server.agent.documents import Documents
from glm4.server.agent.reading import Readers

_REASON = unavailable()
pytestmark = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))


class CountedFiles(FolderFileStore):
    """Counts how often a file is read."""

    reads = 0

    def read(self, sha256: str) -> bytes:
        self.reads += 1
        return super().read(sha256)


@asynccontextmanager
async def documents(files: CountedFiles) -> AsyncIterator[Documents]:
    readers = Readers(2)
    try:
        yield Documents(files, readers)
    finally:
        readers.close()


def test_many_who_ask_at_once_get_what_is_read_once(tmp_path: Path) -> None:
    async def run() -> None:
        files = CountedFiles(tmp_path)
        file = files.put("a.md", b"# Plan\n\nBuy milk.\n")
        async with documents(files) as known:
            impatient = asyncio.ensure_future(known.stored(file))
            others = [asyncio.ensure_future(known.stored(file)) for _ in range(5)]
            await asyncio.sleep(0)
            impatient.cancel()
            found = await asyncio.gather(*others)
            assert {one.text for one in found} == {"# Plan\n\nBuy milk."}
            assert (await known.stored(file)) is found[0]
            assert files.reads == 1
            assert impatient.cancelled()

    asyncio.run(run())


def test_what_cannot_be_read_fails_for_all_and_may_be_tried_again(tmp_path: Path) -> None:
    async def run() -> None:
        files = CountedFiles(tmp_path)
        file = files.put("a.pdf", b"%PDF-1.4 nothing")
        async with documents(files) as known:
            for reads in (1, 2):
                found = await asyncio.gather(*(known.stored(file) for _ in range(3)), return_exceptions=True)
                assert all(isinstance(one, Glm4Error) for one in found), found
                assert files.reads == reads

    asyncio.run(run())

"""`Documents`: reads stored files as documents for requests, in turn, and remembers the last ones."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from glm4.agent.files import FileStore, StoredFile
from glm4.agent.tools.files import FileIndex
from glm4.documents.document import Document
from glm4.errors import MissingExtraError, SandboxUnavailableError
from glm4.server.agent.reading import Readers
from glm4.server.errors import ApiError

KEPT_CHARACTERS = 16_000_000
"""Of documents that were read last: 4 MB to 64 MB of memory."""
KEPT_INDEXES = 4
MOST_INDEXED = 8_000_000
"""Characters that are searched together; their index takes some 30 bytes for each."""


class Documents:
    """Documents of one server.

    Args:
        readers: read them, in turn.
    """

    def __init__(self, files: FileStore, readers: Readers) -> None:
        self._files = files
        self._readers = readers
        self._known: OrderedDict[tuple[str, str], Document] = OrderedDict()
        self._reading: dict[tuple[str, str], asyncio.Future[Document]] = {}
        self._indexes: OrderedDict[tuple[tuple[str, str], ...], FileIndex] = OrderedDict()

    async def stored(self, file: StoredFile) -> Document:
        """The document of a stored file; see `data` for the errors."""
        key = (file.sha256, file.name)
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        if key not in self._reading:  # once, however many ask for it
            reading = asyncio.ensure_future(self._keep(file, key))
            self._reading[key] = reading
            reading.add_done_callback(partial(self._was_read, key))
        return await asyncio.shield(self._reading[key])

    def _was_read(self, key: tuple[str, str], reading: asyncio.Future[Document]) -> None:
        del self._reading[key]
        if not reading.cancelled():
            reading.exception()  # who asked may be gone, and then nobody else takes it

    async def _keep(self, file: StoredFile, key: tuple[str, str]) -> Document:
        document = await self._read(lambda: self._files.read(file.sha256), file.name)
        self._known[key] = document
        while len(self._known) > 1 and sum(len(one.text) for one in self._known.values()) > KEPT_CHARACTERS:
            self._known.popitem(last=False)
        return document

    async def data(self, data: bytes, name: str) -> Document:
        """The document of a file that is in a request, and is not kept.

        Raises:
            InvalidRequestError: it cannot be read; says why.
            ApiError: documents cannot be read on this machine (400).
        """
        return await self._read(lambda: data, name)

    async def _read(self, data: Callable[[], bytes], name: str) -> Document:
        from glm4.documents.loading import load_document

        try:
            return await self._readers.run(lambda: load_document(data(), name))
        except (MissingExtraError, SandboxUnavailableError) as error:
            raise ApiError(400, f"this server cannot read documents: {error}", code="unsupported") from None

    async def index(self, files: Sequence[StoredFile]) -> FileIndex:
        """What these files are searched with.

        Raises:
            ApiError: they are too long to be searched together (400).
        """
        key = tuple((file.sha256, file.name) for file in files)
        if key in self._indexes:
            self._indexes.move_to_end(key)
            return self._indexes[key]
        documents, length = [], 0
        for file in files:
            documents.append(await self.stored(file))
            length += len(documents[-1].text)
            if length > MOST_INDEXED:
                raise ApiError(400, f"these files have more than {MOST_INDEXED:,} characters, which is more than can be"
                               " searched together; make several vector stores", code="too_large")  # fmt: skip
        index = await self._readers.run(partial(FileIndex.of, documents))
        self._indexes[key] = index
        if len(self._indexes) > KEPT_INDEXES:
            self._indexes.popitem(last=False)
        return index

    def forget(self, sha256: str) -> None:
        """Keep nothing of a file that was deleted."""
        for key in [key for key in self._known if key[0] == sha256]:
            del self._known[key]
        for files in [files for files in self._indexes if any(digest == sha256 for digest, _ in files)]:
            del self._indexes[files]

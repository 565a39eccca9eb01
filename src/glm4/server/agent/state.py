"""`AgentState`: what the endpoints of the assistant need."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

from starlette.requests import Request

from glm4.agent.file_store import FolderFileStore
from glm4.agent.files import StoredFile
from glm4.agent.uploads import Paging, Upload
from glm4.agent.vector_stores import MAX_FILES, Member, VectorStore
from glm4.server.agent.config import AgentConfig
from glm4.server.agent.documents import Documents
from glm4.server.agent.store import ThreadedSessionStore
from glm4.server.agent.tool_pool import ToolPool
from glm4.server.agent.turns import Turns
from glm4.server.errors import ApiError
from glm4.server.identity import KEY_ID

_MAX_UPLOADS = 4096


@dataclass
class AgentState:
    """The assistant of one server.

    Attributes:
        uploads: files that were sent, or made for a response, and that no conversation need have; by owner and sha256.
        changing: held while content is kept or deleted, so that no file loses what another one has just got.
    """

    config: AgentConfig
    store: ThreadedSessionStore
    files: FolderFileStore
    tools: ToolPool
    turns: Turns
    documents: Documents
    uploads: dict[tuple[str, str], StoredFile] = field(default_factory=dict)
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def keep(self, owner: str, file: StoredFile) -> None:
        """Let an owner name a file by its sha256; the oldest of many are forgotten."""
        if len(self.uploads) >= _MAX_UPLOADS:
            self.uploads.pop(next(iter(self.uploads)))
        self.uploads[owner, file.sha256] = file

    async def file(self, name: str, owner: str) -> StoredFile:
        """A file of this owner, by its sha256 or its id (`file-…`).

        Raises:
            ApiError: there is no such one (404).
        """
        if name.startswith("file-"):
            return (await self.upload(name, owner)).file
        found = self.uploads.get((owner, name)) or await self.store.file(name, owner)
        if found is None:
            raise ApiError(404, f"there is no file {name[:100]!r}; send it first", "files", "not_found")
        return found

    async def upload(self, name: str, owner: str) -> Upload:
        """A file that was sent to /v1/files; see `file`."""
        found = await self.store.find_upload(name, owner)
        if found is None:
            raise ApiError(404, f"No such File object: {name[:100]}", "file_id", "not_found")
        return found

    async def vector_store(self, name: str, owner: str) -> VectorStore:
        """A vector store; see `file`."""
        found = await self.store.find_store(name, owner)
        if found is None:
            raise ApiError(404, f"No vector store found with id {name[:100]!r}.", "vector_store_id", "not_found")
        return found

    async def readable(self, store: str) -> list[Member]:
        """The files of a vector store that could be read."""
        found, _ = await self.store.members(store, Paging(MAX_FILES, "asc"), failed=False)
        return found

    async def given(self, names: Iterable[str], owner: str) -> dict[str, StoredFile]:
        """Files of this owner by sha256 or id, and those of vector stores; each once.

        Returns:
            What answers call them → the file.

        Raises:
            ApiError: there is no such one (404).
        """
        found: dict[str, StoredFile] = {}
        for name in names:
            if name.startswith("vs_"):
                store = await self.vector_store(name, owner)
                found |= {member.upload.id: member.upload.file for member in await self.readable(store.id)}
                await self.store.change_store(store.id, {})
            else:
                found[name] = await self.file(name, owner)
        return found

    async def keep_upload(self, name: str, data: bytes, purpose: str, owner: str) -> Upload:
        """Keep a file under a new id.

        Raises:
            InvalidRequestError: it is too large, or there is no room left.
        """
        async with self.changing:
            stored = await asyncio.to_thread(partial(self.files.put, name, data))
            try:
                return await self.store.add_upload(stored, purpose, owner)
            except BaseException:
                await self.drop(stored.sha256)
                raise

    async def discard(self, name: str, owner: str) -> None:
        """Delete a file; its content, too, if nothing else has it. See `upload` for the error."""
        await self.upload(name, owner)
        async with self.changing:
            deleted = await self.store.delete_upload(name, owner)
            if deleted is not None:
                self.documents.forget(deleted.file.sha256)
                await self.drop(deleted.file.sha256)

    async def drop(self, sha256: str) -> None:
        """Delete content, unless something still has it. For who holds `changing`."""
        if all(digest != sha256 for _, digest in self.uploads) and not await self.store.has_content(sha256):
            await asyncio.to_thread(self.files.delete, sha256)


def owner_of(request: Request) -> str:
    """The key of a request, to which what it makes belongs."""
    return str(request.scope["state"].get(KEY_ID, ""))

"""`AgentState`: what the endpoints of the assistant need."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.requests import Request

from glm4.agent.files import FileStore, StoredFile
from glm4.server.agent.config import AgentConfig
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
        uploads: files of owners, by owner and sha256, which no conversation may have yet: those that were sent, and
            those that tools made in responses.
    """

    config: AgentConfig
    store: ThreadedSessionStore
    files: FileStore
    tools: ToolPool
    turns: Turns
    uploads: dict[tuple[str, str], StoredFile] = field(default_factory=dict)

    def note(self, file: StoredFile, owner: str) -> None:
        """Remember that a file is this owner's, for as long as there is room."""
        if len(self.uploads) >= _MAX_UPLOADS:
            self.uploads.pop(next(iter(self.uploads)))
        self.uploads[owner, file.sha256] = file

    async def file(self, sha256: str, owner: str) -> StoredFile:
        """A file of this owner.

        Raises:
            ApiError: there is no such one (404).
        """
        found = self.uploads.get((owner, sha256)) or await self.store.file(sha256, owner)
        if found is None:
            raise ApiError(404, f"there is no file {sha256[:100]!r}; send it first", "files", "not_found")
        return found


def owner_of(request: Request) -> str:
    """The key of a request, to which what it makes belongs."""
    return str(request.scope["state"].get(KEY_ID, ""))

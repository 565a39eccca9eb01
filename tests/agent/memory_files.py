"""`MemoryFiles`: a file store that a test can look into."""

from __future__ import annotations

import hashlib

from glm4.agent.files import StoredFile
from glm4.errors import InvalidRequestError


class MemoryFiles:
    """Files by content, as `FileStore` says."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.stored: list[StoredFile] = []

    def put(self, name: str, data: bytes, *, alt: str | None = None) -> StoredFile:
        digest = hashlib.sha256(data).hexdigest()
        self.content[digest] = data
        self.stored.append(StoredFile(digest, name, "image/png", len(data), alt=alt))
        return self.stored[-1]

    def read(self, sha256: str) -> bytes:
        if sha256 not in self.content:
            raise InvalidRequestError("there is no such file")
        return self.content[sha256]

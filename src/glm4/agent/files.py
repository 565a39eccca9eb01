"""`StoredFile` and `FileStore`: files of conversations, kept by content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class StoredFile:
    """A file that a user sent or a tool made.

    Attributes:
        sha256: of its content, in hexadecimal; what it is found by.
        name: without folders; shown to people, never used as a path.
        media_type: found by its content, not by its name.
        width: of a picture, in pixels.
        alt: what a picture shows, for people who do not see it.
    """

    sha256: str
    name: str
    media_type: str
    nbytes: int
    width: int | None = None
    height: int | None = None
    alt: str | None = None


class FileStore(Protocol):
    """Where files of conversations are. Thread-safe."""

    def put(self, name: str, data: bytes, *, alt: str | None = None) -> StoredFile:
        """Keep a file; the same content is kept once.

        Raises:
            InvalidRequestError: it is too large, or the owner has no room left.
        """

    def read(self, sha256: str) -> bytes:
        """A file's content.

        Raises:
            InvalidRequestError: there is no such file.
        """

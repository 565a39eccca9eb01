"""`DataFolder`: `/mnt/data` of a conversation, as this side sees it.

Code in the sandbox writes there whatever it wants, at any time. Nothing here follows a symbolic link, waits for a pipe,
reads more than it said it would or takes a name for a path: every step goes from a folder's descriptor to one name in
it.

Not covered: what a file contains. Hard links are no danger, as they cannot lead out of a mount.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from glm4.agent.tools.python.messages import printable
from glm4.errors import InvalidRequestError
from glm4.sandbox.disk import remove, usage

MOST_FILES = 20
MOST_FILE_NBYTES = 64 << 20
_MOST_NBYTES = 128 << 20
_MOST_ENTRIES = 2000
_MOST_DEPTH = 3
_MOST_NAME_NBYTES = 120
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_Key = tuple[str, ...]
_State = tuple[int, int, int, int]


class ChangedFile(NamedTuple):
    """A file that is new or has changed: its path below `/mnt/data`, printable, and its content."""

    path: str
    data: bytes


class DataFolder:
    """The folder of one conversation; what is in it now counts as known.

    Args:
        quota: bytes on disk that it may take.
    """

    def __init__(self, path: Path, quota: int) -> None:
        self.path, self._quota = path, quota
        self._root = os.open(path, _FOLDER)
        self._states: dict[_Key, _State] = dict(self._scan())
        self._hashes: dict[_Key, bytes] = {}

    def add(self, name: str, data: bytes) -> str:
        """Put a user's file there under a safe name, numbered if there is one of that name; returns the name.

        Raises:
            InvalidRequestError: there is no room for it, or hundreds of that name are there.
        """
        if usage(self.path, self._quota) + len(data) > self._quota:
            raise InvalidRequestError(
                f"{name[:80]!r} does not fit into /mnt/data, which takes {self._quota >> 20} MB; delete files there"
            )
        path = Path(safe_name(name))
        owner = os.fstat(self._root)
        for number in range(1, 1000):
            chosen = path.name if number == 1 else f"{path.stem}-{number}{path.suffix}"
            try:
                handle = os.open(chosen, _NEW, 0o644, dir_fd=self._root)
            except FileExistsError:
                continue
            with open(handle, "wb") as file:  # noqa: PTH123 - a descriptor
                file.write(data)
                if os.geteuid() == 0:  # code may change it
                    os.fchown(handle, owner.st_uid, owner.st_gid)
            self._states[(chosen,)] = _state(os.stat(chosen, dir_fd=self._root, follow_symlinks=False))
            return chosen
        raise InvalidRequestError(f"/mnt/data has too many files of the name {path.name}")

    def changes(self) -> tuple[list[ChangedFile], int]:
        """Files that are new or have changed since the last call, and how many more there are than are read."""
        before, self._states = self._states, dict(self._scan())
        changed = [key for key, state in self._states.items() if before.get(key) != state]
        found: list[ChangedFile] = []
        left_out, nbytes = 0, 0
        for key in sorted(changed):
            data = None
            if len(found) < MOST_FILES:
                data = self._read(key, min(MOST_FILE_NBYTES, _MOST_NBYTES - nbytes))
            if data is None:
                left_out += 1
                continue
            digest = hashlib.sha256(data).digest()
            if self._hashes.get(key) != digest:
                self._hashes[key] = digest
                nbytes += len(data)
                found.append(ChangedFile("/".join(printable(part, 100) for part in key), data))
        return found, left_out

    def make_room(self) -> bool:
        """If the folder is over its quota: remove what is new or has changed since the last call of `changes`.

        No process may be using the folder. Returns whether it was over its quota.
        """
        if usage(self.path, self._quota) <= self._quota:
            return False
        unchanged = {key for key, state in self._scan() if self._states.get(key) == state}
        self._remove_all_but(unchanged, ())
        return True

    def empty(self) -> None:
        """Remove everything. No process may be using the folder. Does nothing when closed."""
        if self._root >= 0:
            self._remove_all_but(set(), ())

    def _remove_all_but(self, kept: set[_Key], folder: _Key) -> None:
        handle = self._open_folder(folder)
        try:
            for name in os.listdir(handle):  # noqa: PTH208 - of a descriptor
                key = (*folder, name)
                if any(other[: len(key)] == key and other != key for other in kept):
                    self._remove_all_but(kept, key)
                elif key not in kept:
                    remove(name, handle)
        finally:
            os.close(handle)

    def close(self) -> None:
        """Let go of the folder; its files stay. Idempotent."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def _scan(self) -> Iterator[tuple[_Key, _State]]:
        """Regular files that are not hidden, as deep and as many as the limits say."""
        waiting: list[_Key] = [()]
        left = _MOST_ENTRIES
        while waiting and left > 0:
            folder = waiting.pop(0)
            with suppress(OSError):
                handle = self._open_folder(folder)
                try:
                    with os.scandir(handle) as entries:
                        for entry in islice(entries, left):
                            left -= 1
                            if entry.name.startswith((".", "__pycache__")):
                                continue
                            with suppress(OSError):
                                status = entry.stat(follow_symlinks=False)
                                if stat.S_ISREG(status.st_mode):
                                    yield (*folder, entry.name), _state(status)
                                elif stat.S_ISDIR(status.st_mode) and len(folder) < _MOST_DEPTH:
                                    waiting.append((*folder, entry.name))
                finally:
                    os.close(handle)

    def _open_folder(self, key: _Key) -> int:
        handle = os.open(".", _FOLDER, dir_fd=self._root)
        for name in key:
            try:
                inner = os.open(name, _FOLDER, dir_fd=handle)
            finally:
                os.close(handle)
            handle = inner
        return handle

    def _read(self, key: _Key, limit: int) -> bytes | None:
        """A file's content; None if it is larger, or no longer a regular file."""
        with suppress(OSError):
            folder = self._open_folder(key[:-1])
            try:
                handle = os.open(key[-1], _FILE, dir_fd=folder)
            finally:
                os.close(folder)
            with open(handle, "rb") as file:  # noqa: PTH123 - a descriptor
                status = os.fstat(handle)
                if stat.S_ISREG(status.st_mode) and status.st_size <= limit:
                    data = file.read(limit + 1)
                    return data if len(data) <= limit else None
        return None


def _state(status: os.stat_result) -> _State:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def safe_name(name: str) -> str:
    """A file name without folders, control characters and what shells and programs take for an option."""
    last = unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode()).replace("\\", "/").rpartition("/")[2]
    clean = printable(last, 1000).lstrip(".-~ ").rstrip(". ") or "file"
    suffix = Path(clean).suffix
    if len(suffix.encode()) > 20:
        suffix = ""
    room = _MOST_NAME_NBYTES - len(suffix.encode())
    return clean.removesuffix(suffix).encode()[:room].decode("utf-8", "ignore") + suffix

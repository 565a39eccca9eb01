"""The folder of a KV store: one file per page, named by the page's key; a limit on their bytes, and whom it trusts.

Layout: `ab/abcd….kv`, where abcd… is a key in hexadecimal, and `partial/` for files that are being written. A page
appears by a rename, complete; nothing is synced to the disk, because a page that a failure of power damaged has a wrong
checksum. A file is MARK, the SHA-256 of key and content, and the content.

A page's modification time says when it was last used, and is later than that of the page behind it in its prompt. So
the least recently used pages, which are deleted first, are those that no other page needs; and a prompt for which the
limit is too small keeps its beginning.

Any number of processes may share a folder. Together they may exceed the limit by a sixteenth each, until they next
count what is there.

Files are their owner's alone (0600), and a folder in which others may write is refused, because a page can make a model
answer anything: the checksum finds accidents, not forgeries. Does not cover: other users who may rename a folder above;
whoever may read the folder, who can learn of each page whether it belongs to a text that they guess.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from glm4.errors import InvalidRequestError

log = logging.getLogger("glm4.kv_store")

MARK = b"GLM4KV1\n"
_HEADER_NBYTES = len(MARK) + hashlib.sha256().digest_size
_PARTIAL = "partial"
_NAME = re.compile(r"[0-9a-f]{64}\.kv")
_FOLDER = re.compile(r"[0-9a-f]{2}")


class PageFolder:
    """Pages on disk. `write` is for one thread at a time, all else for any.

    Args:
        path: made if it does not exist.
        limit: bytes that all files together may take.

    Attributes:
        nbytes: what they take, as far as known; 0 until `count` or `write` was called.

    Raises:
        InvalidRequestError: it cannot be made or used, or others may write in it.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path.absolute()
        self._limit = limit
        self._since_count = limit  # bytes written; so that the first write counts
        self._failing = False
        self.nbytes = 0
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._path / _PARTIAL).mkdir(mode=0o700, exist_ok=True)
            status = self._path.stat()
            self._remove_abandoned()
        except OSError as error:
            raise InvalidRequestError(
                f"the KV store cannot use the folder {path}: {error.strerror or error}", param="kv_store"
            ) from None
        foreign = os.geteuid() not in (0, status.st_uid)
        if foreign or status.st_mode & 0o022:
            raise InvalidRequestError(
                f"other users of this machine may write in {path}, and what is written there decides answers; name a"
                f" folder of your own, or close this one to them: chmod go-w {path}",
                param="kv_store",
            )

    def touch(self, keys: Sequence[bytes]) -> int:
        """How many keys, from the first on, have a file; marks these as used now."""
        now = time.time_ns()
        for index, key in enumerate(keys):
            stamp = now - 1000 * index
            try:
                os.utime(self._file(key), ns=(stamp, stamp))
            except OSError:
                return index
        return len(keys)

    def read(self, key: bytes, nbytes: int) -> memoryview | None:
        """The content of a page, `nbytes` long; None if there is none. A damaged file is deleted."""
        file = self._file(key)
        try:
            with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb", buffering=0) as stream:  # noqa: PTH123
                data = memoryview(bytearray(_HEADER_NBYTES + nbytes + 1))  # one more shows a file that is too long
                size = stream.readinto(data)
        except OSError:
            return None
        content = data[_HEADER_NBYTES:-1]
        if size == len(data) - 1 and bytes(data[:_HEADER_NBYTES]) == _header(key, content):
            return content
        log.warning("a page of the KV store was damaged and is computed again: %s", file)
        with contextlib.suppress(OSError):
            file.unlink()
        return None

    def write(self, key: bytes, parent: bytes | None, content: bytes) -> bool:
        """Write a page behind its parent, which must be there; a full disk or anything like it is logged, once.

        Returns:
            Whether it was written; not if it was there already.
        """
        file, now = self._file(key), time.time_ns()
        try:
            stamp = now if parent is None else self._file(parent).stat().st_mtime_ns - 1000
        except OSError:
            return False  # nobody would find it
        try:
            if file.exists() or not self._make_room(_HEADER_NBYTES + len(content), stamp):
                return False
            file.parent.mkdir(mode=0o700, exist_ok=True)
            with self._partial() as (descriptor, partial):
                for part in (_header(key, content), content):
                    _write_all(descriptor, part)
                os.utime(partial, ns=(stamp, stamp))
                partial.rename(file)
        except OSError as error:
            if not self._failing:
                log.warning("the KV store in %s cannot be written: %s", self._path, error.strerror or error)
            self._failing = True
            return False
        self._failing = False
        self.nbytes += _HEADER_NBYTES + len(content)
        self._since_count += _HEADER_NBYTES + len(content)
        return True

    def count(self) -> list[tuple[int, int, Path]]:
        """Count what is there: modification time, bytes and path of every page."""
        found = []
        for folder in self._path.iterdir():
            if _FOLDER.fullmatch(folder.name):
                with contextlib.suppress(OSError), os.scandir(folder) as entries:
                    found += [_facts(entry) for entry in entries if _NAME.fullmatch(entry.name)]
        self.nbytes = sum(nbytes for _, nbytes, _ in found)
        self._since_count = 0
        return found

    def _make_room(self, nbytes: int, stamp: int) -> bool:
        """Delete the least recently used pages until there is room; False if only pages used after `stamp` are left."""
        spare = self._limit // 16
        if self.nbytes + nbytes > self._limit or self._since_count > spare:
            files = self.count()
            if self.nbytes + nbytes > self._limit:
                for used, size, file in sorted(files):
                    if self.nbytes + max(nbytes, spare) <= self._limit or used >= stamp:
                        break
                    file.unlink(missing_ok=True)
                    self.nbytes -= size
        return self.nbytes + nbytes <= self._limit

    @contextlib.contextmanager
    def _partial(self) -> Iterator[tuple[int, Path]]:
        """A new file, deleted unless it is renamed; locked, so that a process that starts leaves it alone."""
        descriptor, name = tempfile.mkstemp(dir=self._path / _PARTIAL)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor, Path(name)
        finally:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            os.close(descriptor)

    def _remove_abandoned(self) -> None:
        """Delete what killed processes were writing."""
        for file in (self._path / _PARTIAL).iterdir():
            with contextlib.suppress(OSError):
                descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    file.unlink()
                finally:
                    os.close(descriptor)

    def _file(self, key: bytes) -> Path:
        name = key.hex()
        return self._path / name[:2] / f"{name}.kv"


def _header(key: bytes, content: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(key)
    digest.update(content)
    return MARK + digest.digest()


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _facts(entry: os.DirEntry[str]) -> tuple[int, int, Path]:
    status = entry.stat(follow_symlinks=False)
    return status.st_mtime_ns, status.st_size, Path(entry.path)

"""The interface of every weight file (`TensorSource`), and the memory map that both readers use."""

from __future__ import annotations

import contextlib
import mmap
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from glm4.errors import CheckpointError, TensorError

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's header entry.

    Attributes:
        shape: (out, in) for a matrix; row-major.
        dtype: the file's name for the number format: "BF16", "F16", "F32", "Q4_K" …
        nbytes: bytes in the file.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int


class TensorSource(Protocol):
    """The raw tensors of one checkpoint, memory mapped, under the file's names."""

    def names(self) -> Collection[str]:
        """Every tensor name; membership tests are fast."""
        ...

    def info(self, name: str) -> TensorInfo:
        """Shape, dtype and size, without touching the data."""
        ...

    def read(self, name: str) -> Float32:
        """The tensor widened or dequantized to float32; a fresh, writable, contiguous array."""
        ...

    def read_rows(self, name: str, start: int, stop: int) -> Float32:
        """Rows start..stop-1 of the first axis, as `read` would return them."""
        ...

    def close(self) -> None:
        """Unmaps the files; later reads raise CheckpointError."""
        ...


class MappedFile:
    """A file mapped for reading. Every access is checked against the file's size.

    Does not cover: a file that another process shortens while it is mapped (the operating system then ends the
    process with a bus error).

    Raises:
        CheckpointError: not a regular file, empty, or unreadable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = None
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path} is not a regular file")
            if status.st_size == 0:
                raise CheckpointError(f"{path} is empty; the download was cut off, fetch it again")
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error
        self.size = len(self._map)

    def buffer(self) -> mmap.mmap:
        """The mapping itself, for header parsers.

        Raises:
            CheckpointError: the file was closed.
        """
        if self._map is None:
            raise CheckpointError(f"{self.path} was closed; open the checkpoint again")
        return self._map

    def bytes_at(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """A view of a byte range. Keep it no longer than the read that needs it, or `close` cannot unmap."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise TensorError(f"bytes {offset}..{offset + nbytes} are outside {self.path} ({self.size} bytes)")
        return np.frombuffer(self.buffer(), np.uint8, nbytes, offset)

    def prefer_huge_pages(self) -> None:
        """Ask the system to use huge pages for the file: 4-14 % more bandwidth when it is read repeatedly."""
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):
                self.buffer().madvise(mmap.MADV_HUGEPAGE)

    def release(self, offset: int, nbytes: int) -> None:
        """Lets the system drop the range from this process's memory; it stays in the file cache.

        Otherwise, loading a checkpoint would count its whole file as resident memory in addition to the packed weights.
        """
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (offset + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self.buffer().madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        """Unmaps the file; closing twice is harmless."""
        if self._map is not None:
            mapping, self._map = self._map, None
            # A failed read may still hold a view through its traceback; the map is then unmapped with it.
            with contextlib.suppress(BufferError):
                mapping.close()

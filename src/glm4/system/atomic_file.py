"""A file that appears complete or not at all, no matter how the process that writes it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from glm4.errors import DiskFullError, InvalidRequestError
from glm4.system.atomic_folder import NO_ROOM, partial_of


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[BinaryIO]:
    """Yield an empty file to write; when the block ends it becomes `target`, in place of what was there.

    It is synced to disk before the rename. A block that fails leaves `target` as it was and nothing else; a killed
    process leaves a `.partial` sibling, which the next attempt empties.

    Raises:
        InvalidRequestError: another process is writing the same target, or the location is not writable.
        DiskFullError: the disk filled up while writing.
    """
    target = target.absolute()
    partial = partial_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    except OSError as error:
        raise InvalidRequestError(f"cannot write to {target.parent}: {error.strerror or error}") from error
    written = False
    try:
        _lock(file, partial, target)
        try:
            file.truncate()
            yield file
            file.flush()
            os.fsync(file.fileno())
            partial.replace(target)
            written = True
            _sync_folder(target.parent)
        finally:
            if not written:
                partial.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFullError(f"no room left in {target.parent} while writing {target.name}") from error
        raise
    finally:
        with contextlib.suppress(OSError):  # what is still buffered for a full disk
            file.close()


@contextlib.contextmanager
def atomic_files(targets: Sequence[Path]) -> Iterator[list[BinaryIO]]:
    """`atomic_file` for files that belong together, the first of which readers open to find the others.

    The first one appears last, and an older one disappears before any other is replaced: whoever finds it finds a
    complete set.

    Raises:
        InvalidRequestError, DiskFullError: as `atomic_file`; nothing appears.
    """
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(atomic_file(target)) for target in targets]
        yield files
        for file in files:  # a disk that is full shows itself before anything is renamed
            file.flush()
            os.fsync(file.fileno())
        if len(targets) > 1:
            targets[0].unlink(missing_ok=True)


def _lock(file: BinaryIO, partial: Path, target: Path) -> None:
    """Hold the only lock on the partial file; the kernel frees it when the holder dies."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InvalidRequestError(f"another process is writing {target}; wait for it") from None
    except OSError:
        return  # a file system without locks; the rename still keeps the result whole
    # Between our open and our lock the other process may have finished and renamed this very file.
    with contextlib.suppress(FileNotFoundError):
        if partial.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return
    raise InvalidRequestError(f"another process has just written {target}")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

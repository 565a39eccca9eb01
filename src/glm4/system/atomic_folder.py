"""A folder that appears complete or not at all, no matter how the process that writes it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from glm4.errors import DiskFullError, InvalidRequestError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def partial_of(target: Path) -> Path:
    """Where `target` is written before it is renamed: a hidden sibling, so on the same disk."""
    return target.with_name(f".{target.name}.partial")


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block ends it becomes `target`, in place of what was there.

    Everything in it is synced to disk before the rename. A block that fails leaves `target` as it was and nothing
    else; a killed process leaves a `.partial` sibling, which the next attempt empties.

    Raises:
        InvalidRequestError: another process is writing the same target, or the location is not writable.
        DiskFullError: the disk filled up while writing.
    """
    target = target.absolute()
    partial = partial_of(target)
    with _locked(partial, target):
        try:
            for entry in partial.iterdir():
                _remove(entry)
            yield partial
            _sync(partial)
            _put_in_place(partial, target)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise DiskFullError(f"no room left in {target.parent} while writing {target.name}") from error
            raise


@contextlib.contextmanager
def _locked(partial: Path, target: Path) -> Iterator[None]:
    """Make the partial folder and hold the lock on it; the kernel frees it when the holder dies.

    What is left of the folder afterwards is deleted.
    """
    try:
        partial.mkdir(parents=True, exist_ok=True)
        handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InvalidRequestError(f"cannot write to {target.parent}: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidRequestError(f"another process is writing {target}; wait for it") from None
        except OSError:
            pass  # a file system without locks; the rename still keeps the result whole
        # Between our open and our lock the other process may have finished and renamed this very folder.
        if not _is_at(partial, handle):
            raise InvalidRequestError(f"another process has just written {target}")
        try:
            yield
        finally:
            # After the rename another writer may have made a folder of that name.
            if _is_at(partial, handle):
                shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(handle)


def _is_at(path: Path, handle: int) -> bool:
    """Whether an open folder is (still) the one at a path."""
    try:
        return path.stat().st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False


def _sync(folder: Path) -> None:
    """Sync a folder's files, then its entries, to disk: the new name must not get there before the bytes."""
    for entry in folder.rglob("*"):
        _sync_one(entry)
    _sync_one(folder)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _put_in_place(partial: Path, target: Path) -> None:
    """Rename; an older target is moved aside first, because a rename cannot replace a non-empty folder."""
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    if target.exists() or target.is_symlink():
        target.rename(old)
    partial.rename(target)
    _sync_one(target.parent)
    if old.exists() or old.is_symlink():
        _remove(old)


def remove_abandoned(folder: Path) -> None:
    """Delete what killed writers left in a folder, but nothing that a live writer has locked."""
    for leftover in (*folder.glob(".*.partial"), *folder.glob(".*.old-*")):
        with contextlib.suppress(OSError):
            handle = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

"""Folders that a program inside a sandbox fills with whatever it likes: how much is there, and how to remove it."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_LEAST = 4096  # what a file or folder takes at least, even an empty one: its inode and name

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_CLOSED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


def usage(folder: Path, enough: int) -> int:
    """Bytes on disk of all in a folder; it stops counting beyond `enough`.

    A folder that cannot be looked into counts as more than enough: it is closed to its owner, or so deep that its path
    is too long. Where a folder is replaced by a symbolic link meanwhile, another folder may be counted; nothing is read
    but sizes.
    """
    total, waiting = 0, [os.fspath(folder)]
    while waiting and total <= enough:
        path = waiting.pop()
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in _GONE:
                continue
            if error.errno in _CLOSED:
                return enough + 1
            raise
        try:
            with os.scandir(handle) as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue
                    total += max(_LEAST, status.st_blocks * 512)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{path}/{entry.name}")
                    if total > enough:
                        break
        finally:
            os.close(handle)
    return total


def remove(folder: Path) -> None:
    """Remove a folder and all in it, however deep and whatever its modes; no sandbox uses it any more.

    `shutil.rmtree` fails where folders are nested deeper than Python's stack. Follows no symbolic link.

    Raises:
        OSError: something there belongs to another user.
    """
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    names = (f"glm4-{number}" for number in itertools.count())
    try:
        while found := os.listdir(root):  # noqa: PTH208  # of a descriptor
            for name in found:
                if _is_folder(name, root):
                    _empty(name, root, names)
                    os.rmdir(name, dir_fd=root)
                else:
                    os.unlink(name, dir_fd=root)
    finally:
        os.close(root)
    folder.rmdir()


def _empty(name: str, root: int, names: Iterator[str]) -> None:
    """Remove the files of a folder; folders in it become folders of `root`."""
    os.chmod(name, 0o700, dir_fd=root)
    handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    try:
        for inner in os.listdir(handle):  # noqa: PTH208  # of a descriptor
            if not _is_folder(inner, handle):
                os.unlink(inner, dir_fd=handle)
                continue
            os.chmod(inner, 0o700, dir_fd=handle)  # else its own entry `..` cannot be changed
            free = next(name for name in names if not _exists(name, root))
            os.rename(inner, free, src_dir_fd=handle, dst_dir_fd=root)
    finally:
        os.close(handle)


def _is_folder(name: str, handle: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode)


def _exists(name: str, handle: int) -> bool:
    try:
        os.stat(name, dir_fd=handle, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True

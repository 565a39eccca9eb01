"""Folders that a program inside a sandbox fills with whatever it likes: how much is there, and how to remove it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_LEAST = 4096  # what a file or folder takes at least, even an empty one: its inode and name

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_CLOSED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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
            handle = os.open(path, _FOLDER)
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


def remove(name: str, folder: int) -> None:
    """Delete a file or a folder with all in it, however deep: what is inside is moved up before it is deleted.

    `shutil.rmtree` fails where folders are nested deeper than Python's stack. No process may be using it.

    Args:
        folder: descriptor of the one that it is in.
    """
    waiting, count = [name], 0
    while waiting:
        name = waiting.pop()
        if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=folder)
            continue
        os.chmod(name, 0o700, dir_fd=folder)
        handle = os.open(name, _FOLDER, dir_fd=folder)
        try:
            for inner in os.listdir(handle):  # noqa: PTH208  # of a descriptor
                if stat.S_ISDIR(os.stat(inner, dir_fd=handle, follow_symlinks=False).st_mode):
                    count += 1
                    os.chmod(inner, 0o700, dir_fd=handle)
                    moved = f".removed-{os.getpid()}-{id(waiting)}-{count}"
                    os.rename(inner, moved, src_dir_fd=handle, dst_dir_fd=folder)
                    waiting.append(moved)
                else:
                    os.unlink(inner, dir_fd=handle)
        finally:
            os.close(handle)
        os.rmdir(name, dir_fd=folder)

"""How much lies in a folder that a program inside a sandbox fills, whatever it puts there."""

from __future__ import annotations

import os
from pathlib import Path

_LEAST = 4096  # what a file or folder takes at least, even an empty one: its inode and name


def usage(folder: Path, enough: int) -> int:
    """Bytes on disk of all in a folder; it stops counting beyond `enough`.

    Names too long for the system count as more than enough: nothing could remove them in the usual way. Where a folder
    is replaced by a symbolic link meanwhile, another folder may be counted; nothing is read but sizes.
    """
    total, waiting = 0, [os.fspath(folder)]
    while waiting and total <= enough:
        path = waiting.pop()
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if len(os.fsencode(path)) > 3072:
                return enough + 1
            del error  # it is gone, or its mode was taken away
            continue
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

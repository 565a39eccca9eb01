"""Room on a disk, looked up before something large is written."""

from __future__ import annotations

import shutil
from pathlib import Path

from glm4.errors import DiskFullError


def check_space(target: Path, nbytes: int) -> None:
    """Check that the disk can hold a new file or folder; an older one makes way only when the new one is complete.

    Raises:
        DiskFullError: it cannot.
    """
    parent = target.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < nbytes:
        raise DiskFullError(
            f"no room in {parent}: {target.name} takes {nbytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
            "free some space or write to another disk (-o)"
        )

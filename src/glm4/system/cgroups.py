"""Control groups of this process: where Linux records what a container or a service may use.

A limit applies at any level from the process's own group to the root. Inside a container the root is often the
container's own group, whatever path `/proc/self/cgroup` gives; folders that do not exist here are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path("/")


class ControlGroup(NamedTuple):
    """One folder, and the version (1 or 2) whose file names it has."""

    folder: Path
    version: int


def control_groups(controller: str, root: Path = ROOT) -> list[ControlGroup]:
    """Groups that bound this process, innermost first; empty where the system has none.

    Args:
        controller: "cpu" or "memory".
        root: where /proc and /sys are, for tests.
    """
    base = root / "sys/fs/cgroup"
    found: list[ControlGroup] = []
    for controllers, path in _memberships(root):
        if not controllers:
            mounts, version = [base, base / "unified"], 2
        elif controller in controllers:
            mounts, version = [base / controller, base / ",".join(controllers)], 1
        else:
            continue
        for mount in dict.fromkeys(mounts):
            folders = [mount.joinpath(*part.parts[1:]) for part in (path, *path.parents)]
            found += [ControlGroup(folder, version) for folder in folders if folder.is_dir()]
    return found


def _memberships(root: Path) -> list[tuple[Sequence[str], PurePosixPath]]:
    """(controllers, path) per line of /proc/self/cgroup; version 2 names no controllers."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    fields = [line.split(":", 2) for line in lines]
    return [
        ([name for name in entry[1].split(",") if name], PurePosixPath(entry[2]))
        for entry in fields
        if len(entry) == 3 and entry[2].startswith("/") and ".." not in PurePosixPath(entry[2]).parts
    ]


def read_numbers(file: Path) -> list[int] | None:
    """Integers in a control file; None when it is missing or has anything else ("max" means no limit)."""
    try:
        return [int(word) for word in file.read_text(encoding="ascii").split()]
    except (OSError, ValueError):
        return None

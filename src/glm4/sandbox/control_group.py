"""`ControlGroup`: limits on memory and processes of all in a sandbox together, kept by the kernel.

Only where a part of the tree of control groups (version 2) is delegated to this process: a container with its own
writable tree, or a service of systemd with `Delegate=yes` and `DelegateSubgroup=`. Elsewhere the watcher does without.
"""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from pathlib import Path

from glm4.sandbox.limits import Limits
from glm4.system.cgroups import ROOT, control_groups

_numbers = itertools.count()
_ATTRIBUTES = ("trusted.delegate", "user.delegate")  # by which systemd marks what it delegates


class ControlGroup:
    """A group of its own for one process and all that it starts; made by `join`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def join(cls, pid: int, limits: Limits, root: Path = ROOT) -> ControlGroup | None:
        """Put a process into a new group with limits; None where that is not possible.

        Args:
            root: where /proc and /sys are, for tests.
        """
        for group in control_groups("memory", root):
            if group.version == 2 and _delegated(group.folder, root):
                made = group.folder / f"glm4-sandbox-{os.getpid()}-{next(_numbers)}"
                try:
                    (group.folder / "cgroup.subtree_control").write_text("+memory +pids", encoding="ascii")
                    made.mkdir()
                except OSError:  # it has processes of its own, or it is not ours after all
                    continue
                if _limit(made, pid, limits):
                    return cls(made)
                with suppress(OSError):
                    made.rmdir()
        return None

    @property
    def out_of_memory(self) -> bool:
        """Whether the kernel ended processes for want of memory."""
        with suppress(OSError, ValueError):
            lines = (self._folder / "memory.events").read_text(encoding="ascii").splitlines()
            return int(dict(line.split() for line in lines).get("oom_kill", "0")) > 0
        return False

    def remove(self) -> None:
        """Remove the group, in which no process is left."""
        with suppress(OSError):
            self._folder.rmdir()


def _delegated(folder: Path, root: Path) -> bool:
    if folder in (root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"):  # what a container sees of the tree
        return os.access(folder / "cgroup.procs", os.W_OK)
    for name in _ATTRIBUTES:
        with suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def _limit(folder: Path, pid: int, limits: Limits) -> bool:
    with suppress(OSError):  # without swap, or before Linux 4.19
        (folder / "memory.swap.max").write_text("0", encoding="ascii")
        (folder / "memory.oom.group").write_text("1", encoding="ascii")
    values = {"memory.max": limits.memory_nbytes, "pids.max": limits.processes + 1, "cgroup.procs": pid}
    try:
        for name, value in values.items():
            (folder / name).write_text(str(value), encoding="ascii")
    except OSError:
        return False
    return True

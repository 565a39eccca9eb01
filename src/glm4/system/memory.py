"""How much memory this process may use: the machine's free memory, bounded by a container's limit."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from glm4.system.cgroups import ROOT, control_groups, read_numbers

# Version 1 writes a number near 2**63 for no limit.
_NO_LIMIT = 1 << 60
# By version of control groups: (limit, usage, key of the page cache in memory.stat).
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def available_memory(root: Path = ROOT) -> int:
    """Bytes that can be allocated now without swapping; page cache counts as free."""
    free = _meminfo("MemAvailable", root) or _sysconf_free()
    return min([free, *(max(0, limit - used) for limit, used in _groups(root))])


def total_memory(root: Path = ROOT) -> int:
    """Bytes of memory this machine (or container) has."""
    total = _meminfo("MemTotal", root) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *(limit for limit, _ in _groups(root))])


def return_free_memory() -> None:
    """Return what was freed to the system; glibc keeps it for later allocations otherwise."""
    if sys.platform == "linux":
        import ctypes  # when a model is closed; not while starting

        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use that cannot be reclaimed) of every control group with a limit."""
    for folder, version in control_groups("memory", root):
        limit_file, usage_file, cache_key = _FILES[version]
        limit, usage = read_numbers(folder / limit_file), read_numbers(folder / usage_file)
        if limit and usage and limit[0] < _NO_LIMIT:
            yield limit[0], max(0, usage[0] - _number(folder / "memory.stat", cache_key, ""))


def _meminfo(key: str, root: Path) -> int:
    return _number(root / "proc/meminfo", key, ":") * 1024


def _number(file: Path, key: str, separator: str) -> int:
    """The number on the line of `key`; 0 if there is none."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    for line in lines:
        if line.startswith(key + separator + " "):
            return int(line.split()[1])
    return 0


def _sysconf_free() -> int:
    # macOS has no MemAvailable; half of the memory is a cautious estimate of what is free.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2

"""How much memory this process may use: the machine's free memory, bounded by a container's limit."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from glm4.system.cgroups import ROOT, control_groups, read_numbers

# Version 1 writes a number near 2**63 for no limit.
_NO_LIMIT = 1 << 60
# By version of control groups: (limit, usage, prefix of keys in memory.stat).
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    2: ("memory.max", "memory.current", ""),
}
# The page cache of files, which can be reclaimed; MemAvailable counts both, too. The pages of a packed model that
# was in use a moment ago are active ones.
_PAGE_CACHE = ("inactive_file", "active_file")


_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h; setting it also ends its adaptation

# A limit of our own for this process: `limit_memory`.
_limit: list[int] = []


def limit_memory(nbytes: int) -> None:
    """Bytes that this process is to use at most; `available_memory` goes by it from now on."""
    _limit[:] = [nbytes]


def available_memory(root: Path = ROOT) -> int:
    """Bytes that can be allocated now without swapping; page cache counts as free."""
    free = _meminfo("MemAvailable", root) or _sysconf_free()
    own = [max(0, limit - _own(root)) for limit in _limit]
    groups = (max(0, limit - used) for limit, used in _groups(root))
    return min([free, *own, *_address_space(root), *groups])


def _own(root: Path = ROOT) -> int:
    """Bytes that this process has allocated; mapped files do not count, as in `available_memory`."""
    return _number(root / "proc/self/status", "RssAnon", ":") * 1024


def resident_memory(root: Path = ROOT) -> int:
    """Bytes of this process that are in memory, mapped files (packed weights) among them; 0 where it is not known."""
    return _number(root / "proc/self/status", "VmRSS", ":") * 1024


class Room(NamedTuple):
    """Memory that one process may use.

    Attributes:
        free: bytes that can be allocated now.
        taken: bytes that this process holds already and that cannot be reclaimed.
    """

    free: int
    taken: int = 0

    @classmethod
    def here(cls) -> Room:
        """Of this machine and process, measured."""
        return cls(available_memory(), _own())


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


def map_large_blocks(least: int = 1 << 20) -> None:
    """Give each block of at least so many bytes a mapping of its own from now on, which is returned once it is free.

    glibc raises that limit to 32 MB as large blocks are freed. Tensors below it then lie among small ones, and what is
    free between them is held: training took up to three times the memory that its tensors did. In return the pages of
    each such block are cleared anew whenever it is made, which took a quarter more time.
    """
    if sys.platform == "linux":
        import ctypes

        set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
        if set_option is not None:
            set_option(_M_MMAP_THRESHOLD, least)


def _address_space(root: Path) -> list[int]:
    """What this process's own limit (`ulimit -v`) leaves; empty without one."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return []
    pages = read_numbers(root / "proc/self/statm") or [0]
    return [max(0, limit - pages[0] * os.sysconf("SC_PAGE_SIZE"))]


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use that cannot be reclaimed) of every control group with a limit."""
    for folder, version in control_groups("memory", root):
        limit_file, usage_file, prefix = _FILES[version]
        limit, usage = read_numbers(folder / limit_file), read_numbers(folder / usage_file)
        if limit and usage and limit[0] < _NO_LIMIT:
            cache = sum(_number(folder / "memory.stat", prefix + key, "") for key in _PAGE_CACHE)
            yield limit[0], max(0, usage[0] - cache)


def _meminfo(key: str, root: Path) -> int:
    return _number(root / "proc/meminfo", key, ":") * 1024


def _number(file: Path, key: str, separator: str) -> int:
    """The number on the line of `key`; 0 if there is none."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    for line in lines:
        words = line.split()
        if words and words[0] == key + separator:
            return int(words[1])
    return 0


def _sysconf_free() -> int:
    # macOS has no MemAvailable; half of the memory is a cautious estimate of what is free.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2

"""Which processors this process may use, how many threads are worth starting, and where to bind them.

Reads affinity, control groups and topology of Linux; elsewhere every processor counts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from glm4.system.cgroups import ROOT, control_groups, read_numbers

MOST_THREADS = 1024


def usable_processors() -> list[int]:
    """Numbers of the processors this process may run on, ascending."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def granted_processors(root: Path = ROOT) -> float | None:
    """CPU time that control groups grant, in processors (1.5 is one and a half); None without a limit."""
    granted: list[float] = []
    for folder, version in control_groups("cpu", root):
        if version == 2:
            quota_and_period = read_numbers(folder / "cpu.max")
        else:
            quota, period = (read_numbers(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
            quota_and_period = quota + period if quota and period else None
        # Version 1 writes -1 for no limit.
        if quota_and_period is not None and len(quota_and_period) == 2 and min(quota_and_period) > 0:
            granted.append(quota_and_period[0] / quota_and_period[1])
    return min(granted, default=None)


def physical_cores(processors: Sequence[int], root: Path = ROOT) -> list[list[int]]:
    """`processors` grouped by the core they belong to, in order of their first one."""
    cores: dict[frozenset[int], list[int]] = {}
    for processor in processors:
        cores.setdefault(_siblings(processor, root), []).append(processor)
    return list(cores.values())


def _siblings(processor: int, root: Path) -> frozenset[int]:
    """Processors of the same core, itself included."""
    folder = root / f"sys/devices/system/cpu/cpu{processor}/topology"
    for name in ("core_cpus_list", "thread_siblings_list"):  # the second is the older name
        try:
            return frozenset(parse_list((folder / name).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return frozenset([processor])


def parse_list(text: str) -> list[int]:
    """Numbers of a list in the kernel's notation: "0-2,8" is 0, 1, 2, 8.

    Raises:
        ValueError: anything else.
    """
    numbers: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def default_num_threads(processors: Sequence[int] | None = None, root: Path = ROOT) -> int:
    """Threads worth starting: one per core, within affinity and what control groups grant.

    Two hardware threads of a core share its multipliers and its path to memory, so the second one adds next to nothing
    and takes time from other processes. A single core still gets both: what a virtual machine says about its topology
    is often wrong, and believing it would halve the speed.
    """
    processors = usable_processors() if processors is None else processors
    count = max(len(physical_cores(processors, root)), min(2, len(processors)))
    granted = granted_processors(root)
    if granted is not None:
        count = min(count, math.ceil(granted))
    return max(1, min(count, MOST_THREADS))


def worker_processors(
    num_threads: int, setting: str = "", processors: Sequence[int] | None = None, root: Path = ROOT
) -> list[list[int]]:
    """Processors each worker should be bound to, except the calling thread; empty: bind nothing.

    A worker gets a core of its own, with all usable hardware threads. The calling thread is never bound, and the first
    core is left to it.

    Args:
        num_threads: the calling thread included.
        setting: "0" never binds; "1" binds wherever there are enough processors. "" binds only a pool that fills this
            process's share of the machine: smaller pools, of several processes side by side, would all be bound to the
            same first cores.
        processors: None is `usable_processors()`.
        root: where /proc and /sys are, for tests.
    """
    if setting == "0" or num_threads < 2:
        return []
    processors = usable_processors() if processors is None else processors
    places = physical_cores(processors, root)
    if len(places) < num_threads:
        places = [[processor] for processor in processors]
    fills = num_threads == len(places) and granted_processors(root) is None
    if len(places) < num_threads or not (setting == "1" or fills):
        return []
    return places[1:num_threads]

"""Processors and memory that a process may use, from control groups and topology written down in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from glm4.system.cpus import (
    default_num_threads,
    granted_processors,
    parse_list,
    physical_cores,
    usable_processors,
    worker_processors,
)
from glm4.system.memory import available_memory, total_memory

SMT = {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}
GB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def topology(root: Path, siblings: dict[int, str], name: str = "thread_siblings_list") -> Path:
    return write(root, {f"sys/devices/system/cpu/cpu{n}/topology/{name}": text for n, text in siblings.items()})


def version2(root: Path, limits: dict[str, str], path: str = "/a/b") -> Path:
    """limits: folder below the mount → cpu.max."""
    (root / f"sys/fs/cgroup{path}").mkdir(parents=True)
    write(root, {"proc/self/cgroup": f"0::{path}"})
    return write(root, {f"sys/fs/cgroup/{folder}/cpu.max": text for folder, text in limits.items()})


@pytest.mark.parametrize(
    ("limits", "granted"),
    [
        ({}, None),
        ({"a": "max 100000"}, None),
        ({"a/b": "150000 100000"}, 1.5),
        ({"a": "50000 100000", "a/b": "max 100000"}, 0.5),  # a parent's limit counts
        ({".": "300000 100000", "a/b": "400000 100000"}, 3.0),
        ({"a/b": "nonsense"}, None),
    ],
)
def test_quota_of_version_2(tmp_path: Path, limits: dict[str, str], granted: float | None) -> None:
    assert granted_processors(version2(tmp_path, limits)) == granted


def test_quota_inside_a_container_whose_path_is_not_visible(tmp_path: Path) -> None:
    write(tmp_path, {"proc/self/cgroup": "0::/docker/abc", "sys/fs/cgroup/cpu.max": "200000 100000"})
    assert granted_processors(tmp_path) == 2.0


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize(("quota", "granted"), [("-1", None), ("250000", 2.5)])
def test_quota_of_version_1(tmp_path: Path, mount: str, quota: str, granted: float | None) -> None:
    folder = f"sys/fs/cgroup/{mount}/x"
    write(tmp_path, {"proc/self/cgroup": "12:pids:/\n4:cpu,cpuacct:/x\n1:name=systemd:/\n0::/"})
    write(tmp_path, {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000"})
    assert granted_processors(tmp_path) == granted


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    assert granted_processors(tmp_path) is None
    write(tmp_path, {"proc/self/cgroup": "garbage\n0::relative\n0::/../..\n"})
    assert granted_processors(tmp_path) is None


@pytest.mark.parametrize("name", ["thread_siblings_list", "core_cpus_list"])
def test_cores(tmp_path: Path, name: str) -> None:
    topology(tmp_path, SMT, name)
    assert physical_cores(range(8), tmp_path) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert physical_cores([1, 4, 5], tmp_path) == [[1, 5], [4]]
    assert physical_cores([0, 9], tmp_path) == [[0, 4][:1], [9]]  # of 9 nothing is known


@pytest.mark.parametrize(
    ("processors", "quota", "threads"),
    [
        (range(8), None, 4),  # one a core
        ([0, 4], None, 2),  # both of a single core
        ([1], None, 1),
        ([0, 1, 5], None, 2),
        (range(8), "150000 100000", 2),  # rounded up
        (range(8), "50000 100000", 1),
        (range(8), "700000 100000", 4),
    ],
)
def test_default_number_of_threads(tmp_path: Path, processors: list[int], quota: str | None, threads: int) -> None:
    topology(tmp_path, SMT)
    version2(tmp_path, {"a": quota} if quota else {})
    assert default_num_threads(processors, tmp_path) == threads


@pytest.mark.parametrize(
    ("threads", "setting", "processors", "places"),
    [
        (4, "", range(8), [[1, 5], [2, 6], [3, 7]]),
        (4, "0", range(8), []),
        (1, "1", range(8), []),
        (3, "", range(8), []),  # others may fill the rest, and would choose the same cores
        (3, "1", range(8), [[1, 5], [2, 6]]),
        (8, "", range(8), [[n] for n in range(1, 8)]),
        (6, "", range(8), []),
        (6, "1", range(8), [[1], [2], [3], [4], [5]]),
        (9, "1", range(8), []),  # more threads than processors
        (2, "", [0, 4], [[4]]),
        (2, "", [2, 3], [[3]]),
    ],
)
def test_what_workers_are_bound_to(
    tmp_path: Path, threads: int, setting: str, processors: list[int], places: list[list[int]]
) -> None:
    assert worker_processors(threads, setting, processors, topology(tmp_path, SMT)) == places


def test_workers_below_a_quota_are_free(tmp_path: Path) -> None:
    """Containers side by side see all processors and are granted a few: the same few if each bound its own."""
    root = version2(topology(tmp_path, SMT), {"a": "400000 100000"})
    assert worker_processors(4, "", range(8), root) == []
    assert worker_processors(4, "1", range(8), root) == [[1, 5], [2, 6], [3, 7]]


def test_lists_of_processors() -> None:
    assert parse_list("0-2,8\n") == [0, 1, 2, 8]
    with pytest.raises(ValueError):
        parse_list("0-x")


def test_this_machine() -> None:
    assert 1 <= default_num_threads() <= len(usable_processors())


def test_memory_of_version_2_counts_no_page_cache(tmp_path: Path) -> None:
    root = version2(tmp_path, {})
    write(root, {"proc/meminfo": f"MemTotal: {64 * GB // 1024} kB\nMemAvailable:  {50 * GB // 1024} kB"})
    assert (total_memory(root), available_memory(root)) == (64 * GB, 50 * GB)
    write(root, {"sys/fs/cgroup/a/memory.max": str(16 * GB), "sys/fs/cgroup/a/memory.current": str(15 * GB)})
    write(root, {"sys/fs/cgroup/a/memory.stat": f"anon 1\ninactive_file {10 * GB}\nactive_file {2 * GB}"})
    assert (total_memory(root), available_memory(root)) == (16 * GB, 13 * GB)


def test_memory_of_version_1(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/memory/x"
    write(
        tmp_path,
        {"proc/self/cgroup": "4:memory:/x", "proc/meminfo": "MemTotal: 67108864 kB\nMemAvailable: 52428800 kB"},
    )
    write(tmp_path, {f"{folder}/memory.limit_in_bytes": str(8 * GB), f"{folder}/memory.usage_in_bytes": str(3 * GB)})
    write(tmp_path, {"sys/fs/cgroup/memory/memory.limit_in_bytes": str((1 << 63) - 4096)})
    write(tmp_path, {"sys/fs/cgroup/memory/memory.usage_in_bytes": str(60 * GB)})
    assert (total_memory(tmp_path), available_memory(tmp_path)) == (8 * GB, 5 * GB)
    write(tmp_path, {f"{folder}/memory.stat": f"active_file 7\ntotal_inactive_file {GB}\ntotal_active_file {GB}"})
    assert available_memory(tmp_path) == 7 * GB

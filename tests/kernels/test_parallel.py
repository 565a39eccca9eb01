"""The thread pool: stalled workers, races, binding to processors, and who works during a step."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from glm4.kernels import _native, get_kernels
from glm4.kernels.base import Kernels
from glm4.system.cpus import usable_processors

CSRC = Path(__file__).parents[2] / "csrc"
COMPILER = shutil.which("c++")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["-O2"], id="plain"),
        pytest.param(["-O1", "-g", "-fsanitize=thread"], id="thread sanitizer", marks=pytest.mark.thorough),
    ],
)
def test_pool_alone(tmp_path: Path, options: list[str]) -> None:
    assert COMPILER is not None
    program = tmp_path / "pool"
    sources = [Path(__file__).with_name("pool_test.cpp"), CSRC / "parallel.cpp"]
    flags = ["-std=c++20", "-Wall", "-Wextra", "-pthread", f"-I{CSRC}", *options]
    # The environment of `make sanitize` preloads another sanitizer.
    clean = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    command = [COMPILER, *flags, *map(str, sources), "-o", str(program)]
    built = subprocess.run(command, env=clean, capture_output=True, text=True, check=False)
    if "-fsanitize=thread" in options and "tsan" in built.stderr:
        pytest.skip("the compiler has no ThreadSanitizer")
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([program], env=clean, capture_output=True, text=True, check=False, timeout=120)
    if "unexpected memory mapping" in ran.stderr:
        pytest.skip("ThreadSanitizer does not know this kernel's address layout")
    assert (ran.returncode, ran.stdout) == (0, "ok\n"), ran.stderr


def busy(kernels: Kernels) -> np.ndarray:
    """A product large enough for every thread."""
    weight = kernels.pack("fp32", np.eye(640, dtype=np.float32))
    return kernels.linear(np.ones((40, 640), np.float32), weight)


def wait_for_workers(expected: dict[str, set[int]]) -> None:
    """Until this process's workers (by name) may use these processors. A worker settles when the system runs it."""
    while workers() != expected:
        time.sleep(0.001)


def workers() -> dict[str, set[int]]:
    found = {}
    for task in Path("/proc/self/task").iterdir():
        name = (task / "comm").read_text().strip()
        if name.startswith("glm4-"):
            found[name] = os.sched_getaffinity(int(task.name))
    return found


@linux
def test_workers_are_bound_and_the_caller_is_not() -> None:
    kernels = get_kernels("native")
    before, mine = kernels.num_threads(), os.sched_getaffinity(0)
    last = usable_processors()[-1]
    try:
        _native.set_num_threads(3, [[last], []])
        busy(kernels)
        wait_for_workers({"glm4-1": {last}, "glm4-2": mine})
        _native.set_num_threads(2, [[100_000, -1]])  # no such processor: not bound, and no error
        busy(kernels)
        wait_for_workers({"glm4-1": mine})
        assert os.sched_getaffinity(0) == mine
    finally:
        kernels.set_num_threads(before)


BOUND = """
import os, sys, time
from pathlib import Path
import numpy as np
from glm4.errors import KernelError
from glm4.kernels import get_kernels
try:
    kernels = get_kernels("native")
except KernelError as error:
    raise SystemExit(f"KernelError: {error}")
kernels.set_num_threads(len(os.sched_getaffinity(0)))
kernels.linear(np.ones((40, 640), np.float32), kernels.pack("fp32", np.eye(640, dtype=np.float32)))
def wait_for(size):  # until every worker may use that many processors; it settles when the system runs it
    while True:
        tasks = [t for t in Path("/proc/self/task").iterdir() if (t / "comm").read_text().startswith("glm4-")]
        sizes = [len(os.sched_getaffinity(int(t.name))) for t in tasks]
        if sizes == [size] * (len(os.sched_getaffinity(0)) - 1):
            return
        time.sleep(0.001)
wait_for(int(sys.argv[1]))
child = os.fork()
if child == 0:
    kernels.linear(np.ones((40, 640), np.float32), kernels.pack("fp32", np.eye(640, dtype=np.float32)))
    wait_for(len(os.sched_getaffinity(0)))  # a forked child shares the machine, so it binds nothing
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def bound(setting: str, size: int) -> str:
    """Errors of a process whose workers should be allowed `size` processors each; hangs while they are not."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BOUND, str(size)],
        env=os.environ | {"GLM4_PIN": setting},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return result.stderr


@linux
@pytest.mark.skipif(len(usable_processors()) < 2, reason="one processor")
def test_the_environment_switches_binding() -> None:
    assert bound("0", len(usable_processors())) == ""
    assert bound("1", 1) == ""
    assert "GLM4_PIN=yes" in bound("yes", 1)


def test_two_callers_with_different_thread_counts(native: Kernels) -> None:
    """As two models in one process would: the pool is resized between the calls of the other."""
    expected = busy(native)
    wrong: list[int] = []

    def repeat(threads: int) -> None:
        for _ in range(30):
            native.set_num_threads(threads)
            if not np.array_equal(busy(native), expected):
                wrong.append(threads)

    callers = [threading.Thread(target=repeat, args=(n,)) for n in (1, 2, 4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []

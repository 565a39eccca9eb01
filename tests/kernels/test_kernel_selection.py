"""Which kernels run: GLM4_KERNELS, GLM4_ISA, thread counts, Python threads and forked processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from glm4.errors import KernelError
from glm4.kernels import _native, get_kernels
from glm4.kernels.base import Kernels
from glm4.system.cpus import default_num_threads

REPORT = """
from glm4.errors import KernelError
from glm4.kernels import get_kernels
try:
    print(get_kernels().isa())
except KernelError as error:
    print("KernelError:", error)
"""


def report(**environment: str) -> str:
    """What a fresh process with these variables says about its kernels."""
    clean = {k: v for k, v in os.environ.items() if k not in ("GLM4_ISA", "GLM4_KERNELS")}
    result = subprocess.run(
        [sys.executable, "-c", REPORT], env=clean | environment, capture_output=True, text=True, check=True, timeout=60
    )
    return result.stdout.strip()


@pytest.mark.parametrize("isa", _native.isas())
def test_environment_forces_an_instruction_set(isa: str) -> None:
    assert report(GLM4_ISA=isa) == isa


def test_best_instruction_set_is_the_default() -> None:
    assert report() == _native.isas()[0]
    assert _native.isas()[-1] == "generic"


@pytest.mark.parametrize("isa", ["sse9", "AVX2", "neon" if "avx2" in _native.isas() else "avx2"])
def test_unusable_instruction_set_is_an_error(isa: str) -> None:
    text = report(GLM4_ISA=isa)
    assert text.startswith("KernelError:")
    assert all(usable in text for usable in [isa, *_native.isas()])


def test_environment_chooses_the_twin() -> None:
    assert report(GLM4_KERNELS="reference") == "numpy"
    assert report(GLM4_KERNELS="").startswith(_native.isas()[0])
    assert report(GLM4_KERNELS="cuda").startswith("KernelError:")


def test_names() -> None:
    assert get_kernels("reference").isa() == "numpy"
    assert get_kernels("native") is get_kernels("native")
    with pytest.raises(KernelError, match="tpu"):
        get_kernels("tpu")
    with pytest.raises(ValueError, match="sse9"):
        _native.set_isa("sse9")


def test_thread_count() -> None:
    kernels = get_kernels("native")
    before = kernels.num_threads()
    assert 1 <= default_num_threads() <= (os.cpu_count() or 1)
    try:
        for n in (1, 4, 2):
            kernels.set_num_threads(n)
            assert kernels.num_threads() == n
        for n in (0, -3, 100_000):
            with pytest.raises(ValueError):
                kernels.set_num_threads(n)
    finally:
        kernels.set_num_threads(before)


def work(kernels: Kernels) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    weight = kernels.pack("int4", rng.standard_normal((400, 640), dtype=np.float32))
    x = rng.standard_normal((20, 640), dtype=np.float32)
    return kernels.linear(x, weight), kernels.log_softmax(x)


def test_calls_from_several_python_threads(native: Kernels) -> None:
    expected = work(native)
    wrong: list[int] = []

    def repeat(number: int) -> None:
        for _ in range(20):
            if not all(np.array_equal(a, b) for a, b in zip(work(native), expected, strict=True)):
                wrong.append(number)

    threads = [threading.Thread(target=repeat, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


FORK = """
import os, sys
import numpy as np
from glm4.kernels import get_kernels
kernels = get_kernels("native")
kernels.set_num_threads(3)
weight = kernels.pack("int8", np.eye(512, dtype=np.float32))
x = np.ones((9, 512), np.float32)
kernels.linear(x, weight)
child = os.fork()
if child == 0:
    good = np.allclose(kernels.linear(x, weight), 1, rtol=1e-3) and kernels.num_threads() == 3
    os._exit(0 if good else 3)
kernels.linear(x, weight)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_kernels_work_in_a_forked_child() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, timeout=60)

"""The twin's sums: right, the same in every memory layout, and the same whatever core type NumPy's BLAS runs as."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from twin_digests import blas_core, twin_digests

import glm4
from glm4.kernels.base import Kernels
from glm4.kernels.ordered_sums import ordered_matmul, ordered_sum, ordered_total

CORES = ["Nehalem", "Haswell", "SkylakeX", "Zen"]  # OpenBLAS's; some share their matrix products


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 1000])
def test_a_sum(rng: np.random.Generator, count: int) -> None:
    terms = rng.standard_normal((count, 5))
    expected = [math.fsum(column) for column in terms.T]
    np.testing.assert_allclose(ordered_sum(terms.copy()), expected, rtol=0, atol=1e-12)


def test_the_order_of_a_sum() -> None:
    """Halves upon halves: 1 is lost beside 2^60 at once, and kept where the two large terms meet first."""
    assert ordered_sum(np.array([2.0**60, 1, -(2.0**60), 1])) == 2
    assert ordered_sum(np.array([2.0**60, -(2.0**60), 1, 1])) == 0
    assert ordered_sum(np.array([2.0**60, 1, -(2.0**60)])) == 1


def test_memory_layout_changes_no_total(rng: np.random.Generator) -> None:
    large = rng.standard_normal((70, 70), dtype=np.float32)
    view = large[5:37, 5:37]
    expected = ordered_total(view.copy())
    assert ordered_total(view) == ordered_total(np.asfortranarray(view)) == expected
    assert ordered_total(np.ascontiguousarray(view.T).T) == expected


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 17, 5, 40), (1, 33, 700, 900), (2, 0, 4, 4)], ids=str)
def test_matmul(rng: np.random.Generator, shape: tuple[int, int, int, int]) -> None:
    """Right, and the same bits row by row, stack by stack and from transposed memory; blocks end inside a shape."""
    stacks, rows, inner, columns = shape
    a = rng.standard_normal((stacks, rows, inner), dtype=np.float32)
    b = rng.standard_normal((stacks, inner, columns), dtype=np.float32)
    found = ordered_matmul(a, b)
    np.testing.assert_allclose(found, a.astype(np.float64) @ b.astype(np.float64), rtol=1e-7, atol=1e-6)
    np.testing.assert_array_equal(ordered_matmul(a, np.ascontiguousarray(b.swapaxes(1, 2)).swapaxes(1, 2)), found)
    for row in range(rows):
        np.testing.assert_array_equal(ordered_matmul(a[-1:, row : row + 1], b[-1:]), found[-1:, row : row + 1])


@pytest.mark.parametrize("width", [8192, 8193, 20_000])
def test_rows_longer_than_a_buffer_of_numpy(any_kernels: Kernels, rng: np.random.Generator, width: int) -> None:
    """NumPy adds up float32 in float64 by buffers of 8192 values; where one ends must not show in any row."""
    x = rng.standard_normal((7, width), dtype=np.float32)
    whole, norm = any_kernels.log_softmax(x), any_kernels.rms_norm(x, x[0], 1e-6)
    for row in range(7):
        np.testing.assert_array_equal(any_kernels.log_softmax(x[row : row + 1]), whole[row : row + 1])
        np.testing.assert_array_equal(any_kernels.rms_norm(x[row : row + 1], x[0], 1e-6), norm[row : row + 1])


@cache
def under(core: str) -> dict[str, Any]:
    """What `twin_digests.py` prints in a process whose OpenBLAS was told its core type; skips where that cannot be."""
    if not blas_core():
        pytest.skip("NumPy's BLAS is not an OpenBLAS that can be asked for its core type")
    source = str(Path(glm4.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "twin_digests.py")],
        env={**os.environ, "OPENBLAS_CORETYPE": core, "PYTHONPATH": source}, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    if result.returncode == -signal.SIGILL:
        pytest.skip(f"this processor cannot run OpenBLAS as {core}")
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    if report["core"] != core:
        pytest.skip(f"this OpenBLAS runs as {report['core']} when told {core}")
    return report


@pytest.mark.parametrize("core", CORES)
def test_the_twin_is_the_same_beside_every_blas(core: str) -> None:
    assert under(core)["twin"] == twin_digests()


def test_that_could_fail() -> None:
    """Two of the core types really add up in another order."""
    assert under("Haswell")["blas"] != under("SkylakeX")["blas"]

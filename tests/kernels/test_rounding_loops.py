"""The inner loops of error-compensated rounding: byte-identical to their twins, on every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from glm4.kernels.base import Kernels

ROWS = [*range(1, 10), 31, 32, 33, 127, 128, 129, 1000]
COLUMNS = [1, 2, 31, 32]


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("one_grid", [True, False], ids=["one grid", "a grid for each column"])
def test_round_columns(
    native: Kernels, reference: Kernels, rng: np.random.Generator, columns: int, one_grid: bool
) -> None:
    for rows in ROWS:
        target, source = rng.standard_normal((2, columns, rows), dtype=np.float32)
        step = np.abs(rng.standard_normal((1 if one_grid else columns, rows), dtype=np.float32)) / np.float32(4)
        step[0, 0] = 0  # a row of zeros
        centre = rng.standard_normal((1, rows), dtype=np.float32)
        upper = np.triu(rng.standard_normal((columns, columns), dtype=np.float32), 1)
        quants, error = native.round_columns(target, source, upper, step, centre, -8, 7)
        expected_quants, expected_error = reference.round_columns(target, source, upper, step, centre, -8, 7)
        np.testing.assert_array_equal(quants, expected_quants)
        np.testing.assert_array_equal(error, expected_error)
        if rows > 100 and columns > 2:
            assert {-8, 7} <= set(np.unique(quants).tolist())


@pytest.mark.parametrize("columns", COLUMNS)
def test_search_int4(native: Kernels, reference: Kernels, rng: np.random.Generator, columns: int) -> None:
    for rows in ROWS:
        target = rng.standard_normal((columns, rows), dtype=np.float32)
        target[:, 0] = 0.25  # no range
        unit = np.full(rows, 4e-3, np.float32)
        unit[-1] = 0  # a row of zeros has no unit
        weights = rng.uniform(0.1, 3, columns).astype(np.float32)
        found = native.search_int4(target, unit, weights)
        for actual, expected in zip(found, reference.search_int4(target, unit, weights), strict=True):
            np.testing.assert_array_equal(actual, expected)


def test_the_search_is_better_than_rounding_over_the_range(native: Kernels, rng: np.random.Generator) -> None:
    target = rng.standard_normal((32, 500), dtype=np.float32)
    weights = rng.uniform(0.1, 3, 32).astype(np.float32)
    unit = np.full(500, 2e-3, np.float32)
    scale, offset = native.search_int4(target, unit, weights)
    plain = (target.max(axis=0) - target.min(axis=0)) / 15
    middle = (target.max(axis=0) + target.min(axis=0)) / 2 + plain / 2

    def error(step: np.ndarray, centre: np.ndarray) -> float:
        wrong = target - (step * np.clip(np.rint((target - centre) / step), -8, 7) + centre)
        return float((wrong**2 * weights[:, None]).sum())

    assert error(unit * scale, unit * 8 * offset) < 0.9 * error(plain, middle)


def rounded_group(rng: np.random.Generator, columns: int, rows: int) -> dict[str, np.ndarray]:
    """A group as `search_int4` and `round_columns` leave it, beside other columns whose errors reach into it."""
    source = rng.standard_normal((columns, rows), dtype=np.float32)
    x = rng.standard_normal((40, columns), dtype=np.float32) + rng.standard_normal((40, 1), dtype=np.float32)
    hessian = x.T @ x + np.eye(columns, dtype=np.float32)
    hessian = (hessian + hessian.T) / 2
    unit, scale = np.full(rows, 2e-3, np.float32), np.full(rows, 160, np.float32)
    unit[-1] = 0
    scale[0], scale[1:2] = 0, 20  # no steps, and values far beyond the range
    offset = rng.integers(-9, 10, rows).astype(np.float32)
    quants = np.clip(np.rint(source / np.float32(0.32)), -8, 7).astype(np.int8)
    gradient = hessian @ (source - value(unit, scale, offset, quants)) + 5 * rng.standard_normal(source.shape)
    names = ("gradient", "hessian", "source", "unit", "scale", "offset", "quants")
    return dict(zip(names, (gradient.astype(np.float32), hessian, source, unit, scale, offset, quants), strict=True))


def value(unit: np.ndarray, scale: np.ndarray, offset: np.ndarray, quants: np.ndarray) -> np.ndarray:
    return np.asarray(unit * scale * quants + unit * (8 * offset), np.float32)


@pytest.mark.parametrize("columns", COLUMNS)
def test_refine_int4(native: Kernels, reference: Kernels, rng: np.random.Generator, columns: int) -> None:
    for rows in ROWS:
        group = rounded_group(rng, columns, rows)
        before = {name: array.copy() for name, array in group.items()}
        found = native.refine_int4(**group)
        for actual, expected in zip(found, reference.refine_int4(**group), strict=True):
            np.testing.assert_array_equal(actual, expected)
        for name, array in group.items():
            np.testing.assert_array_equal(array, before[name])
        scale, offset, quants, error = found
        np.testing.assert_array_equal(error, group["source"] - value(group["unit"], scale, offset, quants))


def test_refining_lowers_the_loss_and_finds_the_best_grid(native: Kernels, rng: np.random.Generator) -> None:
    """In float64: no row gets worse; and where the quants stay, scale and offset are those of least squares."""
    group = rounded_group(rng, 32, 200)
    hessian, unit = group["hessian"].astype(np.float64), group["unit"]
    old = group["source"] - value(unit, group["scale"], group["offset"], group["quants"])
    outside = group["gradient"] - hessian @ old  # what the errors of other columns add

    def loss(error: np.ndarray) -> np.ndarray:
        return np.einsum("ir,ij,jr->r", error, hessian, error) + 2 * (outside * error).sum(axis=0)

    scale, offset, quants, error = native.refine_int4(**group)
    least = np.abs(loss(old)) * 1e-4 + 1e-3
    assert (loss(error) <= loss(old) + least).all()
    assert (loss(error) < loss(old) - least).mean() > 0.9
    for row in range(2, 199):
        q = quants[:, row].astype(np.float64)
        basis = np.stack([q, np.ones(32)], axis=1)
        best = np.linalg.solve(
            basis.T @ hessian @ basis, basis.T @ (hessian @ group["source"][:, row] + outside[:, row])
        )
        wanted = np.clip(best / (float(unit[row]) * np.array([1, 8])), (0, -127), (255, 127))
        if (np.abs(wanted) < 100).all() and wanted[0] > 0:
            assert abs(scale[row] - wanted[0]) < 0.51
            assert abs(offset[row] - wanted[1]) < 0.51


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient": np.zeros((33, 5), np.float32)}, "32 columns"),
        ({"hessian": np.eye(3, dtype=np.float32)}, "hessian"),
        ({"source": np.zeros((4, 6), np.float32)}, "source"),
        ({"quants": np.zeros((3, 5), np.int8)}, "quants"),
        ({"scale": np.zeros(6, np.float32)}, "scale"),
        ({"offset": np.zeros(6, np.float32)}, "offset"),
        ({"unit": np.zeros(6, np.float32)}, "unit"),
    ],
)
def test_wrong_arguments_of_refine_int4(
    native: Kernels, reference: Kernels, changes: dict[str, Any], message: str
) -> None:
    arguments = rounded_group(np.random.default_rng(1), 4, 5) | changes
    for kernels in (native, reference):
        with pytest.raises(ValueError, match=message):
            kernels.refine_int4(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": np.zeros((3, 5), np.float32)}, "source"),
        ({"upper": np.zeros((4, 3), np.float32)}, "upper"),
        ({"step": np.zeros((2, 5), np.float32)}, "step"),
        ({"center": np.zeros((1, 4), np.float32)}, "centre"),
        ({"highest": 128}, "8-bit"),
        ({"target": np.zeros((33, 5), np.float32)}, "32 columns"),
    ],
)
def test_wrong_arguments_of_round_columns(
    native: Kernels, reference: Kernels, changes: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {
        "target": np.zeros((4, 5), np.float32),
        "source": np.zeros((4, 5), np.float32),
        "upper": np.zeros((4, 4), np.float32),
        "step": np.zeros((4, 5), np.float32),
        "center": np.zeros((1, 5), np.float32),
        "lowest": -8,
        "highest": 7,
    } | changes
    for kernels in (native, reference):
        with pytest.raises(ValueError, match=message):
            kernels.round_columns(**arguments)


@pytest.mark.parametrize(
    ("columns", "rows", "weights", "message"),
    [(33, 4, 33, "32 columns"), (4, 5, 4, "unit|rows"), (4, 4, 3, "weights")],
)
def test_wrong_arguments_of_search_int4(
    native: Kernels, reference: Kernels, columns: int, rows: int, weights: int, message: str
) -> None:
    for kernels in (native, reference):
        with pytest.raises(ValueError, match=message):
            kernels.search_int4(
                np.zeros((columns, rows), np.float32), np.ones(4, np.float32), np.ones(weights, np.float32)
            )

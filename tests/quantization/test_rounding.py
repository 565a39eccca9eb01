"""Error-compensated rounding against a column-by-column oracle in float64, and packing from integers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from glm4.errors import TensorError
from glm4.kernels import get_kernels
from glm4.kernels.formats import PackedWeight
from glm4.kernels.reference import REFERENCE
from glm4.kernels.reference_packing import f16_round, int4_cells, int8_cells
from glm4.quantization import int4_grid, rounding
from glm4.quantization.cholesky import factorize_in_place
from glm4.quantization.int4_grid import pack_integers
from glm4.quantization.int8_grid import pack_int8_integers
from glm4.quantization.rounding import damping_for, factorize, round_compensated

Float = NDArray[np.float32]


def inputs(rng: np.random.Generator, tokens: int, cols: int) -> Float:
    """Correlated, with a few loud channels, as the inputs of real layers are."""
    mixing = rng.standard_normal((cols, cols)) / np.sqrt(cols) + np.eye(cols)
    loud = np.where(rng.random(cols) < 0.1, 8.0, 1.0)
    return np.asarray((rng.standard_normal((tokens, cols)) @ mixing) * loud, np.float32)


def by_matrix(weight: PackedWeight) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Float]:
    """quants [N, K], scale and offset [N, groups], unit [N] of an int4 matrix."""
    cells = int4_cells(weight)
    quants = cells.quants.swapaxes(1, 2).reshape(-1, cells.quants.shape[1] * 32)[: weight.rows, : weight.cols]
    scale, offset = (x.swapaxes(1, 2).reshape(-1, x.shape[1])[: weight.rows] for x in (cells.scale, cells.offset))
    return quants.astype(int), scale.astype(int), offset.astype(int), cells.unit.reshape(-1)[: weight.rows]


def int8_by_matrix(weight: PackedWeight) -> tuple[NDArray[np.int64], Float]:
    """quants [N, K] and scales [N, spans] of an int8 matrix."""
    cells, scales = int8_cells(weight)
    quants = cells.swapaxes(1, 2).reshape(-1, cells.shape[1] * 32)[: weight.rows, : weight.cols]
    return quants.astype(int), scales.swapaxes(1, 2).reshape(-1, scales.shape[1])[: weight.rows]


def on_grid(weight: PackedWeight) -> tuple[NDArray[np.int64], Float, Float, int, int]:
    """quants, steps and centres [N, K], lowest and highest quant of a matrix."""
    if weight.format == "int8":
        values, scales = int8_by_matrix(weight)
        steps = scales.astype(float).repeat(128, axis=1)[:, : weight.cols]
        return values, steps, np.zeros_like(steps), -127, 127
    quants, scale, offset, unit = by_matrix(weight)
    steps, centres = (unit[:, None] * x.astype(float).repeat(32, axis=1) for x in (scale, 8 * offset))
    return quants, steps[:, : weight.cols], centres[:, : weight.cols], -8, 7


def output_error(weight: Float, packed: PackedWeight, hessian: Float) -> float:
    wrong = (REFERENCE.unpack(packed) - weight).astype(np.float64)
    return float(np.einsum("ij,jk,ik->", wrong, hessian.astype(np.float64), wrong))


@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("cols", [8, 32, 96, 150])
def test_factors_multiply_to_the_damped_matrix(format: str, cols: int) -> None:
    x = inputs(np.random.default_rng(cols), 3 * cols, cols)
    hessian = x.T @ x
    factors = factorize(hessian, format, 0.02)
    upper = factors.upper.astype(np.float64)
    order = np.concatenate(factors.batches)
    np.testing.assert_array_equal(np.sort(order), np.arange(cols))
    damped = (hessian + 0.02 * np.diagonal(hessian).mean() * np.eye(cols))[np.ix_(order, order)]
    np.testing.assert_array_equal(np.tril(upper, -1), 0)
    np.testing.assert_array_equal(np.diagonal(upper), 1)
    assert (factors.diagonal > 0).all()
    np.testing.assert_allclose(upper * factors.diagonal @ upper.T, damped, rtol=0, atol=1e-4 * hessian.max())


@pytest.mark.parametrize("size", [1, 15, 16, 17, 50])
def test_cholesky_in_blocks(size: int) -> None:
    x = inputs(np.random.default_rng(size), 3 * size, size).astype(np.float64)
    matrix = x.T @ x
    factor = matrix.copy()
    factor[np.triu_indices(size, 1)] = np.nan  # never read
    factorize_in_place(factor, block=16)
    np.testing.assert_allclose(factor, np.linalg.cholesky(matrix), rtol=0, atol=1e-12 * matrix.max())
    with pytest.raises(np.linalg.LinAlgError):
        factorize_in_place(-matrix, block=16)


def test_factors_of_poor_statistics() -> None:
    """Fewer inputs than columns, none at all, and inputs that are no numbers."""
    x = inputs(np.random.default_rng(0), 5, 64)
    assert np.isfinite(factorize(x.T @ x, "int4", 0.1).upper).all()
    np.testing.assert_array_equal(factorize(np.zeros((32, 32), np.float32), "int4", 0.1).upper, np.eye(32))
    with pytest.raises(ValueError, match="not finite"):
        factorize(np.full((4, 4), np.nan, np.float32), "int4", 0.1)


@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize(("rows", "cols"), [(1, 32), (33, 96), (64, 150), (40, 20), (3, 300)])
def test_each_value_is_the_nearest_to_its_compensated_target(
    format: str, rows: int, cols: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An oracle in float64, one column after the other, under the scales that were chosen."""
    monkeypatch.setattr(int4_grid, "SWEEPS", 0)
    rng = np.random.default_rng(rows)
    w = rng.standard_normal((rows, cols), dtype=np.float32)
    x = inputs(rng, 4 * cols, cols)
    factors = factorize(x.T @ x, format, 0.1)
    packed = round_compensated(format, w, factors, get_kernels())
    quants, steps, centres, lowest, highest = on_grid(packed)
    error, order = np.zeros((rows, cols)), np.concatenate(factors.batches)
    for i, k in enumerate(order):
        target = w[:, k] + error[:, order[:i]] @ factors.upper[:i, i]
        exact = np.clip((target - centres[:, k]) / steps[:, k], lowest, highest)
        assert np.abs(exact - quants[:, k]).max() <= 0.5 + 1e-3
        error[:, k] = w[:, k] - (steps[:, k] * quants[:, k] + centres[:, k])
    np.testing.assert_allclose(w - REFERENCE.unpack(packed), error, rtol=0, atol=1e-5)


@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("seed", range(3))
def test_outputs_are_closer_than_with_plain_rounding(format: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((128, 192), dtype=np.float32)
    x = inputs(rng, 2000, 192)
    hessian = x.T @ x
    plain = output_error(w, get_kernels().pack(format, w), hessian)
    rounded = round_compensated(format, w, factorize(hessian, format, 0.1), get_kernels())
    assert output_error(w, rounded, hessian) < 0.8 * plain


@pytest.mark.parametrize("cols", [20, 96, 150])
def test_each_sweep_lowers_the_error_until_nothing_moves(cols: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And then, by an oracle in float64, no single quant can be changed for the better."""
    rng = np.random.default_rng(cols)
    w, x = rng.standard_normal((40, cols), dtype=np.float32), inputs(rng, 4 * cols, cols)
    factors = factorize(x.T @ x, "int4", 0.1)
    damped = (x.T @ x).astype(np.float64) + factors.damping * np.eye(cols)
    errors = []
    for sweeps in (0, 1, 2, 30):
        monkeypatch.setattr(int4_grid, "SWEEPS", sweeps)
        packed = round_compensated("int4", w, factors, get_kernels())
        errors.append(output_error(w, packed, damped))
    assert errors[1] < 0.95 * errors[0]
    assert errors[3] < errors[2] < errors[1]
    quants, steps, _, lowest, highest = on_grid(packed)
    gradient = (w - REFERENCE.unpack(packed)).astype(np.float64) @ damped
    best = np.clip(quants + gradient / np.diagonal(damped) / steps, lowest, highest)
    assert (np.abs(best - quants) < 0.5 + 1e-3).mean() > 0.999


def test_uncorrelated_inputs_leave_plain_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """With H = I nothing is compensated; without headroom the units are those of plain rounding too."""
    monkeypatch.setattr(int4_grid, "HEADROOM", np.float32(1))
    monkeypatch.setattr(int4_grid, "SWEEPS", 0)
    w = np.random.default_rng(5).standard_normal((64, 128), dtype=np.float32)
    identity = np.eye(128, dtype=np.float32)
    packed, plain = round_compensated("int4", w, factorize(identity, "int4", 0.1), REFERENCE), REFERENCE.pack("int4", w)
    (quants, scale, offset, unit), other = by_matrix(packed), by_matrix(plain)
    np.testing.assert_array_equal(unit, other[3])
    same = (scale == other[1]) & (offset == other[2])
    assert same.mean() > 0.6  # here candidates are compared after rounding to integers: others may win
    np.testing.assert_array_equal(quants[same.repeat(32, axis=1)], other[0][same.repeat(32, axis=1)])
    assert output_error(w, packed, identity) <= 1.005 * output_error(w, plain, identity)


def test_uncorrelated_inputs_leave_plain_int8() -> None:
    """Bytes and all."""
    w = np.random.default_rng(5).standard_normal((40, 300), dtype=np.float32)
    packed = round_compensated("int8", w, factorize(np.eye(300, dtype=np.float32), "int8", 0.1), get_kernels())
    np.testing.assert_array_equal(packed.data, get_kernels().pack("int8", w).data)


def test_int8_rounds_loud_columns_first() -> None:
    """Which pays: quiet columns make up for the errors of loud ones."""
    rng = np.random.default_rng(9)
    w, x = rng.standard_normal((64, 200), dtype=np.float32), inputs(rng, 2000, 200)
    hessian = x.T @ x
    factors = factorize(hessian, "int8", 0.1)
    loudness = np.diagonal(hessian)[np.concatenate(factors.batches)]
    assert (np.diff(loudness) <= 0).all()
    in_order = factorize(hessian, "int4", 0.1)
    errors = [output_error(w, round_compensated("int8", w, f, get_kernels()), hessian) for f in (factors, in_order)]
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_slabs_of_rows_give_what_the_whole_gives(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    w, x = rng.standard_normal((100, 64), dtype=np.float32), inputs(rng, 300, 64)
    factors = factorize(x.T @ x, format, 0.1)
    whole = round_compensated(format, w, factors, get_kernels())
    monkeypatch.setattr(rounding, "_SLAB_NBYTES", 4 * 64 * 32)
    slabs = round_compensated(format, w, factors, get_kernels())
    # Not bit for bit: a matrix product of other shape sums up in another order, and a tie may fall the other way.
    assert (slabs.data == whole.data).mean() > 0.9
    errors = [output_error(w, packed, x.T @ x) for packed in (slabs, whole)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


@pytest.mark.parametrize(("rows", "cols"), [(32, 32), (5, 70), (65, 128)])
def test_packing_integers(rows: int, cols: int) -> None:
    """Every kernel set reads back exactly the values that were packed."""
    rng = np.random.default_rng(cols)
    groups = -(-cols // 32)
    quants = rng.integers(-8, 8, (rows, cols)).astype(np.int8)
    scale = rng.integers(0, 256, (rows, groups)).astype(np.int32)
    offset = rng.integers(-127, 128, (rows, groups)).astype(np.int32)
    unit = (rng.random(rows) + 0.1).astype(np.float32)
    packed = pack_integers(quants, scale, offset, unit)
    expected = unit[:, None] * (scale.repeat(32, 1)[:, :cols] * quants.astype(int) + 8 * offset.repeat(32, 1)[:, :cols])
    for kernels in (REFERENCE, get_kernels()):
        np.testing.assert_allclose(kernels.unpack(packed), expected, rtol=1e-6)
    again = by_matrix(packed)
    for found, wanted in zip(again, (quants, scale, offset, unit), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("rows", "cols"), [(32, 32), (5, 70), (65, 128), (40, 300)])
def test_packing_int8_integers(rows: int, cols: int) -> None:
    """Every kernel set reads back exactly the values that were packed; so does the twin."""
    rng = np.random.default_rng(cols)
    quants = rng.integers(-127, 128, (rows, cols)).astype(np.int8)
    scales = f16_round(rng.random((rows, -(-cols // 128)), dtype=np.float32) + np.float32(0.1))
    packed = pack_int8_integers(quants, scales)
    for kernels in (REFERENCE, get_kernels()):
        np.testing.assert_array_equal(kernels.unpack(packed), quants * scales.repeat(128, axis=1)[:, :cols])
    found, found_scales = int8_by_matrix(packed)
    np.testing.assert_array_equal(found, quants)
    np.testing.assert_array_equal(found_scales, scales)


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_rows_of_zeros_stay_zero_and_bad_weights_are_refused(format: str) -> None:
    x = inputs(np.random.default_rng(8), 200, 64)
    factors = factorize(x.T @ x, format, 0.1)
    w = np.zeros((3, 64), np.float32)
    w[1] = 1.0
    restored = REFERENCE.unpack(round_compensated(format, w, factors, get_kernels()))
    np.testing.assert_array_equal(restored[[0, 2]], 0)
    np.testing.assert_allclose(restored[1], 1.0, rtol=0.02)
    w[2, 5] = np.inf
    with pytest.raises(TensorError, match="row 2"):
        round_compensated(format, w, factors, get_kernels())


def test_little_text_is_damped_more() -> None:
    """Errors on other text, with few tokens for each column, some much louder than others."""
    rng, kernels = np.random.default_rng(8), get_kernels()
    cols, tokens = 256, 384
    mixing = np.eye(cols) + rng.standard_normal((cols, cols)) / np.sqrt(cols)
    loudness = np.exp(rng.standard_normal((tokens + 4096, 1)))
    x = np.asarray(loudness * (rng.standard_normal((len(loudness), cols)) @ mixing), np.float32)
    hessian, other = x[:tokens].T @ x[:tokens], x[tokens:].T @ x[tokens:]
    w = rng.standard_normal((64, cols), dtype=np.float32)

    def error(damping: float) -> float:
        return output_error(w, round_compensated("int4", w, factorize(hessian, "int4", damping), kernels), other)

    damping = damping_for(tokens, cols)
    assert damping > 2 > 1 > damping_for(16 * tokens, cols)
    assert error(damping) < 0.95 * output_error(w, kernels.pack("int4", w), other)
    assert error(damping) < 0.9 * error(0.1)

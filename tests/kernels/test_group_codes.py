"""Packing 4-bit codes that are there already: the codes stay, and steps and centres are near."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from glm4.errors import TensorError
from glm4.kernels import get_kernels
from glm4.kernels.group_codes import GroupCodes, concatenated, pack_codes
from glm4.kernels.reference_packing import int4_cells

SHAPES = [(1, 32), (31, 64), (32, 96), (33, 160), (70, 288), (64, 1536)]


def drawn(rows: int, cols: int, seed: int = 0, sign: float = 1.0) -> GroupCodes:
    """Codes as a quantizer makes them: bell-shaped, steps within a factor of four, bases about half the range below 0.

    Args:
        sign: of the steps; 0 draws it for each group.
    """
    rng = np.random.default_rng(seed)
    codes = np.clip(np.rint(rng.normal(7.5, 3.3, (rows, cols))), 0, 15).astype(np.uint8)
    step = rng.uniform(0.01, 0.04, (rows, cols // 32)).astype(np.float32)
    signs = rng.choice([-1.0, 1.0], step.shape) if sign == 0 else np.full(step.shape, sign)
    base = -step * signs * rng.uniform(6.5, 8.5, step.shape)
    return GroupCodes(codes, (step * signs).astype(np.float32), base.astype(np.float32))


def kept_codes(matrix: GroupCodes) -> NDArray[np.int8]:
    """The values of int4 that stand for the codes."""
    flip = (matrix.step < 0).repeat(32, axis=1)
    return np.where(flip, 15 - matrix.codes, matrix.codes).astype(np.int8) - np.int8(8)


def unpacked_codes(matrix: GroupCodes) -> NDArray[np.int8]:
    rows, cols = matrix.codes.shape
    quants = int4_cells(pack_codes(matrix)).quants
    return np.ascontiguousarray(quants.swapaxes(1, 2)).reshape(-1, cols)[:rows]


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_codes_are_kept(rows: int, cols: int, sign: float) -> None:
    matrix = drawn(rows, cols, sign=sign)
    np.testing.assert_array_equal(unpacked_codes(matrix), kept_codes(matrix))


@pytest.mark.parametrize("kernel_set", ["native", "reference"])
@pytest.mark.parametrize("sign", [1.0, 0.0])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_weights_are_near(rows: int, cols: int, sign: float, kernel_set: str) -> None:
    """Half a unit of the scale times a value of at most 8, and half of the offset's 8 units."""
    matrix = drawn(rows, cols, sign=sign)
    packed = pack_codes(matrix)
    assert (packed.format, packed.rows, packed.cols) == ("int4", rows, cols)
    values = matrix.values()
    error = np.abs(get_kernels(kernel_set).unpack(packed) - values)
    unit = int4_cells(packed).unit.reshape(-1)[:rows]
    assert (error <= (4 + 4) * 1.001 * unit[:, None]).all()
    # Far below the 7 % that rounding to four bits costs: a hundred times in energy.
    assert np.sqrt(np.square(error).sum() / np.square(values).sum()) < 0.007
    np.testing.assert_array_equal(int4_cells(packed).unit.reshape(-1)[rows:], 0)


def test_rounding_the_weights_again_would_lose_more() -> None:
    matrix, kernels = drawn(64, 1536), get_kernels()
    values = matrix.values()
    kept, again = (
        np.square(kernels.unpack(w) - values).sum() for w in (pack_codes(matrix), kernels.pack("int4", values))
    )
    assert kept < again / 10


def test_rows_do_not_influence_each_other() -> None:
    matrix = drawn(96, 96)
    block = len(pack_codes(matrix).data) // 3
    for start in (0, 32, 64):
        part = pack_codes(matrix.rows(slice(start, start + 32)))
        np.testing.assert_array_equal(part.data, pack_codes(matrix).data[start // 32 * block :][:block])


def test_rows_in_another_order_and_joined() -> None:
    matrix = drawn(6, 64)
    order = np.array([3, 1, 5])
    np.testing.assert_array_equal(matrix.rows(order).values(), matrix.values()[order])
    joined = concatenated([matrix.rows(slice(0, 2)), matrix.rows(slice(2, 6))])
    np.testing.assert_array_equal(joined.values(), matrix.values())


@pytest.mark.parametrize(
    ("step", "base", "weight"),
    [(0.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.0, -0.5, -0.5), (2.0**-24, 0.0, 15 * 2.0**-24), (65504.0, -8 * 65504.0, 0.0)],
)
def test_flat_and_extreme_groups(step: float, base: float, weight: float) -> None:
    """Groups of one value, all zeros included, and the ends of float16."""
    codes = np.full((3, 32), 15 if base == 0 else 8, np.uint8)
    one = np.ones((3, 1), np.float32)
    values = get_kernels().unpack(pack_codes(GroupCodes(codes, step * one, base * one)))
    np.testing.assert_allclose(values, weight, rtol=0.01, atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("where", ["step", "base"])
def test_what_is_no_weight_is_refused(bad: float, where: str) -> None:
    matrix = drawn(40, 64)
    getattr(matrix, where)[37, 1] = bad
    with pytest.raises(TensorError, match="row 37 of the weight holds a value that is not finite or exceeds"):
        pack_codes(matrix)

"""4-bit codes from a file, packed as int4 without rounding any weight again.

A group of 32 columns with codes 0..15, a step and a base has the same form as int4 (see `kernels.formats`):

    step * code + base  =  unit * (scale * value + 8 * offset),   value = code - 8

so the codes are copied unchanged, and only step and center (the value of code 8) of each group become integers times
their row's unit. The scale is off by at most half a unit, with the row's largest scale at 255 units, and the offset by
at most four units. On the starters' Q4_1 and Q4_K tensors that is a relative error of 0.4 to 0.9 % of the weights' norm
(int8: 0.7 %), whereas rounding Q4_K weights again costs 2.3 %. Searching 32 units per row for the least error would
reduce 0.46 % to 0.42 %, which is not worth the time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glm4.errors import TensorError
from glm4.kernels.base import F32
from glm4.kernels.formats import (
    COL_GROUP,
    INT4_OFFSET_UNIT,
    ROW_BLOCK,
    SPAN_CELLS,
    PackedWeight,
    empty_packed,
    unpackable_row_message,
    weight_format,
)
from glm4.kernels.reference_packing import INT4_MIN_UNIT, reciprocal

_MAX_SCALE, _MAX_OFFSET = np.float32(255), np.float32(127)
_MIDDLE = 8  # the code whose value is 0


@dataclass(frozen=True)
class GroupCodes:
    """A matrix [N, K] as 4-bit codes: weight = step * code + base.

    Attributes:
        codes: uint8 [N, K] in 0..15, C-contiguous; K is a multiple of 32.
        step, base: float32 [N, K / 32], of each group of 32 columns; a step may be negative.
    """

    codes: NDArray[np.uint8]
    step: F32
    base: F32

    def rows(self, index: slice | NDArray[np.int64]) -> GroupCodes:
        """Some rows, in the given order."""
        return GroupCodes(np.ascontiguousarray(self.codes[index]), self.step[index], self.base[index])

    def scaled(self, factors: F32) -> GroupCodes:
        """The matrix with its rows multiplied by `factors` [N]."""
        return GroupCodes(self.codes, self.step * factors[:, None], self.base * factors[:, None])

    def values(self) -> F32:
        """The weights, float32 [N, K]."""
        groups = self.codes.reshape(*self.step.shape, COL_GROUP).astype(np.float32)
        groups *= self.step[..., None]
        groups += self.base[..., None]
        return groups.reshape(self.codes.shape)


def concatenated(parts: list[GroupCodes]) -> GroupCodes:
    """The rows of all parts, one after another."""
    if len(parts) == 1:
        return parts[0]
    return GroupCodes(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("codes", "step", "base")))


def pack_codes(matrix: GroupCodes) -> PackedWeight:
    """The int4 matrix with exactly these codes (15 - code where a step is negative).

    Raises:
        TensorError: a step or base is not finite or too large.
    """
    rows, cols = matrix.codes.shape
    step, center, flip = _oriented(matrix)
    unit = np.maximum(step.max(axis=1) / _MAX_SCALE, np.abs(center).max(axis=1) / (_MAX_OFFSET * INT4_OFFSET_UNIT))
    unit[unit <= INT4_MIN_UNIT] = 0
    inverse = reciprocal(unit)[:, None]
    scale = np.rint(np.minimum(step * inverse, _MAX_SCALE)).astype(np.uint8)
    offset = np.rint(np.clip(center * inverse * np.float32(1 / INT4_OFFSET_UNIT), -_MAX_OFFSET, _MAX_OFFSET))
    weight = empty_packed("int4", rows, cols)
    blocks, groups = -(-rows // ROW_BLOCK), cols // COL_GROUP
    data = weight.data.reshape(blocks, -1)
    tail = weight_format("int4").block_tail_nbytes
    cells = data[:, :-tail].reshape(blocks, groups, -1)
    codes = matrix.codes.reshape(rows, groups, COL_GROUP)
    if flip.any():
        codes = codes ^ (flip * np.uint8(15))[..., None]  # 15 - code
    _write_nibbles(codes, cells)
    pairs = np.stack([scale, (offset + np.float32(128)).astype(np.uint8)], axis=2)
    pairs = _padded(pairs, blocks, np.uint8(0)).reshape(blocks, ROW_BLOCK, groups, 2)
    cells[:, :, -2 * ROW_BLOCK :] = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(blocks, groups, -1)
    data[:, -tail:] = _padded(unit, blocks, np.float32(0)).reshape(blocks, ROW_BLOCK).view(np.uint8)
    return weight


def unpack_codes(weight: PackedWeight) -> GroupCodes:
    """The codes of an int4 matrix whose columns are a multiple of 32."""
    _, cells = _int4_cells(weight)
    blocks, groups, _ = cells.shape
    octets = np.ascontiguousarray(cells[:, :, : -2 * ROW_BLOCK]).view(np.uint32).reshape(blocks, groups, -1, ROW_BLOCK)
    words = np.stack([octets & 0x0F0F0F0F, octets >> 4 & 0x0F0F0F0F], axis=-1)
    codes = np.ascontiguousarray(words.transpose(0, 3, 1, 2, 4)).view(np.uint8).reshape(blocks * ROW_BLOCK, -1)
    return GroupCodes(codes[: weight.rows], *unpack_scales(weight))


def unpack_scales(weight: PackedWeight) -> tuple[F32, F32]:
    """(step, base) of each group of such a matrix, rounded to float32; [N, K / 32]."""
    data, cells = _int4_cells(weight)
    blocks, groups, _ = cells.shape
    pairs = cells[:, :, -2 * ROW_BLOCK :].reshape(blocks, groups, ROW_BLOCK, 2).swapaxes(1, 2).astype(np.float32)
    tail = weight_format("int4").block_tail_nbytes
    unit = np.ascontiguousarray(data[:, -tail:]).view(np.float32)[..., None]
    scale, offset = pairs[..., 0], pairs[..., 1] - np.float32(128)
    step, base = unit * scale, unit * (INT4_OFFSET_UNIT * offset - _MIDDLE * scale)
    return step.reshape(-1, groups)[: weight.rows], base.reshape(-1, groups)[: weight.rows]


def _int4_cells(weight: PackedWeight) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The row blocks of an int4 matrix, [row blocks, bytes], and its cells, [row blocks, groups, cell bytes]."""
    data = weight.data.reshape(-(-weight.rows // ROW_BLOCK), -1)
    cells = data[:, : -weight_format("int4").block_tail_nbytes]
    return data, cells.reshape(len(data), weight.cols // COL_GROUP, -1)


def unpack_int8(weight: PackedWeight) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """The values [N, K] of an int8 matrix whose columns are a multiple of 32, and their scales [N, K / 32]."""
    format = weight_format("int8")
    blocks, groups = -(-weight.rows // ROW_BLOCK), weight.cols // COL_GROUP
    data = weight.data.reshape(blocks, -1)
    quants = np.empty((blocks, ROW_BLOCK, groups, COL_GROUP), np.int8)
    scales = np.empty((blocks, ROW_BLOCK, groups), np.float16)
    at = 0
    for group in range(0, groups, SPAN_CELLS):
        count = min(SPAN_CELLS, groups - group)
        cells = data[:, at : at + count * format.cell_nbytes].reshape(blocks, count, -1, ROW_BLOCK, 4) - np.uint8(128)
        values = cells.view(np.int8).transpose(0, 3, 1, 2, 4).reshape(blocks, ROW_BLOCK, count, COL_GROUP)
        quants[:, :, group : group + count] = values
        at += count * format.cell_nbytes
        tail = np.ascontiguousarray(data[:, at : at + format.span_tail_nbytes]).view(np.float16)
        scales[:, :, group : group + count] = tail[..., None]
        at += format.span_tail_nbytes
    rows = blocks * ROW_BLOCK
    return quants.reshape(rows, -1)[: weight.rows], scales.reshape(rows, -1)[: weight.rows]


def _oriented(matrix: GroupCodes) -> tuple[F32, F32, NDArray[np.bool_]]:
    """Non-negative steps, centers, and where codes count down instead of up."""
    flip = matrix.step < 0
    with np.errstate(all="ignore"):
        # Seen from the other end, code 8 is the old 7.
        center = matrix.base + matrix.step * np.where(flip, np.float32(_MIDDLE - 1), np.float32(_MIDDLE))
        step = np.abs(matrix.step)
        limit = np.float32(weight_format("int4").max_weight)
        good = (_MIDDLE * step + np.abs(center) <= limit).all(axis=1)
    if not good.all():
        raise TensorError(unpackable_row_message("int4", int(good.argmin())))
    return step, center, flip


def _write_nibbles(codes: NDArray[np.uint8], cells: NDArray[np.uint8]) -> None:
    """Codes [N, groups, 32] into the cells [row blocks, groups, cell bytes]: octets of column j below column j + 4."""
    rows, groups, _ = codes.shape
    words = np.ascontiguousarray(codes).view(np.uint32).reshape(rows, groups, COL_GROUP // 8, 2)
    octets = _padded(words[..., 0] | words[..., 1] << 4, len(cells), np.uint32(0x88888888))
    octets = octets.reshape(len(cells), ROW_BLOCK, groups, -1).transpose(0, 2, 3, 1)
    cells[:, :, : -2 * ROW_BLOCK] = np.ascontiguousarray(octets).view(np.uint8).reshape(len(cells), groups, -1)


def _padded(values: NDArray[np.generic], blocks: int, fill: np.generic) -> NDArray[np.generic]:
    """`values` [N, ...] with rows of `fill` appended up to whole row blocks."""
    missing = blocks * ROW_BLOCK - len(values)
    if missing == 0:
        return values
    return np.concatenate([values, np.full((missing, *values.shape[1:]), fill, values.dtype)])

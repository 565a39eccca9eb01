"""NumPy twin of packing: how float32 weights become the bytes of a `PackedWeight`, and how they are unpacked.

Same float32 operations in the same order as csrc/quantize.cpp, so packed bytes are identical. Part of
`kernels/reference.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glm4.kernels.base import F32, I32
from glm4.kernels.formats import (
    COL_GROUP,
    INT4_OFFSET_UNIT,
    ROW_BLOCK,
    SPAN_CELLS,
    PackedWeight,
    weight_format,
)

F16_MAX = np.float32(65504.0)

# int4 search: a group's range is divided into this many steps, each rounding is improved by passes of least squares and
# rounding again, and the best one wins. Relative RMSE on Gaussian weights: 0.0749 with 15 steps and one pass, 0.0722
# with 16 candidates and one pass, 0.0707 with these.
INT4_CANDIDATES = tuple(np.float32(12 + i) for i in range(8))
INT4_PASSES = 3
INT4_MIN_UNIT = np.float32(1e-30)


def f16_round(x: F32) -> F32:
    """Nearest float16 (ties to even), saturated to +-65504, as float32."""
    return np.clip(x, -F16_MAX, F16_MAX).astype(np.float16).astype(np.float32)


def quantize_int8(groups: F32) -> tuple[NDArray[np.int8], F32]:
    """Weights [..., n] to int8 in -127..127 and fp16-rounded scales [...] = absmax / 127."""
    scales = f16_round(np.abs(groups).max(axis=-1) / np.float32(127))
    q = np.rint(np.clip(groups * reciprocal(scales)[..., None], np.float32(-127), np.float32(127)))
    return q.astype(np.int8), scales


@dataclass(frozen=True)
class Int4Cells:
    """An unpacked int4 matrix: weight = unit * (scale * quants + 8 * offset).

    Attributes:
        quants: int8 [row blocks, column groups, 32, 32] in -8..7.
        scale: int32 [row blocks, column groups, 32] in 0..255.
        offset: int32 of the same shape in -127..127.
        unit: float32 [row blocks, 32].
    """

    quants: NDArray[np.int8]
    scale: I32
    offset: I32
    unit: F32


def quantize_int4(cells: F32) -> Int4Cells:
    """Weights [row blocks, column groups, 32, 32] to int4: step and center of each group, then a unit per row."""
    step, center = _search_int4(cells)
    unit = np.maximum(
        step.max(axis=1) / np.float32(255), np.abs(center).max(axis=1) / np.float32(127 * INT4_OFFSET_UNIT)
    )
    unit = np.where(unit > INT4_MIN_UNIT, unit, np.float32(0))
    inverse = reciprocal(unit)[:, None]
    scale = np.rint(np.clip(step * inverse, np.float32(0), np.float32(255)))
    eighth = np.float32(1 / INT4_OFFSET_UNIT)
    offset = np.rint(np.clip(center * inverse * eighth, np.float32(-127), np.float32(127)))
    shift = (offset * np.float32(INT4_OFFSET_UNIT))[..., None]
    u = (cells * inverse[..., None] - shift) * reciprocal(scale)[..., None]
    q = np.rint(np.clip(u, np.float32(-8), np.float32(7)))
    return Int4Cells(q.astype(np.int8), scale.astype(np.int32), offset.astype(np.int32), unit)


def _search_int4(cells: F32) -> tuple[F32, F32]:
    """Step and center (the value of q = 0) with the least squared error for each group [..., 32]."""
    low, high = cells.min(axis=-1), cells.max(axis=-1)
    span = high - low
    columns = range(cells.shape[-1])  # one after another: the order of a sum is part of the format
    zero = np.zeros_like(span)
    sy = sum((cells[..., c] - low for c in columns), start=zero)
    gain, step, start = np.full_like(span, -1), zero, zero
    n = np.float32(COL_GROUP)
    for candidate in INT4_CANDIDATES:
        width = span / candidate
        base = (span - width * np.float32(15)) * np.float32(0.5)
        found = zero
        for _ in range(INT4_PASSES):
            inverse = reciprocal(width)
            sq, sqq, sqy = zero, zero, zero
            for c in columns:
                y = cells[..., c] - low
                q = np.rint(np.clip((y - base) * inverse, np.float32(0), np.float32(15)))
                sq, sqq, sqy = sq + q, sqq + q * q, sqy + q * y
            spread, rise = n * sqq - sq * sq, n * sqy - sq * sy
            width = np.where(spread > 0, rise / np.maximum(spread, np.float32(1)), np.float32(0))
            base = (sy - width * sq) * (np.float32(1) / n)
            found = base * sy + width * sqy
        better = found > gain
        gain, step, start = np.where(better, found, gain), np.where(better, width, step), np.where(better, base, start)
    return step, (start + low) + step * np.float32(8)


def reciprocal(scale: F32) -> F32:
    """1 / scale, and 0 for a scale of 0."""
    zero = scale == 0
    inverse: F32 = np.where(zero, np.float32(0), np.float32(1) / np.where(zero, np.float32(1), scale))
    return inverse


def pad(x: F32, axis: int, multiple: int) -> F32:
    """`x` with zeros appended along `axis`, up to a multiple."""
    missing = -x.shape[axis] % multiple
    if missing == 0:
        return x
    widths = [(0, missing if i == axis else 0) for i in range(x.ndim)]
    return np.pad(x, widths)


def grid(weight: PackedWeight) -> tuple[int, int]:
    """Number of row blocks and column groups."""
    return -(-weight.rows // ROW_BLOCK), -(-weight.cols // COL_GROUP)


def to_cells(weight: F32) -> F32:
    """[N, K] to [row blocks, column groups, 32, 32], padded with zeros."""
    padded = pad(pad(weight, 0, ROW_BLOCK), 1, COL_GROUP)
    blocks = padded.reshape(padded.shape[0] // ROW_BLOCK, ROW_BLOCK, -1, COL_GROUP)
    return np.ascontiguousarray(blocks.swapaxes(1, 2))


def cell_bytes(cells: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The bytes of each cell, flat: [row blocks, column groups, cell bytes]."""
    whole = np.ascontiguousarray(cells)
    return whole.view(np.uint8).reshape(*cells.shape[:2], -1)


def bf16_bits(x: F32) -> NDArray[np.uint16]:
    """Upper halves of float32, rounded to nearest even; x is finite."""
    bits = x.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    upper: NDArray[np.uint16] = (rounded >> np.uint32(16)).astype(np.uint16)
    return upper


def _spans(groups: int) -> list[slice]:
    """The column groups of each span."""
    return [slice(start, min(start + SPAN_CELLS, groups)) for start in range(0, groups, SPAN_CELLS)]


def pack_int8(cells: F32) -> NDArray[np.uint8]:
    """Quantizes [row blocks, column groups, 32 rows, 32 columns] and returns the bytes of the row blocks."""
    quants, scales = np.empty(cells.shape, np.int8), []
    for groups in _spans(cells.shape[1]):
        span = cells[:, groups].swapaxes(1, 2)
        q, scale = quantize_int8(span.reshape(len(cells), ROW_BLOCK, -1))
        quants[:, groups] = q.reshape(span.shape).swapaxes(1, 2)
        scales.append(scale)
    return int8_bytes(quants, np.stack(scales, axis=1))


def int8_bytes(quants: NDArray[np.int8], scales: F32) -> NDArray[np.uint8]:
    """The bytes of each row block; inverse of `int8_cells`.

    Args:
        quants: [row blocks, column groups, 32 rows, 32 columns] in -127..127.
        scales: [row blocks, spans, 32], float16 values.
    """
    blocks, parts = len(quants), []
    for i, groups in enumerate(_spans(quants.shape[1])):
        cells = (quants[:, groups].astype(np.int16) + 128).astype(np.uint8)
        quads = cells.reshape(blocks, -1, ROW_BLOCK, COL_GROUP // 4, 4).swapaxes(2, 3)
        parts += [quads.reshape(blocks, -1), cell_bytes(scales[:, i : i + 1].astype(np.float16)).reshape(blocks, -1)]
    return np.concatenate(parts, axis=1)


def int8_cells(weight: PackedWeight) -> tuple[NDArray[np.int8], F32]:
    """Quantized values [row blocks, column groups, 32, 32] and scales [row blocks, spans, 32]."""
    fmt, (blocks, groups) = weight_format(weight.format), grid(weight)
    data = weight.data.reshape(blocks, -1)
    quants, scales, at = [], [], 0
    for span in _spans(groups):
        end = at + (span.stop - span.start) * fmt.cell_nbytes
        quads = data[:, at:end].reshape(blocks, -1, 8, ROW_BLOCK, 4).swapaxes(2, 3)
        quants.append((quads.reshape(blocks, -1, ROW_BLOCK, COL_GROUP).astype(np.int16) - 128).astype(np.int8))
        at = end + fmt.span_tail_nbytes
        scales.append(np.ascontiguousarray(data[:, end:at]).view(np.float16).astype(np.float32))
    return np.concatenate(quants, axis=1), np.stack(scales, axis=1)


def pack_int4(cells: Int4Cells) -> NDArray[np.uint8]:
    """Cells of 4 octets x 32 rows x 4 bytes (column j + 4 in the high nibbles), scales and offsets; then the units."""
    blocks, groups = cells.quants.shape[:2]
    octets = (cells.quants + 8).astype(np.uint8).reshape(blocks, groups, ROW_BLOCK, 4, 2, 4)
    nibbles = cell_bytes((octets[:, :, :, :, 0] | octets[:, :, :, :, 1] << 4).swapaxes(2, 3))
    scales = cell_bytes(np.stack([cells.scale, cells.offset + 128], axis=3).astype(np.uint8))
    whole = np.concatenate([nibbles, scales], axis=2).reshape(blocks, -1)
    return np.concatenate([whole, cells.unit.view(np.uint8)], axis=1)


def int4_cells(weight: PackedWeight) -> Int4Cells:
    """The unpacked matrix."""
    fmt, (blocks, groups) = weight_format(weight.format), grid(weight)
    data = weight.data.reshape(blocks, -1)
    cells = data[:, : -fmt.block_tail_nbytes].reshape(blocks, groups, -1)
    octets = cells[:, :, :512].reshape(blocks, groups, 4, ROW_BLOCK, 4).swapaxes(2, 3)
    quants = np.stack([octets & 15, octets >> 4], axis=4).astype(np.int8) - np.int8(8)
    pairs = cells[:, :, 512:].reshape(blocks, groups, ROW_BLOCK, 2).astype(np.int32)
    unit = np.ascontiguousarray(data[:, -fmt.block_tail_nbytes :]).view(np.float32)
    return Int4Cells(quants.reshape(blocks, groups, ROW_BLOCK, COL_GROUP), pairs[..., 0], pairs[..., 1] - 128, unit)

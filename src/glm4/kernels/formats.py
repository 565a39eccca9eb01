"""Packed weight formats: the meaning of the bytes of a `PackedWeight`. Mirror of csrc/formats.h.

Every format divides the matrix [rows, cols] into cells of 32 output rows x 32 input columns (both padded with zeros)
and stores the cells of one row block one after another, so that a kernel that works on 32 outputs streams through
contiguous memory. Up to four cells (128 columns) form a span; the last span of a row block may be shorter:

    packed = [ceil(rows/32)] blocks of ([spans] of ([cells], span tail), block tail)

    fp32  cell = float32 [32 columns][32 rows]                                              4096 bytes
    bf16  cell = uint16  [16 column pairs][32 rows][2 columns]                              2048 bytes
    int8  cell = uint8   [8 column quads][32 rows][4 columns] (value + 128)                 1024 bytes,
          span tail = fp16 scale [32 rows]                                                    64 bytes
    int4  cell = uint8   [4 column octets][32 rows][4 bytes], {scale, offset + 128} [32 rows]   576 bytes;
          byte j of an octet holds column j in its low nibble and column j + 4 in its high one (value + 8),
          block tail = float32 unit [32 rows]                                                128 bytes

An int4 weight is unit * (scale * value + 8 * offset): value -8..7, scale 0..255 and offset -127..127 of its group of 32
columns, one unit per row. Scales and offsets are integers so that a span of dot products is summed in integers.

The integer orders are the operand order of dot-product instructions: one 64-byte line is 16 rows x 4 columns (int8)
or 16 rows x 8 columns (int4). The same bytes serve every instruction set, matrix-vector and matrix-matrix.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROW_BLOCK = 32
COL_GROUP = 32
SPAN_CELLS = 4
INT4_OFFSET_UNIT = 8
_MAX_DIMENSION = 1 << 30
_HUGE_PAGE = 2 << 20
_HUGE_PAGE_THRESHOLD = 4 << 20


@dataclass(frozen=True)
class WeightFormat:
    """One packed format.

    Attributes:
        name: "fp32", "bf16", "int8" or "int4".
        code: the format's number in csrc/formats.h.
        cell_nbytes: bytes of one cell of 32 rows x 32 columns.
        span_tail_nbytes: bytes after the cells of a span.
        block_tail_nbytes: bytes after the spans of a row block.
        max_weight: largest magnitude the format can represent; `pack` refuses more.
    """

    name: str
    code: int
    cell_nbytes: int
    span_tail_nbytes: int
    block_tail_nbytes: int
    max_weight: float
    row_block: int = ROW_BLOCK
    col_group: int = COL_GROUP

    def block_nbytes(self, cols: int) -> int:
        """Bytes of one row block, padding included."""
        groups = -(-cols // self.col_group)
        return groups * self.cell_nbytes + -(-groups // SPAN_CELLS) * self.span_tail_nbytes + self.block_tail_nbytes

    def packed_nbytes(self, rows: int, cols: int) -> int:
        """Bytes of a packed [rows, cols] matrix, padding included."""
        if not (1 <= rows <= _MAX_DIMENSION and 1 <= cols <= _MAX_DIMENSION):
            raise ValueError(f"a packed matrix needs 1 to {_MAX_DIMENSION} rows and columns, not {rows} x {cols}")
        return -(-rows // self.row_block) * self.block_nbytes(cols)

    def bits_per_weight(self, rows: int, cols: int) -> float:
        """Storage per weight of a [rows, cols] matrix, scales and padding included."""
        return self.packed_nbytes(rows, cols) * 8 / (rows * cols)


@dataclass(frozen=True)
class PackedWeight:
    """One weight matrix [rows, cols] in the layout the kernels read.

    Attributes:
        data: the packed bytes, 1-D uint8, 64-byte aligned, exactly `packed_nbytes(format, rows, cols)` long.
        format: a key of FORMATS.
        rows: N, output features.
        cols: K, input features.
    """

    data: NDArray[np.uint8]
    format: str
    rows: int
    cols: int

    def __post_init__(self) -> None:
        expected = packed_nbytes(self.format, self.rows, self.cols)
        if self.data.dtype != np.uint8 or self.data.ndim != 1 or self.data.size != expected:
            raise ValueError(
                f"a packed {self.format} matrix of {self.rows} x {self.cols} is {expected} bytes of uint8, "
                f"not {self.data.dtype} of shape {self.data.shape}"
            )

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return int(self.data.nbytes)

    def place(self, row: int, part: PackedWeight) -> None:
        """Copy some packed rows of this matrix into place; `row` is a multiple of the row block."""
        start = row // ROW_BLOCK * weight_format(self.format).block_nbytes(self.cols)
        self.data[start : start + part.nbytes] = part.data


def weight_format(name: str) -> WeightFormat:
    """The row of FORMATS named `name`; raises ValueError that lists the names."""
    try:
        return FORMATS[name]
    except KeyError:
        raise ValueError(f"unknown weight format {name!r}; choose one of {', '.join(FORMATS)}") from None


def unpackable_row_message(format: str, row: int) -> str:
    """Message of the TensorError for a weight that `pack` refuses."""
    limit = weight_format(format).max_weight
    return (
        f"row {row} of the weight holds a value that is not finite or exceeds {limit:g}, the largest {format} can hold"
    )


def packed_nbytes(format: str, rows: int, cols: int) -> int:
    """Bytes of a [rows, cols] matrix packed as `format`, padding included."""
    return weight_format(format).packed_nbytes(rows, cols)


def aligned_empty(nbytes: int) -> NDArray[np.uint8]:
    """Uninitialized uint8 array, 64-byte aligned. Above 4 MB it asks for huge pages: 4-14 % more read bandwidth."""
    if nbytes > _HUGE_PAGE_THRESHOLD:
        # One huge page more than needed, so that the array can start on a huge-page boundary.
        mapping = mmap.mmap(-1, -(-nbytes // _HUGE_PAGE) * _HUGE_PAGE + _HUGE_PAGE)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            mapping.madvise(mmap.MADV_HUGEPAGE)
        whole = np.frombuffer(mapping, dtype=np.uint8)
        start = -int(whole.ctypes.data) % _HUGE_PAGE
    else:
        whole = np.empty(nbytes + 64, dtype=np.uint8)
        start = -int(whole.ctypes.data) % 64
    return whole[start : start + nbytes]


def empty_packed(format: str, rows: int, cols: int) -> PackedWeight:
    """A matrix with uninitialized contents, to be filled row block by row block."""
    return PackedWeight(aligned_empty(packed_nbytes(format, rows, cols)), format, rows, cols)


def random_packed(format: str, rows: int, cols: int, rng: np.random.Generator, scale: float) -> PackedWeight:
    """A matrix of roughly normal(0, scale) weights created directly in the packed format, for benchmarks.

    A few spans are drawn and repeated, so a 9B model takes seconds and no float32 copy.
    """
    fmt = weight_format(format)
    groups = -(-cols // COL_GROUP)
    drawn = _random_cells(format, min(groups, 61), scale, rng)  # a prime: repetition never lines up with heads
    cells = drawn[np.arange(groups) % len(drawn)]
    block = np.zeros(fmt.block_nbytes(cols), np.uint8)
    span_nbytes = SPAN_CELLS * fmt.cell_nbytes + fmt.span_tail_nbytes
    for span in range(-(-groups // SPAN_CELLS)):
        part = cells[span * SPAN_CELLS : (span + 1) * SPAN_CELLS].reshape(-1)
        start = span * span_nbytes
        block[start : start + part.size] = part
        if format == "int8":
            tail = np.full(ROW_BLOCK, scale * _SPREAD / 127, np.float16).view(np.uint8)
            block[start + part.size : start + part.size + tail.size] = tail
    if format == "int4":
        block[-fmt.block_tail_nbytes :] = np.full(ROW_BLOCK, scale * _SPREAD / 7 / 255, np.float32).view(np.uint8)
    data = aligned_empty(fmt.packed_nbytes(rows, cols))
    data.reshape(-1, block.size)[:] = block
    return PackedWeight(data, format, rows, cols)


_SPREAD = 3.0  # standard deviations that fill the integer range


def _random_cells(format: str, count: int, scale: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Cells of about normal(0, scale) weights, [count, cell bytes]; integer ones with the largest scale throughout."""
    values = rng.standard_normal((count, ROW_BLOCK * COL_GROUP), dtype=np.float32)
    if format == "fp32":
        return np.asarray(values * np.float32(scale), np.float32).view(np.uint8)
    if format == "bf16":
        halves = np.asarray(values * np.float32(scale), np.float32).view(np.uint32) >> 16
        return halves.astype(np.uint16).view(np.uint8)
    top = 127 if format == "int8" else 7
    q = np.clip(np.rint(values * (top / _SPREAD)), -top, top).astype(np.int16)
    if format == "int8":
        return np.asarray(q + 128, np.uint8)
    nibbles = (q + 8).astype(np.uint8)
    scales = np.tile(np.array([255, 128], np.uint8), (count, ROW_BLOCK))
    return np.concatenate([nibbles[:, 0::2] | nibbles[:, 1::2] << 4, scales], axis=1)


_F16_MAX = 65504.0

FORMATS: dict[str, WeightFormat] = {
    "fp32": WeightFormat("fp32", 0, 4096, 0, 0, max_weight=float(np.finfo(np.float32).max)),
    "bf16": WeightFormat("bf16", 1, 2048, 0, 0, max_weight=3.38e38),
    "int8": WeightFormat("int8", 2, 1024, 64, 0, max_weight=_F16_MAX * 127),
    "int4": WeightFormat("int4", 3, 576, 0, 128, max_weight=1e15),  # sums of squares stay finite
}

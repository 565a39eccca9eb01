"""The int4 grid of error-compensated rounding: a scale and an offset per group of 32 columns, one unit per row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from glm4.kernels.base import Kernels
from glm4.kernels.formats import COL_GROUP, INT4_OFFSET_UNIT, ROW_BLOCK, PackedWeight, empty_packed
from glm4.kernels.reference_packing import (
    Int4Cells,
    int4_cells,
    pack_int4,
    to_cells,
)

Float = NDArray[np.float32]
Columns = NDArray[np.intp]

# A row's unit is fixed before its targets are known, so it is larger than in plain rounding by this factor.
HEADROOM = np.float32(1.1)
# How often all groups are rounded again. Two sweeps reduce the error of a layer's outputs by 5 % (root mean square,
# four matrices of the smoke model), a third by another 0.3 %.
SWEEPS = 2


class Int4Grid:
    """`rounding.Grid` of int4."""

    lowest, highest = -8, 7

    def __init__(self, weight: Float, kernels: Kernels) -> None:
        rows, cols = weight.shape
        self._kernels = kernels
        self._unit = _row_units(weight, kernels)
        self._scales, self._offsets = np.zeros((2, -(-cols // COL_GROUP), rows), np.float32)

    @staticmethod
    def batches(energy: Float) -> list[Columns]:
        """`Grid.batches`: group by group, so that a grid can be searched for targets that know all earlier groups."""
        return [np.arange(start, min(start + COL_GROUP, len(energy))) for start in range(0, len(energy), COL_GROUP)]

    def at(self, columns: Columns, target: Float, weights: Float) -> tuple[Float, Float]:
        """`Grid.at`: least squares, the error of each column weighted."""
        weights = (weights / weights.mean()).astype(np.float32)
        scale, offset = self._kernels.search_int4(target, self._unit, weights)
        group = columns[0] // COL_GROUP
        self._scales[group], self._offsets[group] = scale, offset
        return (self._unit * scale)[None], (self._unit * (offset * np.float32(INT4_OFFSET_UNIT)))[None]

    def improve(self, hessian: Float, damping: float, source: Float, error: Float, quants: NDArray[np.int8]) -> None:
        """`Grid.improve`. Columns are rounded in their own order, so all arrays here are in that order."""
        for start in [*range(0, len(source), COL_GROUP)] * SWEEPS:
            group, columns = start // COL_GROUP, slice(start, start + COL_GROUP)
            inside = hessian[columns, columns] + np.float32(damping) * np.eye(len(source[columns]), dtype=np.float32)
            gradient = hessian[columns] @ error + np.float32(damping) * error[columns]
            grid = self._unit, self._scales[group], self._offsets[group]
            made = self._kernels.refine_int4(gradient, inside, source[columns], *grid, quants[columns])
            self._scales[group], self._offsets[group], quants[columns], error[columns] = made

    def packed(self, quants: NDArray[np.int8]) -> PackedWeight:
        """`Grid.packed`."""
        return pack_integers(quants, self._scales.T.astype(np.int32), self._offsets.T.astype(np.int32), self._unit)


def _row_units(weight: Float, kernels: Kernels) -> Float:
    """Unit of each row: that of plain rounding, with some headroom."""
    unit = int4_cells(kernels.pack("int4", weight)).unit.reshape(-1)[: len(weight)]
    return np.asarray(unit * HEADROOM, np.float32)


def pack_integers(
    quants: NDArray[np.int8], scale: NDArray[np.int32], offset: NDArray[np.int32], unit: Float
) -> PackedWeight:
    """The int4 matrix of weights unit * (scale * quants + 8 * offset), exactly.

    Args:
        quants: [N, K] in -8..7.
        scale, offset: [N, ceil(K / 32)] in 0..255 and -127..127.
        unit: [N].
    """
    groups = scale.shape[1]
    blocks = -(-len(quants) // ROW_BLOCK)

    def by_block(values: NDArray[np.int32]) -> NDArray[np.int32]:
        padded = np.zeros((blocks * ROW_BLOCK, groups), np.int32)
        padded[: len(values)] = values
        return np.ascontiguousarray(padded.reshape(blocks, ROW_BLOCK, groups).swapaxes(1, 2))

    units = np.zeros(blocks * ROW_BLOCK, np.float32)
    units[: len(unit)] = unit
    cells = to_cells(quants.astype(np.float32)).astype(np.int8)
    parts = Int4Cells(cells, by_block(scale), by_block(offset), units.reshape(blocks, ROW_BLOCK))
    weight = empty_packed("int4", *quants.shape)
    weight.data[:] = pack_int4(parts).reshape(-1)
    return weight

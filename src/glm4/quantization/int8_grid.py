"""The int8 grid of error-compensated rounding: one fp16 scale per span of 128 columns.

The scales are those of plain rounding. Smaller ones, which would clip the largest magnitudes, gained less than 2 % of
the squared output error on any kind of matrix of the smoke model, and nothing on most.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from glm4.kernels.base import Kernels
from glm4.kernels.formats import COL_GROUP, ROW_BLOCK, SPAN_CELLS, PackedWeight, empty_packed
from glm4.kernels.reference_packing import int8_bytes, int8_cells, pad, to_cells

Float = NDArray[np.float32]
Columns = NDArray[np.intp]

_SPAN = SPAN_CELLS * COL_GROUP
_BATCH = 32


class Int8Grid:
    """`rounding.Grid` of int8."""

    lowest, highest = -127, 127

    def __init__(self, weight: Float, kernels: Kernels) -> None:
        _, scales = int8_cells(kernels.pack("int8", weight))
        self._scales = np.ascontiguousarray(scales.swapaxes(0, 1).reshape(scales.shape[1], -1)[:, : len(weight)])

    @staticmethod
    def batches(energy: Float) -> list[Columns]:
        """`Grid.batches`: the columns with the largest inputs first, while many are left to compensate their errors.

        On other text that takes a tenth to a fifth off the squared output error compared with the matrix's own order.
        """
        order = np.argsort(-energy, kind="stable")
        return [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]

    def at(self, columns: Columns, target: Float, weights: Float) -> tuple[Float, Float]:
        """`Grid.at`."""
        return self._scales[columns // _SPAN], np.zeros((1, target.shape[1]), np.float32)

    def improve(self, hessian: Float, damping: float, source: Float, error: Float, quants: NDArray[np.int8]) -> None:
        """`Grid.improve`: does nothing, because int8 rounding costs little."""

    def packed(self, quants: NDArray[np.int8]) -> PackedWeight:
        """`Grid.packed`."""
        return pack_int8_integers(quants, self._scales.T)


def pack_int8_integers(quants: NDArray[np.int8], scales: Float) -> PackedWeight:
    """The int8 matrix of weights scales * quants, exactly.

    Args:
        quants: [N, K] in -127..127.
        scales: [N, ceil(K / 128)], float16 values.
    """
    blocks = pad(scales, 0, ROW_BLOCK).reshape(-1, ROW_BLOCK, scales.shape[1]).swapaxes(1, 2)
    weight = empty_packed("int8", *quants.shape)
    weight.data[:] = int8_bytes(to_cells(quants.astype(np.float32)).astype(np.int8), blocks).reshape(-1)
    return weight

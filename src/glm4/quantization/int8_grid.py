"""The int8 grid of error-compensated rounding: one fp16 scale per span of 128 columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from glm4.kernels import Kernels
from glm4.kernels.formats import COL_GROUP, ROW_BLOCK, SPAN_CELLS, PackedWeight, empty_packed
from glm4.kernels.reference_packing import f16_round, int8_bytes, pad, reciprocal, to_cells

Float = NDArray[np.float32]

# Scales that are tried: that of the largest magnitude, and smaller ones that cut it off.
SHARES = tuple(np.float32(1 - i / 32) for i in range(9))
_SEARCH_ROWS = 256  # their targets fit a second-level cache


class Int8Grid:
    """`rounding.Grid` of int8."""

    columns = SPAN_CELLS * COL_GROUP
    lowest, highest = -127, 127

    def __init__(self, weight: Float, kernels: Kernels) -> None:
        rows, cols = weight.shape
        kernels.pack("int8", weight)  # for its checks
        self._scales = np.zeros((-(-cols // self.columns), rows), np.float32)

    def search(self, group: int, target: Float, weights: Float) -> tuple[Float, Float]:
        """`Grid.search`."""
        scales = self._scales[group]
        for start in range(0, len(scales), _SEARCH_ROWS):
            rows = slice(start, start + _SEARCH_ROWS)
            scales[rows] = _search_rows(target[:, rows], weights)
        return scales, np.zeros_like(scales)

    def packed(self, quants: NDArray[np.int8]) -> PackedWeight:
        """`Grid.packed`."""
        return pack_int8_integers(quants, self._scales.T)


def _search_rows(target: Float, weights: Float) -> Float:
    top: Float = np.abs(target).max(axis=0) / np.float32(127)
    least = np.full_like(top, np.inf)
    best = np.zeros_like(top)
    for share in SHARES:
        scale = f16_round(top * share)
        wrong = target * reciprocal(scale)
        wrong -= np.rint(np.clip(wrong, np.float32(-127), np.float32(127)))
        error = np.asarray(np.einsum("c,cn,cn->n", weights, wrong, wrong) * scale * scale, np.float32)
        better = error < least
        least[better], best[better] = error[better], scale[better]
    return best


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

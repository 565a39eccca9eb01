"""Sums in a fixed order, for the NumPy twins and for the totals that both kernel sets are given.

A BLAS, and NumPy's own reductions, choose the order of a sum by shape, memory layout and processor, so that a row could
get different bits next to other rows. Here the order depends only on the number of terms, and every step is an
elementwise addition or multiplication, which IEEE 754 rounds the same way everywhere.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from glm4.kernels.base import F32

F64: TypeAlias = NDArray[np.float64]

# Approximate number of products held at a time: 2 MB, so that they stay in the processor's cache while being summed.
_BLOCK_TERMS = 1 << 18
_BLOCK_ROWS = 16


def ordered_sum(terms: F64) -> F64:
    """The sums [...] over the first axis of float64 `terms` [n, ...], n at least 1. Overwrites the terms.

    The upper half is added to the lower half until one term is left; of an odd number the middle one is unchanged.
    """
    count = len(terms)
    while count > 1:
        kept = count - count // 2
        terms[: count // 2] += terms[kept:count]
        count = kept
    total: F64 = terms[0]
    return total


def ordered_total(values: F32) -> float:
    """The sum of all values in index order, whatever their memory layout; a float32, rounded once."""
    return float(np.float32(ordered_sum(values.astype(np.float64, order="C").reshape(-1))))


def ordered_matmul(a: F32, b: F32) -> F32:
    """Products of stacks of matrices: float32 a [S, M, K] times b [S, K, N] gives float32 [S, M, N], K at least 1.

    The products are exact in float64; each result is rounded to float32 once.
    """
    (stacks, rows, inner), columns = a.shape, b.shape[2]
    left = np.ascontiguousarray(a.transpose(2, 0, 1), np.float64)
    right = np.ascontiguousarray(b.swapaxes(0, 1), np.float64)
    out = np.empty((stacks, rows, columns), np.float32)
    width = max(1, _BLOCK_TERMS // max(1, inner * stacks * min(rows, _BLOCK_ROWS)))
    for row in range(0, rows, _BLOCK_ROWS):
        some = left[:, :, row : row + _BLOCK_ROWS, None]
        for column in range(0, columns, width):
            terms = some * right[:, :, None, column : column + width]
            out[:, row : row + _BLOCK_ROWS, column : column + width] = ordered_sum(terms)
    return out

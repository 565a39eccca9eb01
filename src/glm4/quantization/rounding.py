"""Error-compensated rounding: each column is rounded knowing what the columns before it got wrong.

A linear layer's output error over calibration inputs x is tr((W - Q) H (W - Q)^T) with H = sum x x^T. With
H = U D U^T, U unit upper triangular, it is the sum over columns k of

    D_k * |w_k - q_k + (W - Q)[:, :k] U[:k, k]|^2

so rounding w_k + (W - Q)[:, :k] U[:k, k] to the nearest value minimises one term after the other ("LDLQ"; the same
answer as GPTQ, without inverting H). When a group of columns begins, the grid of its values is searched on targets that
know all columns before the group, each column's error weighted with its D_k. What a grid is, and how it is searched, is
the format's business: `int4_grid.py`, `int8_grid.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from glm4.kernels import Kernels
from glm4.kernels.formats import ROW_BLOCK, PackedWeight, empty_packed, packed_nbytes
from glm4.kernels.reference_packing import reciprocal
from glm4.quantization.int4_grid import Int4Grid
from glm4.quantization.int8_grid import Int8Grid

Float = NDArray[np.float32]

# Share of the mean of H's diagonal that is added to the diagonal: keeps H positive definite, and the solution near
# plain rounding where the calibration text says little. On text of another kind than the calibration text 0.1 to 0.3
# give the least error (smoke model, 3,000 tokens); the 0.01 of the literature overfits.
DAMPING = 0.1
_SLAB_NBYTES = 64 << 20
# Up to so many columns it is cheaper to pass an error on column by column than with a matrix product.
_NARROW = 32


class Grid(Protocol):
    """The values that a format can give some rows of a matrix, group by group: step * quant + centre.

    Attributes:
        columns: of a group.
        lowest, highest: bounds of the quants.
    """

    columns: int
    lowest: int
    highest: int

    def search(self, group: int, target: Float, weights: Float) -> tuple[Float, Float]:
        """Chooses, and keeps, the grid of a group: the least weighted squared error of rounding to it.

        Args:
            group: groups come in order.
            target: [columns, N].
            weights: of each column's squared error, [columns]; their mean is 1.

        Returns:
            step and centre of each row, [N].
        """

    def packed(self, quants: NDArray[np.int8]) -> PackedWeight:
        """The matrix with these quants [N, K] on the chosen grids, exactly."""


# How to begin with some rows of a matrix, by weight format.
GRIDS: dict[str, type[Int4Grid] | type[Int8Grid]] = {"int4": Int4Grid, "int8": Int8Grid}


@dataclass(frozen=True)
class Factors:
    """H = U D U^T of a damped H.

    Attributes:
        upper: U, float32 [K, K], unit upper triangular (zeros below).
        diagonal: D, float32 [K], positive.
    """

    upper: Float
    diagonal: Float


def factorise(hessian: Float, damping: float = DAMPING) -> Factors:
    """Damp and factorise H [K, K], symmetric and positive semi-definite. More damping where rounding errors ask for it.

    Raises:
        ValueError: H has numbers that are not finite.
    """
    if not np.isfinite(hessian).all():
        raise ValueError("the sums of calibration inputs are not finite")
    diagonal = np.diagonal(hessian).astype(np.float64)
    mean = float(diagonal.mean()) or 1.0
    while True:
        flipped = hessian[::-1, ::-1].astype(np.float64)
        flipped[np.diag_indices_from(flipped)] += damping * mean
        try:
            lower = np.linalg.cholesky(flipped)
            break
        except np.linalg.LinAlgError:
            damping *= 10
    del flipped
    root = np.diagonal(lower).copy()
    lower /= root  # each column by its own root
    return Factors(np.ascontiguousarray(lower[::-1, ::-1], np.float32), (root[::-1] ** 2).astype(np.float32))


def round_compensated(format: str, weight: Float, factors: Factors, kernels: Kernels) -> PackedWeight:
    """`weight` [N, K] in a format of GRIDS, rounded with error compensation. Rows do not influence each other.

    Raises:
        TensorError: a weight is not finite or too large (raised by `pack`).
    """
    rows, cols = weight.shape
    whole = empty_packed(format, rows, cols)
    block_nbytes = packed_nbytes(format, ROW_BLOCK, cols)
    step = max(1, _SLAB_NBYTES // (4 * cols * ROW_BLOCK)) * ROW_BLOCK
    for start in range(0, rows, step):
        slab = np.ascontiguousarray(weight[start : start + step])
        part = _round_rows(slab, GRIDS[format](slab, kernels), factors)
        offset = start // ROW_BLOCK * block_nbytes
        whole.data[offset : offset + part.nbytes] = part.data
    return whole


def _round_rows(weight: Float, grid: Grid, factors: Factors) -> PackedWeight:
    """`round_compensated` of some rows. Works on transposed matrices: a column of W is contiguous."""
    rows, cols = weight.shape
    source = np.ascontiguousarray(weight.T)
    error, quants = np.zeros_like(source), np.zeros((cols, rows), np.int8)
    for start in range(0, cols, grid.columns):
        stop = min(cols, start + grid.columns)
        upper, importance = factors.upper[:stop, start:stop], factors.diagonal[start:stop]
        target = source[start:stop] + upper[:start].T @ error[:start]
        step, centre = grid.search(start // grid.columns, target, importance / importance.mean())
        group = _Group(step, centre, reciprocal(step), grid.lowest, grid.highest)
        group.round(target, source[start:stop], upper[start:], error[start:stop], quants[start:stop])
    return grid.packed(quants.T)


@dataclass(frozen=True)
class _Group:
    """A group's grid in use; step, centre and inverse (of the step) are [N]."""

    step: Float
    centre: Float
    inverse: Float
    lowest: int
    highest: int

    def round(self, target: Float, source: Float, upper: Float, error: Float, quants: NDArray[np.int8]) -> None:
        """Rounds columns in order; target, source, error and quants are [columns, N], upper is [columns, columns]."""
        if len(target) > _NARROW:
            half = len(target) // 2
            self.round(target[:half], source[:half], upper[:half, :half], error[:half], quants[:half])
            target[half:] += upper[:half, half:].T @ error[:half]
            self.round(target[half:], source[half:], upper[half:, half:], error[half:], quants[half:])
            return
        lowest, highest = np.float32(self.lowest), np.float32(self.highest)
        for k in range(len(target)):
            q = np.rint(np.clip((target[k] - self.centre) * self.inverse, lowest, highest))
            quants[k] = q
            np.subtract(source[k], self.step * q + self.centre, out=error[k])
            target[k + 1 :] += upper[k, k + 1 :, None] * error[k]

"""Error-compensated rounding: each column is rounded knowing the errors of the columns before it.

A linear layer's output error over calibration inputs x is tr((W - Q) H (W - Q)^T) with H = sum x x^T. With
H = U D U^T, U unit upper triangular, it is the sum over columns k of

    D_k * |w_k - q_k + (W - Q)[:, :k] U[:k, k]|^2

so rounding w_k + (W - Q)[:, :k] U[:k, k] to the nearest value minimizes one term after another ("LDLQ"; the same
result as GPTQ, without inverting H). That never goes back: a column knows nothing of those after it. So a format may
then round all columns again, each knowing the errors of all others (coordinate descent), and fit its grid to the
result. The order of the columns, and the grid of values, are up to the format: `int4_grid.py`, `int8_grid.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from glm4.kernels.base import Kernels
from glm4.kernels.formats import ROW_BLOCK, PackedWeight, empty_packed
from glm4.quantization.cholesky import factorize_in_place
from glm4.quantization.int4_grid import Int4Grid
from glm4.quantization.int8_grid import Int8Grid

Float = NDArray[np.float32]
Columns = NDArray[np.intp]

# See `damping_for`.
DAMPING = 3.0
_SLAB_NBYTES = 64 << 20


class Grid(Protocol):
    """The values that a format can represent for some rows of a matrix: step * quant + center.

    Attributes:
        lowest, highest: bounds of the quants.
    """

    lowest: int
    highest: int

    @staticmethod
    def batches(energy: Float) -> list[Columns]:
        """All columns, in the order of rounding and at most 32 at a time.

        Args:
            energy: mean square of the inputs of each column, up to a factor; [K].
        """

    def at(self, columns: Columns, target: Float, weights: Float) -> tuple[Float, Float]:
        """The grid for the columns of a batch. Batches come in order, so it may be chosen here.

        Args:
            target: the columns' targets after all earlier batches, [columns, N].
            weights: weight of each column's squared error, [columns].

        Returns:
            step and center, [columns, N], or [1, N] for all columns.
        """

    def improve(self, hessian: Float, damping: float, source: Float, error: Float, quants: NDArray[np.int8]) -> None:
        """May round all columns again, now that the errors of all others are known; in place.

        Args:
            hessian: H of all columns, [K, K].
            damping: to be added to its diagonal.
            source, error: weights, and weights minus values, [K, N] in the order of rounding.
            quants: [K, N] in the columns' own order.
        """

    def packed(self, quants: NDArray[np.int8]) -> PackedWeight:
        """The matrix with these quants [N, K], exactly."""


# By weight format; called with rows of a matrix.
GRIDS: dict[str, type[Int4Grid] | type[Int8Grid]] = {"int4": Int4Grid, "int8": Int8Grid}


@dataclass(frozen=True)
class Factors:
    """H = U D U^T of a damped H whose columns and rows are in the order of rounding.

    Attributes:
        batches: the columns of H in that order, as returned by `Grid.batches`.
        upper: U, float32 [K, K], unit upper triangular (zeros below).
        diagonal: D, float32 [K], positive.
        hessian: H as given, in the columns' own order.
        damping: what was added to its diagonal.
    """

    batches: list[Columns]
    upper: Float
    diagonal: Float
    hessian: Float
    damping: float


def damping_for(tokens: int, cols: int) -> float:
    """What to add to H's diagonal, as a fraction of its mean.

    It keeps H positive definite, and the solution near plain rounding where the text says little: the more columns, the
    less a text says about their correlations. Measured by output errors on text other than the calibration text, the
    least error (starter-large, layer 3, 16,384 tokens) is at 1 for qkv and gate_up and at 2 to 3 for down, with 11 and
    1.8 tokens per column; 0.1 is worse than plain rounding there (0.062 against 0.059; 0.053 with 3).

    Args:
        tokens: number of inputs that H sums.
        cols: width of H.
    """
    return DAMPING * float(np.sqrt(cols / max(tokens, 1)))


def factorize(hessian: Float, format: str, damping: float) -> Factors:
    """Damp and factorize H [K, K], symmetric and positive semi-definite.

    Args:
        format: weight format, a key of GRIDS; it determines the order of columns.
        damping: fraction of the mean of H's diagonal to add to it; increased if rounding errors require it.

    Raises:
        ValueError: H has non-finite values.
    """
    if not np.isfinite(hessian).all():
        raise ValueError("the sums of calibration inputs are not finite")
    diagonal = np.diagonal(hessian).astype(np.float64)
    mean = float(diagonal.mean()) or 1.0
    batches = GRIDS[format].batches(np.asarray(diagonal, np.float32))
    backwards = np.concatenate(batches)[::-1]
    while True:
        flipped = hessian[np.ix_(backwards, backwards)].astype(np.float64)
        flipped[np.diag_indices_from(flipped)] += damping * mean
        try:
            factorize_in_place(flipped)
            break
        except np.linalg.LinAlgError:
            damping *= 10
    root = np.diagonal(flipped).copy()
    flipped /= root  # each column by its own root
    upper = np.ascontiguousarray(flipped[::-1, ::-1], np.float32)
    return Factors(batches, upper, (root[::-1] ** 2).astype(np.float32), hessian, damping * mean)


def round_compensated(format: str, weight: Float, factors: Factors, kernels: Kernels) -> PackedWeight:
    """`weight` [N, K] in a format of GRIDS, rounded with error compensation. Rows are independent.

    Raises:
        TensorError: a weight is not finite or too large (raised by `pack`).
    """
    rows, cols = weight.shape
    whole = empty_packed(format, rows, cols)
    step = max(1, _SLAB_NBYTES // (4 * cols * ROW_BLOCK)) * ROW_BLOCK
    for start in range(0, rows, step):
        slab = np.ascontiguousarray(weight[start : start + step])
        whole.place(start, _round_rows(slab, GRIDS[format](slab, kernels), factors, kernels))
    return whole


def _round_rows(weight: Float, grid: Grid, factors: Factors, kernels: Kernels) -> PackedWeight:
    """`round_compensated` for some rows. Works on transposed matrices: a column of W is contiguous."""
    source = np.ascontiguousarray(weight.T)[np.concatenate(factors.batches)]
    error, quants = np.zeros_like(source), np.zeros(source.shape, np.int8)
    stop = 0
    for columns in factors.batches:
        start, stop = stop, stop + len(columns)
        upper = factors.upper[:stop, start:stop]
        target = source[start:stop] + upper[:start].T @ error[:start]
        step, center = grid.at(columns, target, factors.diagonal[start:stop])
        inside = np.ascontiguousarray(upper[start:])
        quants[columns], error[start:stop] = kernels.round_columns(
            target, source[start:stop], inside, step, center, grid.lowest, grid.highest
        )
    grid.improve(factors.hessian, factors.damping, source, error, quants)
    return grid.packed(quants.T)

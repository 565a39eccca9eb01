"""Error-compensated rounding to int4: each column is rounded knowing what the columns before it got wrong.

A linear layer's output error over calibration inputs x is tr((W - Q) H (W - Q)^T) with H = sum x x^T. With
H = U D U^T, U unit upper triangular, it is the sum over columns k of

    D_k * |w_k - q_k + (W - Q)[:, :k] U[:k, k]|^2

so rounding w_k + (W - Q)[:, :k] U[:k, k] to the nearest value minimises one term after the other ("LDLQ"; the same
answer as GPTQ, without inverting H). When a group of 32 columns begins, its scale and offset are searched on targets
that know all columns before the group, each column's error weighted with its D_k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glm4.kernels import Kernels
from glm4.kernels.formats import COL_GROUP, INT4_OFFSET_UNIT, ROW_BLOCK, PackedWeight, empty_packed, packed_nbytes
from glm4.kernels.reference_packing import (
    INT4_CANDIDATES,
    INT4_PASSES,
    Int4Cells,
    int4_cells,
    pack_int4,
    reciprocal,
    to_cells,
)

Float = NDArray[np.float32]

# Share of the mean of H's diagonal that is added to the diagonal: keeps H positive definite, and the solution near
# plain rounding where the calibration text says little. On text of another kind than the calibration text 0.1 to 0.3
# give the least error (smoke model, 3,000 tokens); the 0.01 of the literature overfits.
DAMPING = 0.1
# A row's unit is fixed before its targets are known; so much larger than plain rounding would make it.
HEADROOM = np.float32(1.1)
_SLAB_NBYTES = 64 << 20
_SEARCH_ROWS = 1024  # their targets fit a second-level cache
_TINY = np.float32(1e-30)


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


def round_int4(weight: Float, factors: Factors, kernels: Kernels) -> PackedWeight:
    """`weight` [N, K] as int4, rounded with error compensation. Rows do not influence each other.

    Raises:
        TensorError: a weight is not finite or too large (raised by `pack`).
    """
    rows, cols = weight.shape
    whole = empty_packed("int4", rows, cols)
    block_nbytes = packed_nbytes("int4", ROW_BLOCK, cols)
    step = max(1, _SLAB_NBYTES // (4 * cols * ROW_BLOCK)) * ROW_BLOCK
    for start in range(0, rows, step):
        part = _round_rows(np.ascontiguousarray(weight[start : start + step]), factors, kernels)
        offset = start // ROW_BLOCK * block_nbytes
        whole.data[offset : offset + part.nbytes] = part.data
    return whole


def _round_rows(weight: Float, factors: Factors, kernels: Kernels) -> PackedWeight:
    """`round_int4` of some rows. Works on transposed matrices: a column of W is contiguous."""
    rows, cols = weight.shape
    groups = -(-cols // COL_GROUP)
    unit = _row_units(weight, kernels)
    source = np.ascontiguousarray(weight.T)
    error, quants = np.zeros_like(source), np.zeros((cols, rows), np.int8)
    scales, offsets = np.zeros((2, groups, rows), np.int32)
    for group in range(groups):
        start, stop = group * COL_GROUP, min(cols, (group + 1) * COL_GROUP)
        upper = factors.upper[:stop, start:stop]
        target = source[start:stop] + upper[:start].T @ error[:start]
        scale, offset = _search(target, unit, factors.diagonal[start:stop])
        rounded = error[start:stop], quants[start:stop]
        _round_group(target, source[start:stop], upper[start:], unit, scale, offset, *rounded)
        scales[group], offsets[group] = scale, offset
    return pack_integers(quants.T, scales.T, offsets.T, unit)


def _round_group(
    target: Float,
    source: Float,
    upper: Float,
    unit: Float,
    scale: Float,
    offset: Float,
    error: Float,
    quants: NDArray[np.int8],
) -> None:
    """Rounds the columns of one group in order; all arrays but unit, scale and offset are [columns, N]."""
    step, centre = unit * scale, unit * (offset * np.float32(INT4_OFFSET_UNIT))
    inverse = reciprocal(step)
    for k in range(len(target)):
        q = np.rint(np.clip((target[k] - centre) * inverse, np.float32(-8), np.float32(7)))
        quants[k] = q
        np.subtract(source[k], step * q + centre, out=error[k])
        target[k + 1 :] += upper[k, k + 1 :, None] * error[k]


def _row_units(weight: Float, kernels: Kernels) -> Float:
    """Unit of each row: that of plain rounding, and some room."""
    unit = int4_cells(kernels.pack("int4", weight)).unit.reshape(-1)[: len(weight)]
    return np.asarray(unit * HEADROOM, np.float32)


def _search(target: Float, unit: Float, importance: Float) -> tuple[Float, Float]:
    """Scale 0..255 and offset -127..127 of each row with the least weighted squared error of one group.

    Args:
        target: [columns, N].
        unit: [N].
        importance: weight of each column's squared error, [columns].
    """
    scale, offset = np.empty_like(unit), np.empty_like(unit)
    weights = (importance / importance.mean()).astype(np.float32)
    for start in range(0, len(unit), _SEARCH_ROWS):
        rows = slice(start, start + _SEARCH_ROWS)
        scale[rows], offset[rows] = _search_rows(target[:, rows], unit[rows], weights)
    return scale, offset


def _search_rows(target: Float, unit: Float, weights: Float) -> tuple[Float, Float]:
    """`_search` for rows that stay in the cache: ranges as in `pack`, each improved by weighted least squares."""
    low, high = target.min(axis=0), target.max(axis=0)
    middle = (low + high) * np.float32(0.5)
    y = target - middle
    weighted = y * weights[:, None]
    total, sy = weights.sum(), weighted.sum(axis=0)
    inverse_unit = reciprocal(unit)
    least = np.full_like(unit, np.inf)
    best_scale, best_offset = np.zeros_like(unit), np.zeros_like(unit)
    for steps in INT4_CANDIDATES:
        fit = (high - low) / steps
        base = fit * np.float32(0.5)
        for _ in range(INT4_PASSES):
            q = np.rint(np.clip((y - base) * reciprocal(fit), np.float32(-8), np.float32(7)))
            sq, sqq, sqy = _weighted_sum(weights, q), _weighted_sum(weights, q * q), (q * weighted).sum(axis=0)
            spread = total * sqq - sq * sq
            fit = np.where(spread > 0, (total * sqy - sq * sy) / np.maximum(spread, _TINY), np.float32(0))
            base = (sy - fit * sq) / total
        scale = np.rint(np.clip(fit * inverse_unit, np.float32(0), np.float32(255)))
        offset = np.rint(
            np.clip((base + middle) * inverse_unit / np.float32(INT4_OFFSET_UNIT), np.float32(-127), np.float32(127))
        )
        step, centre = unit * scale, unit * (offset * np.float32(INT4_OFFSET_UNIT))
        wrong = target - centre
        wrong -= step * np.rint(np.clip(wrong * reciprocal(step), np.float32(-8), np.float32(7)))
        error = _weighted_sum(weights, wrong * wrong)
        better = error < least
        for best, found in ((least, error), (best_scale, scale), (best_offset, offset)):
            best[better] = found[better]
    return best_scale, best_offset


def _weighted_sum(weights: Float, values: Float) -> Float:
    """weights [columns] times values [columns, N]. Too small a product for a BLAS that would wake its threads."""
    return np.asarray(np.einsum("c,cn->n", weights, values), np.float32)


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

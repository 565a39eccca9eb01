"""NumPy twins of the inner loops of error-compensated rounding. The order of the additions is part of the contract."""

from __future__ import annotations

import numpy as np

from glm4.kernels.base import F32, I8
from glm4.kernels.formats import INT4_OFFSET_UNIT
from glm4.kernels.ordered_sums import ordered_total
from glm4.kernels.reference_packing import INT4_CANDIDATES, INT4_PASSES, reciprocal

_TINY = np.float32(1e-30)


def round_columns(
    target: F32, source: F32, upper: F32, step: F32, center: F32, lowest: int, highest: int
) -> tuple[I8, F32]:
    """`Kernels.round_columns`."""
    target, error, quants = target.copy(), np.empty_like(source), np.empty(source.shape, np.int8)
    steps, centers, inverses = (np.broadcast_to(x, target.shape) for x in (step, center, reciprocal(step)))
    low, high = np.float32(lowest), np.float32(highest)
    for k in range(len(target)):
        q = np.rint(np.clip((target[k] - centers[k]) * inverses[k], low, high))
        quants[k] = q
        error[k] = source[k] - (steps[k] * q + centers[k])
        target[k + 1 :] += upper[k, k + 1 :, None] * error[k]
    return quants, error


def search_int4(target: F32, unit: F32, weights: F32) -> tuple[F32, F32]:
    """`Kernels.search_int4`: ranges as in `pack`, each improved by weighted least squares."""
    low, high = target.min(axis=0), target.max(axis=0)
    middle = (low + high) * np.float32(0.5)
    y, zero, total = target - middle, np.zeros_like(unit), np.float32(ordered_total(weights))
    sy = sum((y_c * w for y_c, w in zip(y, weights, strict=True)), start=zero)
    inverse_unit = reciprocal(unit)
    least, best_scale, best_offset = zero, zero, zero
    for number, steps in enumerate(INT4_CANDIDATES):
        fit = (high - low) / steps
        base = fit * np.float32(0.5)
        for _ in range(INT4_PASSES):
            inverse = reciprocal(fit)
            sq, sqq, sqy = zero, zero, zero
            for y_c, w in zip(y, weights, strict=True):
                q = np.rint(np.clip((y_c - base) * inverse, np.float32(-8), np.float32(7)))
                weighted = q * w
                sq, sqq, sqy = sq + weighted, sqq + weighted * q, sqy + weighted * y_c
            spread, rise = total * sqq - sq * sq, total * sqy - sq * sy
            fit = np.where(spread > 0, rise / np.maximum(spread, _TINY), np.float32(0))
            base = (sy - fit * sq) / total
        scale = np.rint(np.clip(fit * inverse_unit, np.float32(0), np.float32(255)))
        offset = (base + middle) * inverse_unit / np.float32(INT4_OFFSET_UNIT)
        offset = np.rint(np.clip(offset, np.float32(-127), np.float32(127)))
        error = _squared_error(target, unit * scale, unit * (offset * np.float32(INT4_OFFSET_UNIT)), weights)
        better = error < least if number else np.ones(error.shape, bool)
        least, best_scale, best_offset = (
            np.where(better, new, old) for new, old in ((error, least), (scale, best_scale), (offset, best_offset))
        )
    return best_scale, best_offset


def refine_int4(
    gradient: F32, hessian: F32, source: F32, unit: F32, scale: F32, offset: F32, quants: I8
) -> tuple[F32, F32, I8, F32]:
    """`Kernels.refine_int4`."""
    gradient, q, step = gradient.copy(), quants.astype(np.float32), unit * scale
    inverse = reciprocal(step)
    for k in range(len(q)):
        wanted = gradient[k] * (np.float32(1) / hessian[k, k]) * inverse
        better = np.rint(np.clip(q[k] + wanted, np.float32(-8), np.float32(7)))
        change = step * (better - q[k])
        q[k] = better
        gradient -= hessian[k, :, None] * change
    scale, offset = _fit(gradient, hessian, unit, scale, offset, q)
    error = source - (unit * scale * q + unit * (offset * np.float32(INT4_OFFSET_UNIT)))
    return scale, offset, q.astype(np.int8), error


def _fit(gradient: F32, hessian: F32, unit: F32, scale: F32, offset: F32, quants: F32) -> tuple[F32, F32]:
    """The best scale and offset for these quants, where better than the old ones."""
    zero, two, eight = np.zeros_like(unit), np.float32(2), np.float32(INT4_OFFSET_UNIT)
    total = np.float32(ordered_total(hessian))
    qq, q1, gq, g1 = zero, zero, zero, zero
    for g, q, h in zip(gradient, quants, hessian, strict=True):
        product = sum((h_j * q_j for h_j, q_j in zip(h, quants, strict=True)), start=zero)
        qq, q1, gq, g1 = qq + q * product, q1 + product, gq + g * q, g1 + g
    spread = qq * total - q1 * q1
    divisor = np.maximum(spread, _TINY)
    step_more, center_more = (gq * total - g1 * q1) / divisor, (g1 * qq - gq * q1) / divisor
    inverse = reciprocal(unit)
    new_scale = np.rint(np.clip(scale + step_more * inverse, np.float32(0), np.float32(255)))
    new_offset = np.rint(np.clip(offset + center_more * inverse / eight, np.float32(-127), np.float32(127)))
    step, center = unit * (new_scale - scale), unit * ((new_offset - offset) * eight)
    slope = step * gq + center * g1
    bend = step * step * qq + two * (step * center) * q1 + center * center * total
    better = (spread > 0) & (two * slope - bend > 0)
    return np.where(better, new_scale, scale), np.where(better, new_offset, offset)


def _squared_error(target: F32, step: F32, center: F32, weights: F32) -> F32:
    inverse, total = reciprocal(step), np.zeros_like(step)
    for column, w in zip(target, weights, strict=True):
        wrong = column - center
        wrong = wrong - step * np.rint(np.clip(wrong * inverse, np.float32(-8), np.float32(7)))
        total = total + wrong * wrong * w
    return total

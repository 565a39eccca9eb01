"""Scales of groups of weights with the least weighted squared error, for the encoders of GGUF types.

Weights come as columns, [weights of a group, groups], so that sums over a group are sums of long rows. A scale starts
from several divisions of the group's range; each is improved by rounding the weights to it and solving for the scale
that fits these codes best.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
_PASSES = 3


def inverse(scale: Float32) -> Float32:
    """1 / scale, and 0 for a scale of 0; call under `np.errstate`."""
    found: Float32 = np.where(scale == 0, np.float32(0), 1 / scale)
    return found


def float16(values: Float32) -> Float32:
    """Rounded to float16."""
    single: Float32 = values.astype(np.float16).astype(np.float32)
    return single


def ratio(part: Float32, whole: Float32) -> Float32:
    """part / whole, and 0 where the whole is not positive; call under `np.errstate`."""
    found: Float32 = np.where(whole > 0, part / whole, np.float32(0))
    return found


def rounded(columns: Float32, step: Float32, base: Float32 | np.float32, bounds: tuple[int, int]) -> Float32:
    """The codes nearest to (columns - base) / step, whole numbers within the bounds."""
    scale = inverse(step)
    codes = columns * scale
    if isinstance(base, np.ndarray):
        codes -= base * scale
    np.rint(codes, out=codes)
    np.clip(codes, *map(np.float32, bounds), out=codes)
    return codes


def importance(columns: Float32) -> Float32:
    """How much the squared error of each weight counts, in the shape of columns.

    The larger weights of a group count more, as in llama-quantize: in `q4_k_m` that brought the mean divergence of a
    model's outputs down by 8 % (within 1.4 standard errors), though the plain squared error grew. The group's root mean
    square keeps the small ones, which are many, from being given up.
    """
    size = np.abs(columns)
    size += np.sqrt(products(columns, columns) / np.float32(len(columns)))
    return size


def squared_error(columns: Float32, counts: Float32, codes: Float32, step: Float32, base: Float32) -> Float32:
    """Sum of (step * code + base - column)^2 of each group, weighted with counts."""
    off = codes * step
    off += base
    off -= columns
    return products(off * off, counts)


def products(first: Float32, second: Float32) -> Float32:
    """The sum of products of each group."""
    total: Float32 = np.einsum("ij,ij->j", first, second)
    return total


def symmetric_steps(columns: Float32, counts: Float32, half: int, starts: Sequence[float]) -> Float32:
    """Steps for codes -half .. half - 1, [groups]; the extreme weight has the sign of the end with one code more.

    Args:
        counts: `importance` of the columns.
        starts: codes that the extreme weight is divided into to begin with.
    """
    low, high = columns.min(axis=0), columns.max(axis=0)
    extreme = np.where(high > -low, high, low)
    zero, weighted = np.float32(0), counts * columns
    best: Float32 = np.zeros_like(extreme)
    gain = np.full_like(extreme, -1)
    for start in starts:
        step = extreme / np.float32(-start)
        for _ in range(_PASSES):
            codes = rounded(columns, step, zero, (-half, half - 1))
            along, norm = products(codes, weighted), products(codes * codes, counts)
            step = ratio(along, norm)
        found = step * along
        best, gain = np.where(found > gain, step, best), np.maximum(found, gain)
    return best


def affine_steps(
    columns: Float32, counts: Float32, top: int, starts: Sequence[float], *, at_most_zero: bool = False
) -> tuple[Float32, Float32]:
    """Steps and bases for codes 0 .. top, each [groups].

    Args:
        counts: `importance` of the columns.
        starts: codes that a group's range is divided into to begin with.
        at_most_zero: whether the base has to be.
    """
    low, high = columns.min(axis=0), columns.max(axis=0)
    if at_most_zero:
        low = np.minimum(low, np.float32(0))
    count, zero, weighted = counts.sum(axis=0), np.float32(0), counts * columns
    total, span = weighted.sum(axis=0), high - low
    best_step, best_base, gain = np.zeros_like(span), low, np.full_like(span, -np.inf)
    for start in starts:
        step = span / np.float32(start)
        base = low + (span - step * np.float32(top)) * np.float32(0.5)
        if at_most_zero:
            base = np.minimum(base, zero)
        for _ in range(_PASSES):
            codes = rounded(columns, step, base, (0, top))
            first, along, second = products(codes, counts), products(codes, weighted), products(codes * codes, counts)
            step = ratio(count * along - first * total, count * second - first * first)
            base = ratio(total - step * first, count)
            if at_most_zero:
                step, base = np.where(base > 0, ratio(along, second), step), np.minimum(base, zero)
        # What the fit takes away from the sum of squares.
        found = 2 * (step * along + base * total)
        found -= step * step * second + 2 * step * base * first + count * base * base
        better = found > gain
        gain = np.where(better, found, gain)
        best_step, best_base = np.where(better, step, best_step), np.where(better, base, best_base)
    return best_step, best_base

"""Encoders of the K types: blocks of 256 weights whose groups have scales of a few bits.

The scales of groups come from `gguf_search`; here they become whole numbers. Rounding a scale moves its best codes, so
each group tries the neighboring whole numbers with codes rounded again, and at last the block's own scales are fitted
to all codes. Layouts are in `gguf_quants`.
"""

from __future__ import annotations

import numpy as np

from glm4.checkpoints.gguf_quants import Blocks, UInt8
from glm4.checkpoints.gguf_search import (
    Float32,
    affine_steps,
    float16,
    importance,
    inverse,
    products,
    ratio,
    rounded,
    squared_error,
    symmetric_steps,
)

_GROUPS, _GROUP = 8, 32
_NIBBLE = np.uint8(15)
_MAX_SCALE = np.float32(63)
# By the largest code.
_STARTS = {15: (13.25, 14.0, 14.5, 15.0, 15.5, 16.0), 31: (28.5, 30.0, 31.5), 63: (30.5, 31.5, 32.5)}
_NEIGHBORS = (-1, 0, 1)
_PASSES = 1


def encode_q4_k(weights: Float32, blocks: Blocks) -> None:
    """Fill blocks of codes 0..15."""
    codes = _encode_affine(weights, blocks, 15)
    blocks["q"] = _nibble_rows(codes.reshape(-1, 4, 2, _GROUP)).reshape(len(blocks), -1)


def encode_q5_k(weights: Float32, blocks: Blocks) -> None:
    """Fill blocks of codes 0..31."""
    codes = _encode_affine(weights, blocks, 31)
    blocks["q"] = _nibble_rows((codes & _NIBBLE).reshape(-1, 4, 2, _GROUP)).reshape(len(blocks), -1)
    # Bit g of byte i belongs to weight i of group g.
    blocks["h"] = np.packbits(codes > _NIBBLE, axis=1, bitorder="little")[:, 0]


def encode_q6_k(weights: Float32, blocks: Blocks) -> None:
    """Fill blocks of codes -32..31, in groups of 16 with signed scales of 8 bits."""
    count = len(blocks)
    columns = np.ascontiguousarray(weights.reshape(-1, 16).T)
    counts = importance(columns)
    steps = symmetric_steps(columns, counts, 32, _STARTS[63])
    low, high = (find(steps.reshape(count, 16), axis=1) for find in (np.min, np.max))
    unit = float16(np.where(high > -low, high, low) / np.float32(-128))
    scales = np.clip(np.rint(steps * inverse(np.repeat(unit, 16))), np.float32(-128), np.float32(127))
    for _ in range(2):  # the second time with the unit that fits the codes of the first
        codes = rounded(columns, scales * np.repeat(unit, 16), np.float32(0), (-32, 31))
        weighted = codes * counts
        along, norm = scales * products(weighted, columns), scales * scales * products(weighted, codes)
        used, unit = unit, float16(ratio(along.reshape(count, 16).sum(axis=1), norm.reshape(count, 16).sum(axis=1)))
    blocks["d"], blocks["s"] = used, scales.reshape(count, 16)
    found = (codes + np.float32(32)).astype(np.uint8).T.reshape(count, 2, 4, 32)
    blocks["q"] = _nibble_rows((found & _NIBBLE).reshape(count, 2, 2, 64)).reshape(count, -1)
    pairs = found >> 4
    blocks["h"] = (pairs[:, :, 0] | pairs[:, :, 1] << 2 | pairs[:, :, 2] << 4 | pairs[:, :, 3] << 6).reshape(count, -1)


def _encode_affine(weights: Float32, blocks: Blocks, top: int) -> UInt8:
    """Fill the scales and mins of blocks, and return the codes 0..top, uint8 [n, 8, 32]."""
    count = len(blocks)
    columns = np.ascontiguousarray(weights.reshape(-1, _GROUP).T)
    counts = importance(columns)
    step, base = affine_steps(columns, counts, top, _STARTS[top], at_most_zero=True)
    unit = _unit(step.reshape(count, _GROUPS))
    unit_min = _unit(-base.reshape(count, _GROUPS))
    units = np.repeat(unit, _GROUPS), np.repeat(unit_min, _GROUPS)
    scales, mins = _whole_scales(columns, counts, step, base, *units, top)
    codes = rounded(columns, scales * units[0], -mins * units[1], (0, top))
    unit, unit_min, codes = _fitted_units(columns, counts, codes, scales, mins, unit, unit_min, top)
    blocks["d"], blocks["dmin"] = unit, unit_min
    blocks["s"] = _six_bits(scales.reshape(count, _GROUPS), mins.reshape(count, _GROUPS))
    found: UInt8 = codes.T.astype(np.uint8).reshape(count, _GROUPS, _GROUP)
    return found


def _unit(values: Float32) -> Float32:
    """The float16 number whose 63-fold is the largest value of each block, as float32."""
    return float16(values.max(axis=1) / _MAX_SCALE)


def _whole_scales(
    columns: Float32, counts: Float32, step: Float32, base: Float32, unit: Float32, unit_min: Float32, top: int
) -> tuple[Float32, Float32]:
    """Scales and mins 0..63 of each group, the best of the neighbors of the exact scale."""
    count = counts.sum(axis=0)
    mean = ratio(products(columns, counts), count)
    near = np.rint(step * inverse(unit))
    least = np.full_like(step, np.inf)
    best = near, near
    inverse_min, zero = inverse(unit_min), np.float32(0)
    for offset in _NEIGHBORS:
        scale = np.clip(near + np.float32(offset), zero, _MAX_SCALE)
        found = scale * unit
        low = base
        for _ in range(_PASSES):
            codes = rounded(columns, found, low, (0, top))
            minimum = np.clip(
                np.rint((found * ratio(products(codes, counts), count) - mean) * inverse_min), zero, _MAX_SCALE
            )
            low = -minimum * unit_min
        codes = rounded(columns, found, low, (0, top))
        error = squared_error(columns, counts, codes, found, low)
        better = error < least
        least = np.where(better, error, least)
        best = np.where(better, scale, best[0]), np.where(better, minimum, best[1])
    return best


def _fitted_units(
    columns: Float32,
    counts: Float32,
    codes: Float32,
    scales: Float32,
    mins: Float32,
    unit: Float32,
    unit_min: Float32,
    top: int,
) -> tuple[Float32, Float32, Float32]:
    """d and dmin of each block that fit its codes best, and codes for them; the old ones where they are better."""

    def per_block(values: Float32) -> Float32:
        total: Float32 = values.reshape(-1, _GROUPS).sum(axis=1)
        return total

    weighted, total = codes * counts, products(columns, counts)
    first, along, second = weighted.sum(axis=0), products(weighted, columns), products(weighted, codes)
    a, b, c = (
        per_block(scales * scales * second),
        per_block(scales * mins * first),
        per_block(mins * mins * counts.sum(axis=0)),
    )
    p, q = per_block(scales * along), per_block(mins * total)
    spread = a * c - b * b
    fitted = np.where(spread > 0, (p * c - q * b) / spread, ratio(p, a))
    fitted_min = np.where(spread > 0, (p * b - q * a) / spread, np.float32(0))
    pairs = [(unit, unit_min), (float16(fitted), float16(fitted_min))]
    tries = []
    for d, dmin in pairs:
        step, base = scales * np.repeat(d, _GROUPS), -mins * np.repeat(dmin, _GROUPS)
        again = rounded(columns, step, base, (0, top))
        tries.append((again, per_block(squared_error(columns, counts, again, step, base))))
    better = tries[1][1] < tries[0][1]
    return (
        np.where(better, pairs[1][0], unit),
        np.where(better, pairs[1][1], unit_min),
        np.where(np.repeat(better, _GROUPS), tries[1][0], tries[0][0]),
    )


def _six_bits(scales: Float32, mins: Float32) -> UInt8:
    """uint8 [n, 12]: eight pairs of scale and min, laid out as `gguf_quants` reads them."""
    s, m = scales.astype(np.uint8), mins.astype(np.uint8)
    low = [s[:, :4] | (s[:, 4:] >> 4) << 6, m[:, :4] | (m[:, 4:] >> 4) << 6]
    packed: UInt8 = np.concatenate([*low, (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4], axis=1)
    return packed


def _nibble_rows(codes: UInt8) -> UInt8:
    """uint8 [..., 2, k]: the first row in the low nibbles, the second in the high ones; [..., k]."""
    packed: UInt8 = codes[..., 0, :] | np.left_shift(codes[..., 1, :], 4, dtype=np.uint8)
    return packed

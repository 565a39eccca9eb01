"""Encoders of GGUF tensor types, the counterpart of the decoders in `gguf_quants`.

F16, BF16 and Q8_0 have the bytes of the ggml reference, which fixes them by one rule. The types of 4 to 6 bits take the
scales with the least weighted squared error that a search finds (`gguf_search`), which the reference does not look for
in Q4_0 to Q5_1; the K types are in `gguf_k_encoders`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.gguf_k_encoders import encode_q4_k, encode_q5_k, encode_q6_k
from glm4.checkpoints.gguf_quants import BLOCK_FORMATS, BlockFormat, Blocks, Float32, UInt8
from glm4.checkpoints.gguf_search import affine_steps, float16, importance, inverse, rounded, symmetric_steps
from glm4.kernels.formats import COL_GROUP
from glm4.kernels.group_codes import GroupCodes
from glm4.system.cpus import default_num_threads

# Weights encoded at a time, so that the intermediate arrays stay in the processor's cache.
_CHUNK_WEIGHTS = 65536
_NIBBLE = np.uint8(15)


@dataclass(frozen=True)
class Encoding:
    """A tensor type that can be written.

    Attributes:
        number: ggml's number of the type.
        encode: (weights float32 [n, block_format.weights], blocks [n]) -> None; fills the blocks.
    """

    number: int
    encode: Callable[[Float32, Blocks], None]

    @property
    def block_format(self) -> BlockFormat:
        """How the decoder sees it."""
        return BLOCK_FORMATS[self.number]

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of that shape, whose last axis is whole blocks."""
        return int(np.prod(shape, dtype=np.int64)) // self.block_format.weights * self.block_format.nbytes


def quantize(weights: Float32, encoding: Encoding) -> UInt8:
    """Encodes whole rows.

    Args:
        weights: float32 [..., K], K a multiple of the block's weights; finite, contiguous.

    Returns:
        uint8 [encoding.nbytes(weights.shape)]. A number beyond the type's range (float16's, 65504) becomes infinite.
    """
    block_format = encoding.block_format
    rows = weights.reshape(-1, block_format.weights)
    blocks = np.empty(len(rows), block_format.block)
    step = max(1, _CHUNK_WEIGHTS // block_format.weights)

    def encode(start: int) -> None:
        # A scale may be 0 or overflow float16.
        with np.errstate(all="ignore"):
            encoding.encode(rows[start : start + step], blocks[start : start + step])

    with ThreadPoolExecutor(default_num_threads()) as pool:  # NumPy computes without the interpreter's lock
        deque(pool.map(encode, range(0, len(rows), step)), maxlen=0)
    return blocks.view(np.uint8)


def q4_1_blocks(matrix: GroupCodes) -> UInt8:
    """Codes as Q4_1, uint8 [rows, bytes of a row]. Float16 rounds step and base, the base so that the middle stays."""
    blocks = np.empty(matrix.step.shape, BLOCK_FORMATS[3].block)
    blocks["d"] = matrix.step
    blocks["m"] = matrix.base + (matrix.step - blocks["d"]) * np.float32(7.5)
    blocks["q"] = _nibble_pairs(matrix.codes.reshape(-1, COL_GROUP)).reshape(*matrix.step.shape, -1)
    return blocks.view(np.uint8)


def q8_0_blocks(quants: NDArray[np.int8], scales: NDArray[np.float16]) -> UInt8:
    """Values [N, K] with a scale for every 32 columns as Q8_0; uint8 [N, bytes of a row]."""
    blocks = np.empty(scales.shape, BLOCK_FORMATS[8].block)
    blocks["d"], blocks["q"] = scales, quants.reshape(*scales.shape, COL_GROUP)
    return blocks.view(np.uint8)


def _encode_plain(weights: Float32, blocks: Blocks) -> None:
    blocks["q"] = weights


def _encode_bf16(weights: Float32, blocks: Blocks) -> None:
    """Rounds to nearest, ties to even."""
    bits = weights.view(np.uint32)
    blocks["q"] = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16


def _encode_q8_0(weights: Float32, blocks: Blocks) -> None:
    step = np.abs(weights).max(axis=1, keepdims=True) / np.float32(127)
    scaled = weights * inverse(step)
    size = np.abs(scaled)
    whole = np.floor(size)
    whole += np.floor(2 * (size - whole))  # halves away from zero
    blocks["d"], blocks["q"] = step[:, 0], np.sign(scaled) * whole


def _encode_q4_0(weights: Float32, blocks: Blocks) -> None:
    blocks["q"] = _nibble_pairs(_encode_symmetric(weights, blocks, 8, (6.5, 7.0, 7.5, 8.0, 8.6)))


def _encode_q5_0(weights: Float32, blocks: Blocks) -> None:
    codes = _encode_symmetric(weights, blocks, 16, (14.4, 15.2, 16.0, 16.8))
    blocks["q"], blocks["h"] = _nibble_pairs(codes & _NIBBLE), _fifth_bits(codes)


def _encode_q4_1(weights: Float32, blocks: Blocks) -> None:
    blocks["q"] = _nibble_pairs(_encode_affine(weights, blocks, 15, (13.25, 14.0, 14.5, 15.0, 16.0)))


def _encode_q5_1(weights: Float32, blocks: Blocks) -> None:
    codes = _encode_affine(weights, blocks, 31, (28.5, 30.0, 31.5))
    blocks["q"], blocks["h"] = _nibble_pairs(codes & _NIBBLE), _fifth_bits(codes)


def _encode_symmetric(weights: Float32, blocks: Blocks, half: int, starts: tuple[float, ...]) -> UInt8:
    """Fill the scales, and return codes 0 .. 2 half - 1, uint8 [n, 32]."""
    columns = np.ascontiguousarray(weights.T)
    step = float16(symmetric_steps(columns, importance(columns), half, starts))
    blocks["d"] = step
    codes = rounded(columns, step, np.float32(0), (-half, half - 1))
    codes += np.float32(half)
    return np.ascontiguousarray(codes.T.astype(np.uint8))


def _encode_affine(weights: Float32, blocks: Blocks, top: int, starts: tuple[float, ...]) -> UInt8:
    """Fill the scales and bases, and return codes 0 .. top, uint8 [n, 32]."""
    columns = np.ascontiguousarray(weights.T)
    step, base = map(float16, affine_steps(columns, importance(columns), top, starts))
    blocks["d"], blocks["m"] = step, base
    return np.ascontiguousarray(rounded(columns, step, base, (0, top)).T.astype(np.uint8))


def _nibble_pairs(codes: UInt8) -> UInt8:
    """uint8 [n, 32] codes 0..15 -> [n, 16]: the first half in the low nibbles, the second in the high ones."""
    pairs: UInt8 = codes[:, :16] | np.left_shift(codes[:, 16:], 4, dtype=np.uint8)
    return pairs


def _fifth_bits(codes: UInt8) -> UInt8:
    """uint8 [n, 32] codes 0..31 -> [n, 4]: bit i of the word is the highest of code i."""
    return np.packbits(codes > _NIBBLE, axis=1, bitorder="little")


ENCODINGS: Mapping[str, Encoding] = MappingProxyType(
    {
        "f32": Encoding(0, _encode_plain),
        "f16": Encoding(1, _encode_plain),
        "bf16": Encoding(30, _encode_bf16),
        "q8_0": Encoding(8, _encode_q8_0),
        "q6_k": Encoding(14, encode_q6_k),
        "q5_k": Encoding(13, encode_q5_k),
        "q5_1": Encoding(7, _encode_q5_1),
        "q5_0": Encoding(6, _encode_q5_0),
        "q4_k": Encoding(12, encode_q4_k),
        "q4_1": Encoding(3, _encode_q4_1),
        "q4_0": Encoding(2, _encode_q4_0),
    }
)

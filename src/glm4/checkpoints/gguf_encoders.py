"""Encoders of GGUF tensor types, the counterpart of the decoders in `gguf_quants`.

The arithmetic (including the order of float32 operations) is that of the ggml reference, so the bytes are identical to
those of the `gguf` package and, for the types it has in common with them, of llama.cpp's plain quantization.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.gguf_quants import BLOCK_FORMATS, BlockFormat, Blocks, Float32, UInt8

# Weights encoded at a time, so that the intermediate arrays stay in the processor's cache.
_CHUNK_WEIGHTS = 65536


@dataclass(frozen=True)
class Encoding:
    """A tensor type that can be written.

    Attributes:
        number: ggml's number of the type.
        file_type: ggml's number for files whose matrices mostly have it (`general.file_type`).
        encode: (weights float32 [n, block_format.weights], blocks [n]) -> None; fills the blocks.
    """

    number: int
    file_type: int
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
    # A scale may be 0 or overflow float16.
    with np.errstate(all="ignore"):
        for start in range(0, len(rows), step):
            encoding.encode(rows[start : start + step], blocks[start : start + step])
    return blocks.view(np.uint8)


def _encode_plain(weights: Float32, blocks: Blocks) -> None:
    blocks["q"] = weights


def _encode_bf16(weights: Float32, blocks: Blocks) -> None:
    """Rounds to nearest, ties to even."""
    bits = weights.view(np.uint32)
    blocks["q"] = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16


def _inverse(step: Float32) -> Float32:
    inverse: Float32 = np.where(step == 0, np.float32(0), 1 / step)
    return inverse


def _encode_q8_0(weights: Float32, blocks: Blocks) -> None:
    step = np.abs(weights).max(axis=1, keepdims=True) / np.float32(127)
    scaled = weights * _inverse(step)
    size = np.abs(scaled)
    whole = np.floor(size)
    whole += np.floor(2 * (size - whole))  # halves away from zero
    blocks["d"], blocks["q"] = step[:, 0], np.sign(scaled) * whole


def _encode_q4_0(weights: Float32, blocks: Blocks) -> None:
    """The weight of the greatest magnitude becomes -8 steps."""
    at = np.abs(weights).argmax(axis=1, keepdims=True)
    step = np.take_along_axis(weights, at, axis=1) / np.float32(-8)
    blocks["d"] = step[:, 0]
    blocks["q"] = _nibble_pairs(weights * _inverse(step) + np.float32(8.5))


def _encode_q4_1(weights: Float32, blocks: Blocks) -> None:
    least = weights.min(axis=1, keepdims=True)
    step = (weights.max(axis=1, keepdims=True) - least) / np.float32(15)
    blocks["d"], blocks["m"] = step[:, 0], least[:, 0]
    blocks["q"] = _nibble_pairs((weights - least) * _inverse(step) + np.float32(0.5))


def _nibble_pairs(codes: NDArray[Any]) -> UInt8:
    """[n, 32] codes, rounded down -> uint8 [n, 16]: the first half in the low nibbles, the second in the high ones."""
    whole: UInt8 = codes.astype(np.uint8).clip(0, 15)
    pairs: UInt8 = whole[:, :16] | np.left_shift(whole[:, 16:], 4, dtype=np.uint8)
    return pairs


ENCODINGS: Mapping[str, Encoding] = MappingProxyType(
    {
        "f32": Encoding(0, 0, _encode_plain),
        "f16": Encoding(1, 1, _encode_plain),
        "bf16": Encoding(30, 32, _encode_bf16),
        "q8_0": Encoding(8, 7, _encode_q8_0),
        "q4_1": Encoding(3, 3, _encode_q4_1),
        "q4_0": Encoding(2, 2, _encode_q4_0),
    }
)

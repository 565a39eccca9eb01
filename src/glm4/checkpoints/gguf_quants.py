"""Block formats of GGUF tensors, and their dequantization to float32.

Every format stores a row as blocks of 32 or 256 weights with shared scales. The arithmetic (including the order of
float32 products) is that of the ggml reference, so results are bit-identical. Decoders work on chunks that stay in
the processor's cache; a chunk's decoder writes directly into the output.

Layouts, little-endian, as in ggml's `ggml-common.h`:
    Q4_0  d f16, 16 bytes of nibbles                         w = d (q - 8)
    Q4_1  d f16, m f16, 16 bytes of nibbles                  w = d q + m
    Q5_0  d f16, 4 bytes of fifth bits, 16 bytes of nibbles  w = d (q - 16)
    Q5_1  d f16, m f16, 4 bytes, 16 bytes                    w = d q + m
    Q8_0  d f16, 32 int8                                     w = d q
    Q4_K  d f16, dmin f16, 12 bytes of 6-bit scales and mins, 128 bytes of nibbles     w = (d s) q - (dmin m)
    Q5_K  the same with 32 bytes of fifth bits before the nibbles
    Q6_K  128 bytes of low nibbles, 64 bytes of high bit pairs, 16 int8 scales, d f16   w = (d s) (q - 32)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.kernels.formats import COL_GROUP
from glm4.kernels.group_codes import GroupCodes

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
Blocks = NDArray[np.void]
CodesDecoder = Callable[[Blocks], tuple[UInt8, Float32, Float32]]

# Weights decoded at a time: 256 KiB of float32, which a second-level cache holds together with the packed bytes.
_CHUNK_WEIGHTS = 65536


@dataclass(frozen=True)
class BlockFormat:
    """One GGUF tensor type.

    Attributes:
        name: ggml's name, "Q4_K".
        weights: weights per block.
        block: NumPy structure of one block; its size is the block's bytes.
        decode: (blocks [n], out float32 [n, weights]) -> None.
        codes: blocks [n] -> (codes uint8 [n, weights], step and base float32 [n, weights / 32]) for the types with a
            4-bit code per weight, else None. step * code + base is bit for bit what `decode` gives.
    """

    name: str
    weights: int
    block: np.dtype[np.void]
    decode: Callable[[Blocks, Float32], None]
    codes: CodesDecoder | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of one block."""
        return int(self.block.itemsize)


def dequantize(packed: UInt8, block_format: BlockFormat, out: Float32) -> None:
    """Decodes a run of whole blocks.

    Args:
        packed: uint8 [n_blocks * block_format.nbytes], contiguous.
        block_format: a value of `BLOCK_FORMATS`.
        out: float32 [n_blocks * block_format.weights], contiguous; overwritten.
    """
    blocks: Blocks = packed.view(block_format.block)
    rows = out.reshape(len(blocks), block_format.weights)
    step = max(1, _CHUNK_WEIGHTS // block_format.weights)
    # A corrupt scale may be infinite or NaN; that is the file's value, not an arithmetic error here.
    with np.errstate(all="ignore"):
        for start in range(0, len(blocks), step):
            block_format.decode(blocks[start : start + step], rows[start : start + step])


def read_codes(blocks: Blocks, decode: CodesDecoder, rows: int) -> GroupCodes:
    """The codes of a run of whole rows, unchanged.

    Args:
        blocks: `rows` rows of whole blocks, contiguous.
        decode: `codes` of their format.
    """
    # As in `dequantize`: packing finds non-finite values.
    with np.errstate(all="ignore"):
        codes, step, base = decode(blocks)
    groups = codes.size // rows // COL_GROUP
    return GroupCodes(codes.reshape(rows, -1), step.reshape(rows, groups), base.reshape(rows, groups))


def _nibbles(packed: UInt8) -> UInt8:
    """uint8 [..., k] of nibble pairs -> uint8 [..., 2, k]: all low nibbles, then all high ones."""
    out = np.empty((*packed.shape[:-1], 2, packed.shape[-1]), np.uint8)
    np.bitwise_and(packed, 15, out=out[..., 0, :])
    np.right_shift(packed, 4, out=out[..., 1, :])
    return out


def _scaled(quants: NDArray[Any], scale: Float32, out: Float32) -> None:
    """out = scale * quants, rounded once; `scale` has shape [..., 1]."""
    out[...] = quants
    np.multiply(out, scale, out=out)


def _column(blocks: Blocks, name: str) -> Float32:
    """A float16 field of every block as float32 [n, 1]."""
    return blocks[name].astype(np.float32)[:, None]


def _decode_plain(blocks: Blocks, out: Float32) -> None:
    out[...] = blocks["q"]


def _decode_bf16(blocks: Blocks, out: Float32) -> None:
    np.left_shift(blocks["q"], 16, out=out.view(np.uint32), dtype=np.uint32)


def _decode_q8_0(blocks: Blocks, out: Float32) -> None:
    _scaled(blocks["q"], _column(blocks, "d"), out)


def _decode_q4_0(blocks: Blocks, out: Float32) -> None:
    quants = _nibbles(blocks["q"]).reshape(out.shape).view(np.int8)
    quants -= 8
    _scaled(quants, _column(blocks, "d"), out)


def _decode_q4_1(blocks: Blocks, out: Float32) -> None:
    _scaled(_nibbles(blocks["q"]).reshape(out.shape), _column(blocks, "d"), out)
    out += _column(blocks, "m")


def _codes_q4_0(blocks: Blocks) -> tuple[UInt8, Float32, Float32]:
    step = _column(blocks, "d")
    return _nibbles(blocks["q"]), step, step * np.float32(-8)


def _codes_q4_1(blocks: Blocks) -> tuple[UInt8, Float32, Float32]:
    return _nibbles(blocks["q"]), _column(blocks, "d"), _column(blocks, "m")


def _with_fifth_bits(blocks: Blocks) -> UInt8:
    """uint8 [n, 32]: the nibbles of a Q5_0 or Q5_1 block with bit i of the fifth-bit word added to weight i."""
    quants = _nibbles(blocks["q"]).reshape(len(blocks), 32)
    fifth = np.unpackbits(np.ascontiguousarray(blocks["h"]), axis=-1, bitorder="little")
    np.left_shift(fifth, 4, out=fifth)
    np.bitwise_or(quants, fifth, out=quants)
    return quants


def _decode_q5_0(blocks: Blocks, out: Float32) -> None:
    quants = _with_fifth_bits(blocks).view(np.int8)
    quants -= 16
    _scaled(quants, _column(blocks, "d"), out)


def _decode_q5_1(blocks: Blocks, out: Float32) -> None:
    _scaled(_with_fifth_bits(blocks), _column(blocks, "d"), out)
    out += _column(blocks, "m")


def _scales_and_mins(blocks: Blocks) -> tuple[Float32, Float32]:
    """(d * scale, dmin * min), each float32 [n, 8, 1], from the 12 bytes that hold eight 6-bit pairs.

    Bytes 0-3 hold scales 0-3, bytes 4-7 mins 0-3 (six bits each); bytes 8-11 hold the low nibbles of scales and mins
    4-7, whose two high bits sit on top of bytes 0-3 and 4-7.
    """
    packed = blocks["s"]
    low_scales, low_mins, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low_scales & 63, (high & 15) | ((low_scales >> 2) & 48)], axis=-1)
    mins = np.concatenate([low_mins & 63, (high >> 4) | ((low_mins >> 2) & 48)], axis=-1)
    scaled: Float32 = _column(blocks, "d") * scales.astype(np.float32)
    minimum: Float32 = _column(blocks, "dmin") * mins.astype(np.float32)
    return scaled[..., None], minimum[..., None]


def _decode_q4_k(blocks: Blocks, out: Float32) -> None:
    scale, minimum = _scales_and_mins(blocks)
    groups = out.reshape(len(blocks), 8, 32)
    quants = _nibbles(blocks["q"].reshape(-1, 4, 32))
    _scaled(quants.reshape(groups.shape), scale, groups)
    groups -= minimum


def _codes_q4_k(blocks: Blocks) -> tuple[UInt8, Float32, Float32]:
    scale, minimum = _scales_and_mins(blocks)
    return _nibbles(blocks["q"].reshape(-1, 4, 32)), scale, -minimum


def _decode_q5_k(blocks: Blocks, out: Float32) -> None:
    scale, minimum = _scales_and_mins(blocks)
    groups = out.reshape(len(blocks), 8, 32)
    quants = _nibbles(blocks["q"].reshape(-1, 4, 32)).reshape(groups.shape)
    fifth = np.empty_like(quants)  # bit g of byte i belongs to weight i of group g; it becomes the value 16
    for group in range(8):
        np.right_shift(blocks["h"], group, out=fifth[:, group])
    fifth &= 1
    fifth <<= 4
    quants |= fifth
    _scaled(quants, scale, groups)
    groups -= minimum


def _decode_q6_k(blocks: Blocks, out: Float32) -> None:
    scale = _column(blocks, "d") * blocks["s"].astype(np.float32)
    # Each half of a block: 64 bytes of low nibbles and 32 bytes of bit pairs for four groups of 32 weights.
    quants = _nibbles(blocks["q"].reshape(-1, 2, 64)).reshape(len(blocks), 2, 4, 32)
    pairs = np.empty_like(quants)
    high = blocks["h"].reshape(-1, 2, 32)
    for group in range(4):
        np.right_shift(high, 2 * group, out=pairs[:, :, group])
    pairs &= 3
    pairs <<= 4
    quants |= pairs
    signed = quants.view(np.int8)
    signed -= 32
    groups = out.reshape(len(blocks), 16, 16)
    _scaled(signed.reshape(groups.shape), scale[..., None], groups)


def _row(
    name: str,
    weights: int,
    decode: Callable[[Blocks, Float32], None],
    *fields: tuple[str, str, int],
    codes: CodesDecoder | None = None,
) -> BlockFormat:
    block = np.dtype([(key, dtype) if count == 0 else (key, dtype, (count,)) for key, dtype, count in fields])
    return BlockFormat(name, weights, block, decode, codes)


_D, _DMIN, _M = ("d", "<f2", 0), ("dmin", "<f2", 0), ("m", "<f2", 0)

# ggml's numbers of the tensor types we decode.
BLOCK_FORMATS: Mapping[int, BlockFormat] = MappingProxyType(
    {
        0: _row("F32", 1, _decode_plain, ("q", "<f4", 1)),
        1: _row("F16", 1, _decode_plain, ("q", "<f2", 1)),
        2: _row("Q4_0", 32, _decode_q4_0, _D, ("q", "u1", 16), codes=_codes_q4_0),
        3: _row("Q4_1", 32, _decode_q4_1, _D, _M, ("q", "u1", 16), codes=_codes_q4_1),
        6: _row("Q5_0", 32, _decode_q5_0, _D, ("h", "u1", 4), ("q", "u1", 16)),
        7: _row("Q5_1", 32, _decode_q5_1, _D, _M, ("h", "u1", 4), ("q", "u1", 16)),
        8: _row("Q8_0", 32, _decode_q8_0, _D, ("q", "i1", 32)),
        12: _row("Q4_K", 256, _decode_q4_k, _D, _DMIN, ("s", "u1", 12), ("q", "u1", 128), codes=_codes_q4_k),
        13: _row("Q5_K", 256, _decode_q5_k, _D, _DMIN, ("s", "u1", 12), ("h", "u1", 32), ("q", "u1", 128)),
        14: _row("Q6_K", 256, _decode_q6_k, ("q", "u1", 128), ("h", "u1", 64), ("s", "i1", 16), _D),
        30: _row("BF16", 1, _decode_bf16, ("q", "<u2", 1)),
    }
)

# Names of the other types, for the error message.
OTHER_TYPES: Mapping[int, str] = MappingProxyType(
    {
        9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
        20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
        29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
    }
)  # fmt: skip

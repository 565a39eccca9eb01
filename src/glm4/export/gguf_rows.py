"""Rows of a checkpoint's matrices for a GGUF file: numbers to be encoded, or blocks that need no rounding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.checkpoint import Checkpoint
from glm4.checkpoints.gguf_encoders import q4_1_blocks, q8_0_blocks
from glm4.checkpoints.packed_format import PackedSource
from glm4.checkpoints.tensor_source import Float32
from glm4.kernels.formats import COL_GROUP
from glm4.kernels.group_codes import unpack_codes, unpack_int8, unpack_scales
from glm4.model.tensors import FREQUENT_HEAD, FREQUENT_TOKENS, head_name

UInt8 = NDArray[np.uint8]
# Of a weight, next to the largest one of its group: float16 rounds step and base by at most 2^-11 each. What is small
# beside the largest of the matrix may be off by more.
_ROUNDING, _NEGLIGIBLE = 2.0**-9, 2.0**-12


def stored_type(checkpoint: Checkpoint, name: str) -> str | None:
    """ggml's name of the type that holds a matrix as it is in the checkpoint, None if there is none.

    That is the type of a GGUF file's own blocks; Q8_0 for packed int8; Q4_1 for packed int4 that `fits_float16`.
    """
    shape, packed = checkpoint.shape(name), checkpoint.packed
    if len(shape) != 2:
        return None
    if packed is None:
        return checkpoint.block_type(name)
    if shape[1] % COL_GROUP or (name == head_name(checkpoint.config) and _frequent(checkpoint)):
        return None
    return {"int4": "Q4_1", "int8": "Q8_0"}.get(packed.precision.format_of(name))


def fits_float16(packed: PackedSource, name: str) -> bool:
    """Whether float16 holds the scales of an int4 matrix so well that no weight changes noticeably."""
    step, base = unpack_scales(packed.row_blocks(name, 0, packed.info(name).shape[0])[0])
    with np.errstate(over="ignore", invalid="ignore"):
        off = sum(factor * np.abs(x - x.astype(np.float16)) for factor, x in ((15, step), (1, base)))
    size = 15 * step + np.abs(base)
    return bool((off <= np.maximum(_ROUNDING * size, _NEGLIGIBLE * size.max())).all())


def stored_rows(checkpoint: Checkpoint, name: str, start: int, stop: int) -> UInt8:
    """Rows start..stop-1 of a matrix with a `stored_type`, as its blocks; uint8 [rows, bytes of a row]."""
    packed = checkpoint.packed
    if packed is None:
        return checkpoint.load_blocks(name, start, stop)
    weight, first = packed.row_blocks(name, start, stop)
    blocks = q4_1_blocks(unpack_codes(weight)) if weight.format == "int4" else q8_0_blocks(*unpack_int8(weight))
    return blocks[start - first : stop - first]


def float_rows(checkpoint: Checkpoint, name: str, start: int, stop: int) -> Float32:
    """Rows start..stop-1 of a tensor; those of the head's frequent tokens from their finer copy."""
    values = checkpoint.load_rows(name, start, stop)
    count = _frequent(checkpoint) if name == head_name(checkpoint.config) else 0
    if count:
        ids = checkpoint.source.read(FREQUENT_TOKENS).astype(np.int64)
        first, last = np.searchsorted(ids, (start, stop))
        if first < last:
            values[ids[first:last] - start] = checkpoint.source.read_rows(FREQUENT_HEAD, int(first), int(last))
    return values


def _frequent(checkpoint: Checkpoint) -> int:
    packed = checkpoint.packed
    return 0 if packed is None else packed.precision.extras.get("frequent_tokens", 0)

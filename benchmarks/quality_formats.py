"""The contenders of `quality.py`: what each weight format makes of a model's matrices.

llama.cpp's formats are judged by their dequantized weights. Q8_0, Q5_1, Q5_0 and Q4_0 are written out here in NumPy;
the k-quants need llama.cpp's own quantizer, from a build that is given with --llama.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.gguf_quants import BLOCK_FORMATS, dequantize
from glm4.model.config import ModelConfig

Float = NDArray[np.float32]

# ggml's number of each type, and bits per weight.
GGML_TYPES = {"Q4_0": 2, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}
BITS = {"Q4_0": 4.5, "Q5_0": 5.5, "Q5_1": 6.0, "Q8_0": 8.5, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625}
SUPER_BLOCK = 256
# What llama.cpp takes instead when a row is no multiple of 256.
FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def q8_0(w: Float) -> Float:
    """Q8_0: absmax / 127 per 32."""
    groups = w.reshape(-1, 32)
    d = np.abs(groups).max(axis=1, keepdims=True) / np.float32(127)
    inverse = np.divide(1, d, out=np.zeros_like(d), where=d > 0)
    q = groups * inverse
    q = np.trunc(q + np.copysign(np.float32(0.5), q))
    return np.asarray(q * d.astype(np.float16).astype(np.float32)).reshape(w.shape)


def _offset_format(w: Float, half: int) -> Float:
    """Q4_0 (half 8) and Q5_0 (half 16): the signed value of largest magnitude becomes -half."""
    groups = w.reshape(-1, 32)
    top = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)
    d = top / np.float32(-half)
    inverse = np.divide(1, d, out=np.zeros_like(d), where=d != 0)
    q = np.minimum(2 * half - 1, np.floor(groups * inverse + np.float32(half + 0.5))) - half
    return np.asarray(q * d.astype(np.float16).astype(np.float32), np.float32).reshape(w.shape)


def q4_0(w: Float) -> Float:
    """Q4_0."""
    return _offset_format(w, 8)


def q5_0(w: Float) -> Float:
    """Q5_0."""
    return _offset_format(w, 16)


def q5_1(w: Float) -> Float:
    """Q5_1: 31 steps from the smallest to the largest value of 32."""
    groups = w.reshape(-1, 32)
    low = groups.min(axis=1, keepdims=True)
    d = (groups.max(axis=1, keepdims=True) - low) / np.float32(31)
    inverse = np.divide(1, d, out=np.zeros_like(d), where=d > 0)
    q = np.minimum(31, np.floor((groups - low) * inverse + np.float32(0.5)))
    step, start = (x.astype(np.float16).astype(np.float32) for x in (d, low))
    return np.asarray(q * step + start, np.float32).reshape(w.shape)


PLAIN: dict[str, Callable[[Float], Float]] = {"Q8_0": q8_0, "Q5_1": q5_1, "Q5_0": q5_0, "Q4_0": q4_0}


class Ggml:
    """llama.cpp's quantizers."""

    def __init__(self, binaries: Path) -> None:
        self._library = ctypes.CDLL(str(binaries / "libggml-base.so"))
        self._quantize = self._library.ggml_quantize_chunk
        self._quantize.restype = ctypes.c_size_t
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self._quantize.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]

    def round_trip(self, w: Float, name: str) -> Float:
        """Quantised and dequantized; columns beyond the last super-block are padded with zeros."""
        block = BLOCK_FORMATS[GGML_TYPES[name]]
        cols = -(-w.shape[1] // block.weights) * block.weights
        padded = np.ascontiguousarray(np.pad(w, ((0, 0), (0, cols - w.shape[1]))))
        packed = np.empty(padded.size // block.weights * block.nbytes, np.uint8)
        number = GGML_TYPES[name]
        used = self._quantize(number, padded.ctypes.data, packed.ctypes.data, 0, len(w), cols, None)
        if used != packed.nbytes:
            raise RuntimeError(f"ggml_quantize_chunk wrote {used} bytes of {name}, expected {packed.nbytes}")
        out = np.empty(padded.shape, np.float32)
        dequantize(packed, block, out.reshape(-1))
        return np.ascontiguousarray(out[:, : w.shape[1]])


@dataclass
class Quantised:
    """A contender's matrices and what they cost."""

    bits: float = 0.0
    weights: int = 0

    def count(self, weights: int, bits: float) -> None:
        """Adds a matrix of `weights` numbers that take `bits` together, scales and padding included."""
        self.bits += bits
        self.weights += weights

    @property
    def bits_per_weight(self) -> float:
        """Of all matrices, embedding and head included."""
        return self.bits / self.weights


def more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's choice of the layers whose V and DOWN get Q6_K in Q4_K_M and Q5_K_M."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


# What a recipe takes where it makes no exception.
DEFAULT = {"Q8_0": "Q8_0", "Q4_0": "Q4_0", "Q5_0": "Q5_0", "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K"}


def gguf_type(recipe: str, name: str, part: str, config: ModelConfig) -> str:
    """Type of one matrix in llama.cpp's recipes, before the fallback. The head gets more than the embedding."""
    kind = DEFAULT[recipe]
    if name == "lm_head":
        return kind if kind == "Q8_0" else "Q6_K"
    if name == "embed_tokens":
        return kind
    layer, layers = int(name.split(".")[1]), config.num_hidden_layers
    if recipe in ("Q4_K_M", "Q5_K_M") and part in ("v", "down") and more_bits(layer, layers):
        return "Q6_K"
    if recipe == "Q4_K_S" and ((part == "v" and layer < 4) or (part == "down" and layer < layers // 8)):
        return "Q5_K"
    return kind


def parts(name: str, config: ModelConfig) -> list[tuple[str, int, int]]:
    """A fused matrix as llama.cpp stores it: (part, first row, end)."""
    if name.endswith("qkv"):
        q, kv = config.query_size, config.key_value_size
        return [("q", 0, q), ("k", q, q + kv), ("v", q + kv, q + 2 * kv)]
    rows = {"o": config.hidden_size, "down": config.hidden_size, "gate_up": 2 * config.intermediate_size}
    return [(name.split(".")[-1], 0, rows.get(name.split(".")[-1], config.vocab_size))]


def llama_cpp(
    recipe: str, config: ModelConfig, ggml: Ggml | None, fits: bool, total: Quantised
) -> Callable[[str, Float], Float]:
    """Quantise-dequantize of one matrix under a recipe.

    Args:
        fits: pretend that super-blocks fit rows of any length (the last one is padded, and its padding not counted).
    """

    def apply(name: str, w: Float) -> Float:
        out = np.empty_like(w)
        for part, start, stop in parts(name, config):
            kind = gguf_type(recipe, name, part, config)
            if kind in FALLBACK and w.shape[1] % SUPER_BLOCK and not fits:
                kind = FALLBACK[kind]
            weights = (stop - start) * w.shape[1]
            total.count(weights, weights * BITS[kind])
            if ggml is None and kind not in PLAIN:
                raise SystemExit(f"{recipe} needs {kind}: give a build of llama.cpp with --llama BUILD/bin")
            rows = np.ascontiguousarray(w[start:stop])
            out[start:stop] = PLAIN[kind](rows) if kind in PLAIN else ggml.round_trip(rows, kind)  # type: ignore[union-attr]
        return out

    return apply

"""The vision tower of GLM-4V: a picture's pixels in, rows of the text model out.

    x = patches W + b, the class embedding before them        x = x + positions
    for each layer:
        x = x + layer_norm(attention(x))                      every row sees every row
        x = x + layer_norm(fc2(gelu(fc1(x))))
    y = 2 x 2 patches W + b, without the class embedding      y = gelu(layer_norm(projector(y)))
    rows = [begin, down(silu(gate(y)) * up(y)), end] / scaling_factor

The norms come after the sublayers ("post-norm"), and there is none at the end.

A picture takes the time of many tokens, so it is computed in pieces that other requests' steps come between: some rows
of one pass at a time. A layer is two passes, because attention needs the keys and values of all rows. A row's bits do
not depend on the pieces (the kernels' contract).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glm4.kernels import int8_cache
from glm4.kernels.base import Kernels
from glm4.model.config import ModelConfig, VisionConfig
from glm4.model.kv_cache import KV_DTYPES, PAGE_SIZE, cache_arrays, pages_for
from glm4.model.layers import Float, VisionLayerWeights, VisionWeights

# Mean and standard deviation of red, green and blue that CLIP's towers are trained with.
PIXEL_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
PIXEL_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
_NORM1_EPS = 1e-5  # of the projector; the configuration does not have it

# Rows computed at once: enough for the kernels to run at full speed, while the MLP's inner values stay at 30 MB.
PIECE_ROWS = 512
_LEAST_ROWS = 32


_Run = Callable[["Encoding", int, int], None]


@dataclass(frozen=True)
class _Pass:
    """One pass over rows: `run(encoding, start, stop)`, each row about `operations` multiplications.

    It does not refer to the encoding itself: its buffers are freed with the last reference to it.
    """

    run: _Run
    num_rows: int
    operations: int


class VisionTower:
    """The tower of one model on one kernel set.

    Attributes:
        kv_dtype: format of the keys and values of the layer at work.
    """

    def __init__(self, config: ModelConfig, weights: VisionWeights, kernels: Kernels) -> None:
        if config.vision is None:
            raise ValueError("the model has no vision tower")
        self.config: VisionConfig = config.vision
        self.text_config = config
        self.weights = weights
        self.kernels = kernels
        self.kv_dtype = tower_kv_dtype(weights.layers[0].qkv.format, self.config.head_dim)

    def start(self, pixels: NDArray[np.uint8]) -> Encoding:
        """Begin with a picture: uint8 [image_size, image_size, 3], RGB.

        Raises:
            ValueError: wrong shape or type.
        """
        size = self.config.image_size
        if pixels.shape != (size, size, self.config.in_channels) or pixels.dtype != np.uint8:
            raise ValueError(f"a picture must be uint8 [{size}, {size}, 3], not {pixels.dtype} {pixels.shape}")
        return Encoding(self, pixels)


class Encoding:
    """One picture on its way through the tower.

    Attributes:
        hidden: float32 [num_positions, hidden_size], inside the tower.
        num_layers_done: layers that `hidden` has gone through.
        result: float32 [num_rows, hidden_size of the text model], once complete; in place of word embeddings.
    """

    def __init__(self, tower: VisionTower, pixels: NDArray[np.uint8]) -> None:
        config = tower.config
        self._tower, self._kernels, self._pixels = tower, tower.kernels, pixels
        self.hidden: Float = np.empty((config.num_positions, config.hidden_size), np.float32)
        self.num_layers_done = 0
        self.result: Float | None = None
        self._rows: Float = np.empty((config.num_rows, tower.text_config.hidden_size), np.float32)
        self._queries: Float = np.empty((config.num_positions, config.hidden_size), np.float32)
        pages = pages_for(config.num_positions)
        self._keys, self._values = cache_arrays(pages, config.num_attention_heads, config.head_dim, tower.kv_dtype)
        self._table = np.arange(pages, dtype=np.int32)[None, :]
        self._mean_key: Float = np.zeros((config.num_attention_heads, config.head_dim), np.float32)
        self._passes = self._plan()
        self._operations = sum(one.num_rows * one.operations for one in self._passes)
        self._done = 0  # of them
        self._index = self._row = 0

    @property
    def progress(self) -> float:
        """Fraction of the work that is done."""
        return self._done / self._operations

    def advance(self, max_rows: int) -> None:
        """Work for about as long as the text model takes for `max_rows` rows, or a little longer; at least a piece."""
        left = max_rows * text_operations(self._tower.text_config)
        while self.result is None:
            one = self._passes[self._index]
            rows = min(PIECE_ROWS, max(_LEAST_ROWS, left // one.operations))
            stop = min(self._row + rows, one.num_rows)
            one.run(self, self._row, stop)
            self._done += (stop - self._row) * one.operations
            left -= (stop - self._row) * one.operations
            self._row = stop
            if stop == one.num_rows:
                self._index, self._row = self._index + 1, 0
                self.num_layers_done = max(0, (self._index - 1) // 2)
            if self._index == len(self._passes):
                self.result = self._finished()
            if left <= 0:
                return

    def _plan(self) -> list[_Pass]:
        config, text = self._tower.config, self._tower.text_config
        width, inner = config.hidden_size, config.intermediate_size
        passes = [_Pass(Encoding._embed, config.num_patches, width * config.patch_columns)]
        for layer in self._tower.weights.layers:
            load_keys, mix = self._layer(layer)
            seen = 2 * config.num_positions * width
            passes.append(_Pass(load_keys, config.num_positions, width * config.qkv_size))
            passes.append(_Pass(mix, config.num_positions, seen + width * width + 2 * width * inner))
        passes.append(_Pass(Encoding._merge, config.num_rows - 2, _merged_operations(text, config)))
        return passes

    def _embed(self, start: int, stop: int) -> None:
        """Patches [start, stop): row 0 of `hidden` is the class embedding, which comes with the first."""
        config, weights, kernels = self._tower.config, self._tower.weights, self._kernels
        grid, side = config.grid, config.patch_size
        first = start // grid
        lines = self._pixels[first * side : -(-stop // grid) * side]
        patches = lines.reshape(-1, side, grid, side, config.in_channels).transpose(0, 2, 4, 1, 3)
        flat = patches.reshape(-1, config.in_channels, side * side)[start - first * grid : stop - first * grid]
        levels = (np.arange(256, dtype=np.float32)[:, None] / np.float32(255) - PIXEL_MEAN) / PIXEL_STD
        numbers = np.stack([levels[flat[:, channel], channel] for channel in range(config.in_channels)], axis=1)
        x = kernels.linear(numbers.reshape(len(flat), -1), weights.patch, weights.patch_bias)
        kernels.add_(x, kernels.embedding(weights.positions, np.arange(start + 1, stop + 1, dtype=np.int32)))
        self.hidden[start + 1 : stop + 1] = x
        if start == 0:
            position = kernels.embedding(weights.positions, np.zeros(1, np.int32))
            self.hidden[0] = weights.class_embedding + position[0]

    def _layer(self, layer: VisionLayerWeights) -> tuple[_Run, _Run]:
        """The two passes of a layer: keys and values of all rows first, then everything else row by row."""
        config, kernels = self._tower.config, self._kernels
        heads, eps = config.num_attention_heads, config.layer_norm_eps
        shape, scale = (-1, heads, config.head_dim), config.head_dim**-0.5
        lengths = np.array([config.num_positions], np.int32)

        def load_keys(encoding: Encoding, start: int, stop: int) -> None:
            qkv = kernels.linear(encoding.hidden[start:stop], layer.qkv, layer.qkv_bias)
            qkv = qkv.reshape(-1, 3 * heads, config.head_dim)
            encoding._queries[start:stop] = qkv[:, :heads].reshape(stop - start, -1)
            # What all keys have in common adds the same to all scores of a query, which its softmax ignores. Without it
            # (channels with large biases, for one) a key's other channels keep their digits in 8 bits.
            if start == 0:
                mean = encoding.hidden.mean(axis=0, dtype=np.float64).astype(np.float32)[None, :]
                mean_qkv = kernels.linear(mean, layer.qkv, layer.qkv_bias).reshape(3, heads, config.head_dim)
                encoding._mean_key = mean_qkv[1]
            keys = qkv[:, heads : 2 * heads]
            keys -= encoding._mean_key
            slots = np.arange(start, stop, dtype=np.int64)
            kernels.store_kv(keys, qkv[:, 2 * heads :], encoding._keys, encoding._values, slots)

        def mix(encoding: Encoding, start: int, stop: int) -> None:
            x, queries = encoding.hidden[start:stop], encoding._queries[start:stop].reshape(shape)
            starts = np.array([0, stop - start], np.int32)
            attended = kernels.paged_attention(
                queries, encoding._keys, encoding._values, encoding._table, starts, lengths, scale, causal=False
            )
            y = kernels.linear(attended.reshape(stop - start, -1), layer.o, layer.o_bias)
            kernels.add_(x, kernels.layer_norm(y, layer.input_layernorm, layer.input_layernorm_bias, eps))
            inner = kernels.linear(x, layer.fc1, layer.fc1_bias)
            kernels.gelu_(inner)
            y = kernels.linear(inner, layer.fc2, layer.fc2_bias)
            norm, bias = layer.post_attention_layernorm, layer.post_attention_layernorm_bias
            kernels.add_(x, kernels.layer_norm(y, norm, bias, eps))

        return load_keys, mix

    def _merge(self, start: int, stop: int) -> None:
        """Rows [start, stop) of the text model, row by row of the picture; each from 2 x 2 patches."""
        config, weights, kernels = self._tower.config, self._tower.weights, self._kernels
        half = config.grid // 2
        first, last = start // half, -(-stop // half)
        patches = self.hidden[1:].reshape(half, 2, half, 2, config.hidden_size)[first:last]
        merged = patches.transpose(0, 2, 4, 1, 3).reshape(-1, config.merged_columns)
        x = np.ascontiguousarray(merged[start - first * half : stop - first * half])
        x = kernels.linear(x, weights.merge, weights.merge_bias)
        x = kernels.linear(x, weights.projector)
        x = kernels.layer_norm(x, weights.projector_norm, weights.projector_norm_bias, _NORM1_EPS)
        kernels.gelu_(x)
        gate_up = np.concatenate(
            [kernels.linear(x, weights.projector_gate), kernels.linear(x, weights.projector_up)], axis=1
        )
        self._rows[start + 1 : stop + 1] = kernels.linear(kernels.swiglu(gate_up), weights.projector_down)

    def _finished(self) -> Float:
        weights, rows = self._tower.weights, self._rows
        rows[0], rows[-1] = weights.begin, weights.end
        rows /= np.float32(self._tower.config.scaling_factor)
        return rows


def text_operations(config: ModelConfig) -> int:
    """Multiplications of one row of the text model, without attention and head."""
    width = config.hidden_size
    layer = width * (config.qkv_size + config.query_size) + 3 * width * config.intermediate_size
    return config.num_hidden_layers * layer


def tower_operations(config: ModelConfig) -> tuple[int, int]:
    """Multiplications of one picture: of all matrix products, and of attention; (0, 0) for a text model."""
    vision = config.vision
    if vision is None:
        return 0, 0
    width, positions = vision.hidden_size, vision.num_positions
    layer = width * (vision.qkv_size + width) + 2 * width * vision.intermediate_size
    ends = vision.num_patches * width * vision.patch_columns + (vision.num_rows - 2) * _merged_operations(
        config, vision
    )
    layers = vision.num_hidden_layers
    return layers * positions * layer + ends, layers * 2 * positions**2 * width


def _merged_operations(config: ModelConfig, vision: VisionConfig) -> int:
    """Multiplications of one row of the picture behind the layers."""
    return config.hidden_size * (vision.merged_columns + config.hidden_size + 3 * config.intermediate_size)


def tower_kv_dtype(format: str, head_dim: int) -> str:
    """Format of the tower's keys and values, by the weight format of its layers."""
    if format in ("int8", "int4") and int8_cache.is_supported(head_dim):
        return "int8"
    return "fp32" if format == "fp32" else "fp16"


def encoding_nbytes(config: ModelConfig, format: str) -> tuple[int, int]:
    """Bytes that one picture takes inside the tower, its result included, and of the buffers of a piece.

    (0, 0) for a text model; `format` is that of its layers.
    """
    vision = config.vision
    if vision is None:
        return 0, 0
    pages = pages_for(vision.num_positions) * PAGE_SIZE
    item = np.dtype(KV_DTYPES[tower_kv_dtype(format, vision.head_dim)]).itemsize
    rows = 4 * vision.num_positions * vision.hidden_size * 2 + 4 * vision.num_rows * config.hidden_size
    cache = 2 * pages * vision.num_attention_heads * (vision.head_dim + 4) * item
    widest = max(vision.qkv_size + vision.hidden_size, 2 * vision.intermediate_size, 4 * config.intermediate_size)
    return rows + cache, 4 * PIECE_ROWS * widest

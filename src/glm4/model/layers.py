"""The weights of a model in memory: one block, and all of them together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from glm4.kernels.formats import PackedWeight

Float = NDArray[np.float32]


Matrix = Literal["qkv", "o", "gate_up", "down"]


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one block; the two `post_…` norms after attention and MLP exist in architecture glm4 only.

    A `…_channel_scale` [K] is what the input channels of that matrix were divided by when it was quantised, its columns
    being multiplied by it. The forward pass need not know; adapters trained on the original channels do.
    """

    input_layernorm: Float
    qkv: PackedWeight
    qkv_bias: Float | None
    o: PackedWeight
    post_attention_layernorm: Float
    gate_up: PackedWeight
    down: PackedWeight
    post_self_attn_layernorm: Float | None = None
    post_mlp_layernorm: Float | None = None
    qkv_channel_scale: Float | None = None
    gate_up_channel_scale: Float | None = None
    down_channel_scale: Float | None = None


@dataclass(frozen=True)
class FrequentTokens:
    """Rows of the head once more, in a finer format: those of the tokens that mostly come next.

    Attributes:
        ids: whose they are, [n], rising.
        head: the rows, [n, hidden_size].
    """

    ids: NDArray[np.intp]
    head: PackedWeight


@dataclass(frozen=True)
class ModelWeights:
    """All weights of a model; `lm_head` is the very same object as `embed_tokens` when they are tied."""

    embed_tokens: PackedWeight
    layers: tuple[LayerWeights, ...]
    norm: Float
    lm_head: PackedWeight
    frequent: FrequentTokens | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the packed matrices."""
        matrices = [w for layer in self.layers for w in (layer.qkv, layer.o, layer.gate_up, layer.down)]
        matrices.append(self.embed_tokens)
        if self.lm_head is not self.embed_tokens:
            matrices.append(self.lm_head)
        if self.frequent is not None:
            matrices.append(self.frequent.head)
        return sum(matrix.data.nbytes for matrix in matrices)

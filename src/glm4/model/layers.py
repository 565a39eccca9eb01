"""The weights of a model in memory: all of them by name, and as the forward pass reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from glm4.kernels.formats import PackedWeight
from glm4.model.tensors import FREQUENT_HEAD, FREQUENT_TOKENS

Float = NDArray[np.float32]
Tensor = PackedWeight | Float
Matrix = Literal["qkv", "o", "gate_up", "down"]


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one block; the norms after attention and MLP exist only in architecture glm4.

    A `…_channel_scale` [K] is what the input channels of that matrix were divided by when it was quantized, with its
    columns multiplied by it. The forward pass does not need it; adapters trained on the original channels do.
    """

    input_layernorm: Float
    qkv: PackedWeight
    o: PackedWeight
    post_attention_layernorm: Float
    gate_up: PackedWeight
    down: PackedWeight
    qkv_bias: Float | None = None
    post_self_attn_layernorm: Float | None = None
    post_mlp_layernorm: Float | None = None
    qkv_channel_scale: Float | None = None
    gate_up_channel_scale: Float | None = None
    down_channel_scale: Float | None = None


@dataclass(frozen=True)
class FrequentTokens:
    """A second copy of some rows of the head, in a finer format: those of the tokens that are most often likely.

    Attributes:
        ids: the tokens, [n], ascending.
        head: the rows, [n, hidden_size].
    """

    ids: NDArray[np.intp]
    head: PackedWeight


class ModelWeights:
    """All weights of a model, or of a part of one; anything such a part lacks is None.

    Attributes:
        tensors: by canonical name (`model/tensors.py`): matrices packed, vectors float32. The other attributes view it.
        lm_head: the same object as `embed_tokens` when they are tied.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.embed_tokens = cast(PackedWeight, tensors.get("embed_tokens"))
        self.layers = _layers(tensors)
        self.norm = cast(Float, tensors.get("norm"))
        self.lm_head = cast(PackedWeight, tensors.get("lm_head", self.embed_tokens))
        self.frequent: FrequentTokens | None = None
        if FREQUENT_HEAD in tensors:
            ids, head = cast(Float, tensors[FREQUENT_TOKENS]), cast(PackedWeight, tensors[FREQUENT_HEAD])
            self.frequent = FrequentTokens(ids.astype(np.intp), head)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed matrices."""
        return sum(tensor.nbytes for tensor in self.tensors.values() if isinstance(tensor, PackedWeight))


def _layers(tensors: Mapping[str, Tensor]) -> tuple[LayerWeights, ...]:
    keys = {field.name for field in fields(LayerWeights)}
    layers: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        stack, _, rest = name.partition(".")
        index, _, key = rest.partition(".")
        if stack == "layers" and key in keys:
            layers.setdefault(int(index), {})[key] = tensor
    return tuple(LayerWeights(**layers[index]) for index in sorted(layers))

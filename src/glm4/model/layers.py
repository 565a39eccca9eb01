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
class VisionLayerWeights:
    """Weights of one block of the vision tower."""

    qkv: PackedWeight
    qkv_bias: Float
    o: PackedWeight
    o_bias: Float
    input_layernorm: Float
    input_layernorm_bias: Float
    fc1: PackedWeight
    fc1_bias: Float
    fc2: PackedWeight
    fc2_bias: Float
    post_attention_layernorm: Float
    post_attention_layernorm_bias: Float


@dataclass(frozen=True)
class VisionWeights:
    """Weights of the vision tower: patches, blocks, the convolution that merges 2 x 2 patches, and the projector.

    Attributes:
        positions: one row per position, added to the class embedding and the patches.
        begin, end: the rows of the tokens around a picture, [hidden_size].
    """

    patch: PackedWeight
    patch_bias: Float
    class_embedding: Float
    positions: PackedWeight
    layers: tuple[VisionLayerWeights, ...]
    merge: PackedWeight
    merge_bias: Float
    projector: PackedWeight
    projector_norm: Float
    projector_norm_bias: Float
    projector_gate: PackedWeight
    projector_up: PackedWeight
    projector_down: PackedWeight
    begin: Float
    end: Float


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
        vision: of a model that sees.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.embed_tokens = cast(PackedWeight, tensors.get("embed_tokens"))
        self.layers = tuple(LayerWeights(**layer) for layer in _stack(tensors, "layers.", LayerWeights))
        self.norm = cast(Float, tensors.get("norm"))
        self.lm_head = cast(PackedWeight, tensors.get("lm_head", self.embed_tokens))
        self.frequent: FrequentTokens | None = None
        if FREQUENT_HEAD in tensors:
            ids, head = cast(Float, tensors[FREQUENT_TOKENS]), cast(PackedWeight, tensors[FREQUENT_HEAD])
            self.frequent = FrequentTokens(ids.astype(np.intp), head)
        self.vision = _vision(tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed matrices."""
        return _packed_nbytes(self.tensors)

    @property
    def language_nbytes(self) -> int:
        """The same without the vision tower, which a step with tokens does not read."""
        return _packed_nbytes({name: tensor for name, tensor in self.tensors.items() if not name.startswith("vision.")})


def _packed_nbytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values() if isinstance(tensor, PackedWeight))


def _vision(tensors: Mapping[str, Tensor]) -> VisionWeights | None:
    if "vision.patch" not in tensors:
        return None
    layers = _stack(tensors, "vision.layers.", VisionLayerWeights)
    single: dict[str, Any] = {
        field.name: tensors["vision." + field.name] for field in fields(VisionWeights) if field.name != "layers"
    }
    return VisionWeights(layers=tuple(VisionLayerWeights(**layer) for layer in layers), **single)


def _stack(tensors: Mapping[str, Tensor], stack: str, kind: type) -> list[dict[str, Any]]:
    """The tensors of each layer of a stack, by the names of the fields of a dataclass."""
    keys = {field.name for field in fields(kind)}
    layers: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.removeprefix(stack).partition(".")
        if name.startswith(stack) and key in keys:
            layers.setdefault(int(index), {})[key] = tensor
    return [layers[index] for index in sorted(layers)]

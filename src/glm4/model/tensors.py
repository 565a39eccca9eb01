"""The tensors of a model: one table that loader, packed files, sizes, quantization and random models follow.

A row gives a tensor's name, shape and weight format, and the tensors of a file that it is made of. A new matrix is one
more row, and the line of code that applies it. The rest of glm4 knows only the canonical names: `embed_tokens`,
`layers.{i}.qkv` … `norm`, `lm_head`.

Some packed checkpoints hold more (`EXTRAS`), created by calibration or training.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glm4.model.config import ModelConfig

MAX_COUNT = 1 << 24  # maximum count of an extra; token ids below it are exact in float32
FREQUENT_HEAD, FREQUENT_TOKENS = "frequent_head", "frequent_tokens"
VISION_PART = "vision"  # `TensorRow.part` of the tower and its projector

# A tensor of a file; or several, stacked in this order, with the number of rows of each (an attribute of ModelConfig).
Source = str | Mapping[str, str]
# The extras of one packed checkpoint: key of `EXTRAS` -> true, or a count.
Extras = Mapping[str, int]
NO_EXTRAS: Extras = MappingProxyType({})


class Check(NamedTuple):
    """A requirement on the numbers of a vector, in words and as a function."""

    must_be: str
    holds: Callable[[NDArray[np.float32], ModelConfig], bool]


@dataclass(frozen=True)
class TensorRow:
    """One kind of tensor.

    Attributes:
        name: canonical; `{i}` is the index of a layer in its stack (`STACKS`).
        shape: (rows, columns) of a matrix, (numbers,) of a vector: attributes of `ModelConfig` or keys of `EXTRAS`.
        part: of the model, for memory plans.
        format: of a matrix: "linear", "embedding" or "fine", which the precision decides, or a fixed weight format.
        sources: layout of a file -> its tensors; a tuple lists alternatives. A layout not listed (such as that of
            packed checkpoints) has the tensor under its canonical name.
        file_shape: sizes, or attributes of `ModelConfig`, of the tensor in a file that has further dimensions.
        rotary: the rows belong to queries and keys, so their order depends on the file (`rotary_half_split`).
        when: which models have it.
        check: requirement on a vector.
    """

    name: str
    shape: tuple[str, ...]
    part: str
    format: str = ""
    sources: Mapping[str, Source | tuple[Source, ...]] = field(default_factory=dict)
    file_shape: tuple[str | int, ...] = ()
    rotary: bool = False
    when: Callable[[ModelConfig], bool] = lambda config: True
    check: Check | None = None

    @property
    def stack(self) -> str:
        """What precedes the layer's index; the whole name if it has none."""
        return self.name.partition("{i}")[0]


@dataclass(frozen=True)
class Extra:
    """Tensors that a packed checkpoint has if its configuration says so.

    Attributes:
        key: in the `quantization_config`, present only if it is true or more than 0.
        type: bool, or int for a count, which shapes may refer to.
        must_be: the valid values, for errors.
        about: a description for users; `{}` is the value.
        tensors: the rows it adds, after the others of the same stack and after all others.
    """

    key: str
    type: type[int]
    must_be: str
    about: str
    tensors: tuple[TensorRow, ...]

    def is_valid(self, value: object) -> bool:
        """Whether a configuration may have this value."""
        return type(value) is self.type and 0 <= value < MAX_COUNT


@dataclass(frozen=True)
class ModelTensor:
    """One tensor of one model: a row, for layer `index`, with its sizes."""

    name: str
    shape: tuple[int, ...]
    row: TensorRow
    index: int


def model_tensors(config: ModelConfig, extras: Extras = NO_EXTRAS) -> dict[str, ModelTensor]:
    """Every tensor of a model by canonical name, in model order."""
    stacks: dict[str, list[TensorRow]] = {}
    for row in rows_of(config, extras):
        stacks.setdefault(row.stack, []).append(row)
    made: dict[str, ModelTensor] = {}
    for stack, rows in stacks.items():
        for index in range(attrgetter(STACKS[stack])(config) if stack in STACKS else 1):
            for row in rows:
                name = row.name.replace("{i}", str(index))
                shape = tuple(int(extras[size] if size in extras else attrgetter(size)(config)) for size in row.shape)
                made[name] = ModelTensor(name, shape, row, index)
    return made


def rows_of(config: ModelConfig, extras: Extras = NO_EXTRAS) -> list[TensorRow]:
    """The rows of the table that a model has tensors of."""
    return [row for row in _rows(extras) if row.when(config)]


def _rows(extras: Mapping[str, object]) -> Iterator[TensorRow]:
    yield from TENSORS.values()
    for key, extra in EXTRAS.items():
        if extras.get(key):
            yield from extra.tensors


def row_of(name: str) -> TensorRow:
    """The row of a tensor, by its canonical name; raises KeyError."""
    pattern = _NUMBER.sub("{i}", name)
    for row in _rows(EXTRAS):
        if row.name == pattern:
            return row
    raise KeyError(name)


def all_matrices(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(rows, cols) of every weight matrix of a model by canonical name; the head only if it is not the embedding."""
    shapes = {name: tensor.shape for name, tensor in model_tensors(config).items()}
    return {name: (shape[0], shape[1]) for name, shape in shapes.items() if len(shape) == 2}


def matrix_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(rows, cols) of each of one layer's weight matrices, by the name after `layers.{i}.`."""
    first = "layers.0."
    return {n.removeprefix(first): shape for n, shape in all_matrices(config).items() if n.startswith(first)}


def file_shape(tensor: ModelTensor, config: ModelConfig) -> tuple[int, ...]:
    """Shape of a tensor in a file of the original layout; its numbers are in the same order."""
    sizes = tensor.row.file_shape
    return tuple(size if isinstance(size, int) else attrgetter(size)(config) for size in sizes) or tensor.shape


def num_parameters(config: ModelConfig) -> int:
    """Number of trainable parameters of a model."""
    return sum(math.prod(tensor.shape) for tensor in model_tensors(config).values())


def head_name(config: ModelConfig) -> str:
    """Canonical name of the matrix used as head."""
    return "embed_tokens" if config.tie_word_embeddings else "lm_head"


_NUMBER = re.compile(r"(?<=\.)[0-9]+(?=\.)")
_TABLE, _VECTOR = ("vocab_size", "hidden_size"), ("hidden_size",)
_PREFIXES = {"chatglm": "transformer.encoder.layers.{i}.", "hf": "model.layers.{i}.", "gguf": "blk.{i}."}

# Name prefix of a stack of layers -> the number of layers, an attribute of ModelConfig.
STACKS: dict[str, str] = {"layers.": "num_hidden_layers", "vision.layers.": "vision.num_hidden_layers"}


def _layer(name: str, shape: tuple[str, ...], part: str, format: str = "", **more: Any) -> TensorRow:
    """A row for the layers. A keyword that is a layout gives the names of its tensors in a layer."""
    sources = {layout: _prefixed(prefix, more.pop(layout)) for layout, prefix in _PREFIXES.items() if layout in more}
    return TensorRow("layers.{i}." + name, shape, part, format, sources, **more)


def _prefixed(prefix: str, source: Any) -> Any:
    if isinstance(source, tuple):
        return tuple(_prefixed(prefix, one) for one in source)
    return prefix + source if isinstance(source, str) else {prefix + name: size for name, size in source.items()}


def _qkv(pattern: str) -> Source:
    sizes = {"q": "query_size", "k": "key_value_size", "v": "key_value_size"}
    return {pattern.replace("*", part): size for part, size in sizes.items()}


def _gate_up(pattern: str) -> Source:
    return {pattern.replace("*", part): "intermediate_size" for part in ("gate", "up")}


def _sandwich(config: ModelConfig) -> bool:
    return config.architecture == "glm4"


def _seen(
    name: str, source: str, shape: tuple[str, ...], format: str = "", file: tuple[str | int, ...] = ()
) -> TensorRow:
    """A row for the vision tower; `source` is its name in original files."""
    sources = {"chatglm": "transformer.vision." + source}
    return TensorRow(
        "vision." + name, shape, VISION_PART, format, sources, file, when=lambda config: config.vision is not None
    )


def _tower_layer(name: str, source: str, rows: str, columns: str) -> tuple[TensorRow, TensorRow]:
    """A matrix and its bias, for each layer of the tower."""
    to, file = "layers.{i}." + name, f"transformer.layers.{{i}}.{source}"
    rows, columns = "vision." + rows, "vision." + columns
    return _seen(to, file + ".weight", (rows, columns), "linear"), _seen(to + "_bias", file + ".bias", (rows,))


def _tower_norm(name: str, source: str, size: str) -> tuple[TensorRow, TensorRow]:
    return _seen(name, source + ".weight", (size,)), _seen(name + "_bias", source + ".bias", (size,))


_WIDTH = "vision.hidden_size"
# The model's eyes. What few numbers pass through stays "fine"; convolutions are matrices over their patches.
_VISION: tuple[TensorRow, ...] = (
    _seen("patch", "patch_embedding.proj.weight", (_WIDTH, "vision.patch_columns"), "fine",
        (_WIDTH, "vision.in_channels", "vision.patch_size", "vision.patch_size")),
    _seen("patch_bias", "patch_embedding.proj.bias", (_WIDTH,)),
    _seen("class_embedding", "patch_embedding.cls_embedding", (_WIDTH,), "", (1, _WIDTH)),
    _seen("positions", "patch_embedding.position_embedding.weight", ("vision.num_positions", _WIDTH), "fine"),
    *_tower_layer("qkv", "attention.query_key_value", "qkv_size", "hidden_size"),
    *_tower_layer("o", "attention.dense", "hidden_size", "hidden_size"),
    *_tower_norm("layers.{i}.input_layernorm", "transformer.layers.{i}.input_layernorm", _WIDTH),
    *_tower_layer("fc1", "mlp.fc1", "intermediate_size", "hidden_size"),
    *_tower_layer("fc2", "mlp.fc2", "hidden_size", "intermediate_size"),
    *_tower_norm("layers.{i}.post_attention_layernorm", "transformer.layers.{i}.post_attention_layernorm", _WIDTH),
    _seen("merge", "conv.weight", ("hidden_size", "vision.merged_columns"), "linear", ("hidden_size", _WIDTH, 2, 2)),
    _seen("merge_bias", "conv.bias", _VECTOR),
    _seen("projector", "linear_proj.linear_proj.weight", ("hidden_size", "hidden_size"), "linear"),
    *_tower_norm("projector_norm", "linear_proj.norm1", "hidden_size"),
    _seen("projector_gate", "linear_proj.gate_proj.weight", ("intermediate_size", "hidden_size"), "linear"),
    _seen("projector_up", "linear_proj.dense_h_to_4h.weight", ("intermediate_size", "hidden_size"), "linear"),
    _seen("projector_down", "linear_proj.dense_4h_to_h.weight", ("hidden_size", "intermediate_size"), "linear"),
    _seen("begin", "boi", _VECTOR, "", (1, 1, "hidden_size")),
    _seen("end", "eoi", _VECTOR, "", (1, 1, "hidden_size")),
)  # fmt: skip

TENSORS: dict[str, TensorRow] = {
    row.name: row
    for row in (
        TensorRow("embed_tokens", _TABLE, "embeddings", "embedding", {
            "chatglm": "transformer.embedding.word_embeddings.weight",
            "hf": "model.embed_tokens.weight",
            "gguf": "token_embd.weight",
        }),
        _layer("input_layernorm", _VECTOR, "norms",
            chatglm="input_layernorm.weight", hf="input_layernorm.weight", gguf="attn_norm.weight"),
        _layer("qkv", ("qkv_size", "hidden_size"), "attention", "linear", rotary=True,
            chatglm="self_attention.query_key_value.weight", hf=_qkv("self_attn.*_proj.weight"),
            gguf=("attn_qkv.weight", _qkv("attn_*.weight"))),
        _layer("qkv_bias", ("qkv_size",), "attention", rotary=True, when=lambda config: config.attention_bias,
            chatglm="self_attention.query_key_value.bias", hf=_qkv("self_attn.*_proj.bias"),
            gguf=("attn_qkv.bias", _qkv("attn_*.bias"))),
        _layer("o", ("hidden_size", "query_size"), "attention", "linear",
            chatglm="self_attention.dense.weight", hf="self_attn.o_proj.weight", gguf="attn_output.weight"),
        # In GGUF files "post_attention_norm" is the norm after attention, "ffn_norm" the one before the MLP.
        _layer("post_self_attn_layernorm", _VECTOR, "norms", when=_sandwich,
            hf="post_self_attn_layernorm.weight", gguf="post_attention_norm.weight"),
        _layer("post_attention_layernorm", _VECTOR, "norms",
            chatglm="post_attention_layernorm.weight", hf="post_attention_layernorm.weight", gguf="ffn_norm.weight"),
        _layer("gate_up", ("gate_up_size", "hidden_size"), "mlp", "linear",
            chatglm="mlp.dense_h_to_4h.weight", hf=("mlp.gate_up_proj.weight", _gate_up("mlp.*_proj.weight")),
            gguf=(_gate_up("ffn_*.weight"), "ffn_up.weight")),
        _layer("down", ("hidden_size", "intermediate_size"), "mlp", "linear",
            chatglm="mlp.dense_4h_to_h.weight", hf="mlp.down_proj.weight", gguf="ffn_down.weight"),
        _layer("post_mlp_layernorm", _VECTOR, "norms", when=_sandwich,
            hf="post_mlp_layernorm.weight", gguf="post_ffw_norm.weight"),
        TensorRow("norm", _VECTOR, "norms", "", {
            "chatglm": "transformer.encoder.final_layernorm.weight",
            "hf": "model.norm.weight",
            "gguf": "output_norm.weight",
        }),
        TensorRow("lm_head", _TABLE, "head", "embedding", {
            "chatglm": "transformer.output_layer.weight",
            "hf": "lm_head.weight",
            "gguf": "output.weight",
        }, when=lambda config: not config.tie_word_embeddings),
        *_VISION,
    )
}  # fmt: skip

_POSITIVE = Check(
    "finite and positive numbers", lambda values, config: bool((np.isfinite(values) & (values > 0)).all())
)


def _are_ids(values: NDArray[np.float32], config: ModelConfig) -> bool:
    whole = bool(np.isfinite(values).all() and (values == np.floor(values)).all())
    return whole and values[0] >= 0 and values[-1] < config.vocab_size and bool((np.diff(values) > 0).all())


_IDS = Check("ascending ids of the vocabulary", _are_ids)
EXTRAS: dict[str, Extra] = {
    extra.key: extra
    for extra in (
        # What the input channels of matrices were divided by, for adapters (`quantization/channel_scales.py`).
        Extra("channel_scales", bool, "true or false", "factors of rescaled channels", (
            _layer("qkv_channel_scale", _VECTOR, "attention", check=_POSITIVE),
            _layer("gate_up_channel_scale", _VECTOR, "mlp", check=_POSITIVE),
            _layer("down_channel_scale", ("intermediate_size",), "mlp", check=_POSITIVE),
        )),
        # A second copy of some rows of the head in a finer format, and their ids (`quantization/frequent_tokens.py`).
        Extra("frequent_tokens", int, "a number of tokens", "the head's rows of {:,} frequent tokens in int8", (
            TensorRow(FREQUENT_HEAD, ("frequent_tokens", "hidden_size"), "head", "int8"),
            TensorRow(FREQUENT_TOKENS, ("frequent_tokens",), "head", check=_IDS),
        )),
    )
}  # fmt: skip

"""Which tensors of a file make up each canonical tensor: one explicit table per layout.

Canonical names are the only ones the rest of glm4 knows: `embed_tokens`, `layers.{i}.qkv` … `norm`, `lm_head`. A file
may store a canonical tensor whole or as pieces that are stacked row-wise; the tables list every accepted way. Whatever
is not in the table of the layout is left over, and a left-over tensor is an error.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from glm4.checkpoints.config_fields import Layout
from glm4.model.config import ModelConfig
from glm4.model.precision import FREQUENT_HEAD


@dataclass(frozen=True)
class Piece:
    """One tensor of the file: its name and the shape it must have."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Recipe:
    """A canonical tensor: `pieces` stacked along the rows give `shape`."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class TensorMap:
    """How a file's tensors and the canonical ones correspond.

    Attributes:
        recipes: canonical name -> recipe, in model order.
        missing: file names that a recipe needs and the file lacks.
        left_over: file names that no recipe needs and no rule ignores.
        ignored: file names that are known and deliberately not loaded.
    """

    recipes: Mapping[str, Recipe]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class Extras:
    """What a packed checkpoint may hold beside the tensors that every model of its shape has.

    Attributes:
        channel_scales: whether the layers have CHANNEL_SCALES.
        frequent_tokens: rows of FREQUENT_HEAD, numbers in FREQUENT_TOKENS; 0 is neither.
    """

    channel_scales: bool = False
    frequent_tokens: int = 0


NO_EXTRAS = Extras()

# One way to find a canonical tensor: (file name, what its rows are) for every piece.
_Way = tuple[tuple[str, str], ...]
_Table = Mapping[str, tuple[_Way, ...]]

_QKV_ROWS = ("q", "kv", "kv")


def _whole(name: str, rows: str) -> _Way:
    return ((name, rows),)


def _qkv(pattern: str, parts: tuple[str, str, str]) -> _Way:
    return tuple((pattern.replace("*", part), rows) for part, rows in zip(parts, _QKV_ROWS, strict=True))


_CHATGLM = "transformer.encoder.layers.{i}."
_HF = "model.layers.{i}."
_GGUF = "blk.{i}."

_HF_QKV = ("q_proj", "k_proj", "v_proj")
_GGUF_QKV = ("attn_q", "attn_k", "attn_v")
# What the input channels of a layer's matrices were divided by; only packed checkpoints may have them, in every layer.
CHANNEL_SCALES = ("qkv_channel_scale", "gate_up_channel_scale", "down_channel_scale")
# The token ids of the rows of FREQUENT_HEAD.
FREQUENT_TOKENS = "frequent_tokens"
_OUTSIDE_LAYERS = ("embed_tokens", "norm", "lm_head", FREQUENT_HEAD, FREQUENT_TOKENS)

TABLES: Mapping[Layout, _Table] = MappingProxyType(
    {
        "chatglm": {
            "embed_tokens": (_whole("transformer.embedding.word_embeddings.weight", "vocab"),),
            "input_layernorm": (_whole(_CHATGLM + "input_layernorm.weight", "hidden"),),
            "qkv": (_whole(_CHATGLM + "self_attention.query_key_value.weight", "qkv"),),
            "qkv_bias": (_whole(_CHATGLM + "self_attention.query_key_value.bias", "qkv"),),
            "o": (_whole(_CHATGLM + "self_attention.dense.weight", "hidden"),),
            "post_attention_layernorm": (_whole(_CHATGLM + "post_attention_layernorm.weight", "hidden"),),
            "gate_up": (_whole(_CHATGLM + "mlp.dense_h_to_4h.weight", "two_ffn"),),
            "down": (_whole(_CHATGLM + "mlp.dense_4h_to_h.weight", "hidden"),),
            "norm": (_whole("transformer.encoder.final_layernorm.weight", "hidden"),),
            "lm_head": (_whole("transformer.output_layer.weight", "vocab"),),
        },
        "hf": {
            "embed_tokens": (_whole("model.embed_tokens.weight", "vocab"),),
            "input_layernorm": (_whole(_HF + "input_layernorm.weight", "hidden"),),
            "qkv": (_qkv(_HF + "self_attn.*.weight", _HF_QKV),),
            "qkv_bias": (_qkv(_HF + "self_attn.*.bias", _HF_QKV),),
            "o": (_whole(_HF + "self_attn.o_proj.weight", "hidden"),),
            "post_self_attn_layernorm": (_whole(_HF + "post_self_attn_layernorm.weight", "hidden"),),
            "post_attention_layernorm": (_whole(_HF + "post_attention_layernorm.weight", "hidden"),),
            "gate_up": (_whole(_HF + "mlp.gate_up_proj.weight", "two_ffn"),),
            "down": (_whole(_HF + "mlp.down_proj.weight", "hidden"),),
            "post_mlp_layernorm": (_whole(_HF + "post_mlp_layernorm.weight", "hidden"),),
            "norm": (_whole("model.norm.weight", "hidden"),),
            "lm_head": (_whole("lm_head.weight", "vocab"),),
        },
        "gguf": {
            "embed_tokens": (_whole("token_embd.weight", "vocab"),),
            "input_layernorm": (_whole(_GGUF + "attn_norm.weight", "hidden"),),
            "qkv": (_whole(_GGUF + "attn_qkv.weight", "qkv"), _qkv(_GGUF + "*.weight", _GGUF_QKV)),
            "qkv_bias": (_whole(_GGUF + "attn_qkv.bias", "qkv"), _qkv(_GGUF + "*.bias", _GGUF_QKV)),
            "o": (_whole(_GGUF + "attn_output.weight", "hidden"),),
            # In these files "post_attention_norm" is the norm behind attention, "ffn_norm" the one before the MLP.
            "post_self_attn_layernorm": (_whole(_GGUF + "post_attention_norm.weight", "hidden"),),
            "post_attention_layernorm": (_whole(_GGUF + "ffn_norm.weight", "hidden"),),
            "gate_up": (
                ((_GGUF + "ffn_gate.weight", "ffn"), (_GGUF + "ffn_up.weight", "ffn")),
                _whole(_GGUF + "ffn_up.weight", "two_ffn"),
            ),
            "down": (_whole(_GGUF + "ffn_down.weight", "hidden"),),
            "post_mlp_layernorm": (_whole(_GGUF + "post_ffw_norm.weight", "hidden"),),
            "norm": (_whole("output_norm.weight", "hidden"),),
            "lm_head": (_whole("output.weight", "vocab"),),
        },
        # Our own packed checkpoints: the canonical names themselves.
        "packed": {
            key: (_whole(key if key in _OUTSIDE_LAYERS else "layers.{i}." + key, rows),)
            for key, rows in {
                "embed_tokens": "vocab",
                "input_layernorm": "hidden",
                "qkv": "qkv",
                "qkv_bias": "qkv",
                "o": "hidden",
                "post_self_attn_layernorm": "hidden",
                "post_attention_layernorm": "hidden",
                "gate_up": "two_ffn",
                "down": "hidden",
                "post_mlp_layernorm": "hidden",
                "qkv_channel_scale": "hidden",
                "gate_up_channel_scale": "hidden",
                "down_channel_scale": "ffn",
                "norm": "hidden",
                "lm_head": "vocab",
                FREQUENT_HEAD: "frequent",
                FREQUENT_TOKENS: "frequent",
            }.items()
        },
    }
)

# Stored RoPE frequencies: never used, because files hold them for another base and in a short dtype.
_DROPPED = re.compile(r"(.+\.)?rotary(_pos)?_emb\.inv_freq", re.ASCII)


def map_tensors(
    config: ModelConfig,
    layout: Layout,
    names: Collection[str],
    *,
    embedding: str | None = None,
    extras: Extras = NO_EXTRAS,
) -> TensorMap:
    """Matches a file's tensor names with the canonical tensors of a model.

    Args:
        config: the model.
        layout: which of `TABLES` the file follows.
        names: the file's tensor names.
        embedding: the file's tensor to use as (tied) embedding instead of the table's.
        extras: layout "packed" only.
    """
    table = TABLES[layout]
    rows = {**_row_counts(config), "frequent": extras.frequent_tokens}
    recipes: dict[str, Recipe] = {}
    for canonical, key, layer in _model_order(config, extras):
        ways = (_whole(embedding, "vocab"),) if key == "embed_tokens" and embedding else table[key]
        way = _choose([tuple((name.replace("{i}", layer), size) for name, size in way) for way in ways], names)
        columns = _columns(config, key)
        pieces = tuple(Piece(name, (rows[size], *columns)) for name, size in way)
        recipes[canonical] = Recipe(canonical, (sum(piece.shape[0] for piece in pieces), *columns), pieces)
    needed = {piece.name for recipe in recipes.values() for piece in recipe.pieces}
    spare = [name for name in names if name not in needed]
    head, embed = table["lm_head"][0][0][0], table["embed_tokens"][0][0][0]
    ignorable = {head, embed} if config.tie_word_embeddings else set()
    ignored = tuple(name for name in spare if name in ignorable or _DROPPED.fullmatch(name))
    return TensorMap(
        recipes=MappingProxyType(recipes),
        missing=tuple(name for name in sorted(needed) if name not in names),
        left_over=tuple(sorted(set(spare) - set(ignored))),
        ignored=ignored,
    )


def _model_order(config: ModelConfig, extras: Extras) -> list[tuple[str, str, str]]:
    """(canonical name, key in the table, layer number) of every canonical tensor."""
    sandwich = config.architecture == "glm4"
    keys = ["input_layernorm", "qkv"]
    keys += ["qkv_bias"] if config.attention_bias else []
    keys += ["o"]
    keys += ["post_self_attn_layernorm"] if sandwich else []
    keys += ["post_attention_layernorm", "gate_up", "down"]
    keys += ["post_mlp_layernorm"] if sandwich else []
    keys += CHANNEL_SCALES if extras.channel_scales else ()
    layers = [(f"layers.{i}.{key}", key, str(i)) for i in range(config.num_hidden_layers) for key in keys]
    outside = ["norm"] if config.tie_word_embeddings else ["norm", "lm_head"]
    outside += [FREQUENT_HEAD, FREQUENT_TOKENS] if extras.frequent_tokens else []
    return [("embed_tokens", "embed_tokens", ""), *layers, *((key, key, "") for key in outside)]


def _choose(ways: list[_Way], names: Collection[str]) -> _Way:
    """The first way whose tensors are all there; failing that, one of which some are, so that errors make sense."""
    for enough in (all, any):
        for way in ways:
            if enough(name in names for name, _ in way):
                return way
    return ways[0]


def _row_counts(config: ModelConfig) -> Mapping[str, int]:
    return {
        "vocab": config.vocab_size,
        "hidden": config.hidden_size,
        "q": config.query_size,
        "kv": config.key_value_size,
        "qkv": config.query_size + 2 * config.key_value_size,
        "ffn": config.intermediate_size,
        "two_ffn": 2 * config.intermediate_size,
    }


def _columns(config: ModelConfig, key: str) -> tuple[int, ...]:
    """The second dimension of a canonical tensor; nothing for vectors."""
    if key == "o":
        return (config.query_size,)
    if key == "down":
        return (config.intermediate_size,)
    if key in ("embed_tokens", "lm_head", FREQUENT_HEAD, "qkv", "gate_up"):
        return (config.hidden_size,)
    return ()

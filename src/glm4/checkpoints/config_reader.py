"""Configuration files → `ModelConfig`: the ChatGLM and Hugging Face `config.json`, and the metadata of a GGUF file.

Every number is checked against generous bounds, so that a hostile file cannot request huge arrays, and every option
that would change the arithmetic and is not implemented is refused by name. Keys irrelevant to inference (dropout,
dtype, training options) are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from glm4.checkpoints.config_fields import Fields, Layout
from glm4.checkpoints.config_refusals import refuse_chatglm_options, refuse_gguf_options, refuse_hf_options
from glm4.checkpoints.gguf_choice import companion_kind
from glm4.checkpoints.vision_config import read_vision_config
from glm4.errors import CheckpointError, UnsupportedModelError
from glm4.model.config import ModelConfig

if TYPE_CHECKING:  # the weights package imports this module
    from glm4.checkpoints.tensor_source import TensorSource

JSON_MODEL_TYPES = ("chatglm", "glm", "glm4", "llama", "qwen2")
GGUF_ARCHITECTURES = ("chatglm", "glm4", "llama", "qwen2")

_ROPE_BASE = 10000.0  # ChatGLM stores theta as a multiple of this
_SUSPICIOUS_CONTEXT = 131072


@dataclass(frozen=True)
class ParsedConfig:
    """A configuration and notes about it.

    Attributes:
        config: the shape of the model.
        model_type: as given in the file: "chatglm", "glm", "glm4", "llama", "qwen2".
        layout: the naming scheme of its tensors.
        notes: sentences for the user.
    """

    config: ModelConfig
    model_type: str
    layout: Layout
    notes: tuple[str, ...] = ()


def config_from_json(data: Mapping[str, Any], where: str) -> ParsedConfig:
    """Reads the object of a `config.json`; `where` names the file in error messages.

    Raises:
        UnsupportedModelError: the model type or one of its options is not implemented.
        CheckpointError: a key is missing or its value is invalid.
    """
    model_type = data.get("model_type")
    if model_type not in JSON_MODEL_TYPES:
        if isinstance(model_type, str) and model_type.startswith("glm4v"):
            raise UnsupportedModelError(
                f"{where}: {model_type} has another vision part than glm-4v-9b, which this build does not run"
            )
        raise UnsupportedModelError(
            f"{where}: model_type is {model_type!r}; this build runs {', '.join(JSON_MODEL_TYPES)} "
            f"(and GGUF files of {', '.join(GGUF_ARCHITECTURES)})"
        )
    fields = Fields(data, where)
    if model_type == "chatglm":
        refuse_chatglm_options(data, where)
        return _finish(_from_chatglm(fields), fields, "chatglm", "chatglm")
    refuse_hf_options(data, where)
    return _finish(_from_hugging_face(fields, model_type), fields, model_type, "hf")


def _from_chatglm(fields: Fields) -> ModelConfig:
    """The original layout of THUDM's remote code (glm-4-9b, ChatGLM3 …)."""
    heads = fields.integer("num_attention_heads", 1, 1024)
    hidden = fields.integer("hidden_size", 1, 65536)
    grouped = fields.boolean("multi_query_attention", default=False)
    return ModelConfig(
        architecture="glm",
        vocab_size=fields.integer("padded_vocab_size", 1, 1 << 20, default=fields.optional_integer("vocab_size")),
        hidden_size=hidden,
        intermediate_size=fields.integer("ffn_hidden_size", 1, 1 << 18),
        num_hidden_layers=fields.integer("num_layers", 1, 1024),
        num_attention_heads=heads,
        num_key_value_heads=fields.integer("multi_query_group_num", 1, 1024) if grouped else heads,
        head_dim=fields.integer("kv_channels", 1, 1024, default=hidden // heads),
        max_position_embeddings=fields.integer("seq_length", 1, 1 << 24),
        rms_norm_eps=fields.number("layernorm_epsilon", 0.0, 0.1),
        rope_theta=_ROPE_BASE * fields.number("rope_ratio", 1e-3, 1e9, default=1.0),
        partial_rotary_factor=0.5,  # the remote code rotates half of every head; it has no key for it
        attention_bias=fields.boolean("add_qkv_bias", default=False),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", default=False),
        rotary_half_split=not fields.boolean("original_rope", default=True),
        eos_token_ids=fields.token_ids("eos_token_id"),
        pad_token_id=fields.token_id("pad_token_id"),
        vision=read_vision_config(fields),
    )


def _from_hugging_face(fields: Fields, model_type: str) -> ModelConfig:
    """`GlmForCausalLM` and its like, with the RoPE keys of transformers 4 (top level) or 5 (a dictionary).

    The starters' classes rotate whole heads, with half-split rows; Qwen2's always has biases, and no key for them.
    """
    glm = model_type in ("glm", "glm4")
    rope = fields.inner("rope_parameters")
    heads = fields.integer("num_attention_heads", 1, 1024)
    hidden = fields.integer("hidden_size", 1, 65536)
    theta = rope.number("rope_theta", 1.0, 1e12, default=fields.number("rope_theta", 1.0, 1e12, default=_ROPE_BASE))
    factor = fields.number("partial_rotary_factor", 0.0, 1.0, default=0.5) if glm else 1.0
    biased = fields.boolean("attention_bias", default=glm)  # the default of the classes
    return ModelConfig(
        architecture="glm4" if model_type == "glm4" else "glm",
        vocab_size=fields.integer("vocab_size", 1, 1 << 20),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size", 1, 1 << 18),
        num_hidden_layers=fields.integer("num_hidden_layers", 1, 1024),
        num_attention_heads=heads,
        num_key_value_heads=fields.integer("num_key_value_heads", 1, 1024, default=heads),
        head_dim=fields.integer("head_dim", 1, 1024, default=hidden // heads),
        max_position_embeddings=fields.integer("max_position_embeddings", 1, 1 << 24),
        rms_norm_eps=fields.number("rms_norm_eps", 0.0, 0.1),
        rope_theta=theta,
        partial_rotary_factor=rope.number("partial_rotary_factor", 0.0, 1.0, default=factor) if glm else factor,
        attention_bias=biased or model_type == "qwen2",
        tie_word_embeddings=fields.boolean("tie_word_embeddings", default=False),
        eos_token_ids=fields.token_ids("eos_token_id"),
        pad_token_id=fields.token_id("pad_token_id"),
        rotary_half_split=not glm,
        vision=read_vision_config(fields),  # only packed checkpoints have one
    )


def config_from_gguf(metadata: Mapping[str, Any], source: TensorSource, where: str) -> ParsedConfig:
    """Reads GGUF metadata; the tensor table provides what it leaves out (vocabulary size, biases, tied head).

    Raises:
        UnsupportedModelError: the architecture or one of its options is not implemented.
        CheckpointError: a key or the embedding is missing, or a value is invalid.
    """
    name, companion = metadata.get("general.architecture"), companion_kind(metadata)
    if companion is not None:
        raise UnsupportedModelError(f"{where} is not a model but {companion}; name the model's own GGUF file")
    if name not in GGUF_ARCHITECTURES:
        raise UnsupportedModelError(
            f"{where}: the architecture is {name!r}; this build runs GGUF files of {', '.join(GGUF_ARCHITECTURES)}"
        )
    names = source.names()
    refuse_gguf_options(metadata, name, names, where)
    fields = Fields(metadata, where, prefix=f"{name}.")
    vocabulary = Fields(metadata, where, prefix="tokenizer.ggml.")
    if "token_embd.weight" not in names:
        raise CheckpointError(f"{where}: there is no token_embd.weight, so the model is incomplete")
    heads = fields.integer("attention.head_count", 1, 1024)
    hidden = fields.integer("embedding_length", 1, 65536)
    head_dim = fields.integer("attention.key_length", 1, 1024, default=hidden // heads)
    rotary_default = head_dim // 2 if name in ("chatglm", "glm4") else head_dim
    rotary_dim = fields.integer("rope.dimension_count", 2, head_dim, default=rotary_default)
    ends = (*vocabulary.token_ids("eos_token_id"), *vocabulary.token_ids("eot_token_id"))
    eom = vocabulary.token_id("eom_token_id")  # some files write 2**32 - 1 for none
    config = ModelConfig(
        architecture="glm4" if name == "glm4" else "glm",
        vocab_size=source.info("token_embd.weight").shape[0],
        hidden_size=hidden,
        intermediate_size=fields.integer("feed_forward_length", 1, 1 << 18),
        num_hidden_layers=fields.integer("block_count", 1, 1024),
        num_attention_heads=heads,
        num_key_value_heads=fields.integer("attention.head_count_kv", 1, 1024, default=heads),
        head_dim=head_dim,
        max_position_embeddings=fields.integer("context_length", 1, 1 << 24),
        rms_norm_eps=_shortest_float32(fields.number("attention.layer_norm_rms_epsilon", 0.0, 0.1)),
        rope_theta=fields.number("rope.freq_base", 1.0, 1e12, default=_ROPE_BASE),
        partial_rotary_factor=_rotary_factor(rotary_dim, head_dim),
        attention_bias="blk.0.attn_qkv.bias" in names or "blk.0.attn_q.bias" in names,
        tie_word_embeddings="output.weight" not in names,
        # llama files have interleaved rows already (their converter permutes), as do chatglm and glm4; qwen2 does not.
        rotary_half_split=name == "qwen2",
        eos_token_ids=ends if eom is None else (*ends, eom),
        pad_token_id=vocabulary.token_id("padding_token_id"),
    )
    return _finish(config, fields, name, "gguf")


def _is_faulty_conversion(config: ModelConfig) -> bool:
    """Whether a GGUF file of `chatglm` has the values that llama.cpp's converter makes up where it finds no key.

    No published model of that architecture has a context as long as it is wide.
    """
    return config.rope_theta == _ROPE_BASE and config.max_position_embeddings == config.hidden_size


def _rotary_factor(rotary_dim: int, head_dim: int) -> float:
    """The factor whose product with head_dim, rounded down as `ModelConfig.rotary_dim` does, is rotary_dim."""
    factor = rotary_dim / head_dim
    return factor if int(head_dim * factor) == rotary_dim else math.nextafter(factor, 2.0)


def _shortest_float32(value: float) -> float:
    """GGUF stores 1e-6 as a float32; the shortest decimal that rounds to that float32 is the intended number."""
    return float(str(np.float32(value)))


def _finish(config: ModelConfig, fields: Fields, model_type: str, layout: Layout) -> ParsedConfig:
    """The checks that need several values, and the notes."""
    where = fields.where
    if config.num_attention_heads % config.num_key_value_heads:
        raise CheckpointError(
            f"{where}: {config.num_attention_heads} query heads cannot be shared among "
            f"{config.num_key_value_heads} key-value heads"
        )
    if config.head_dim < 2 or config.rotary_dim < 2 or config.rotary_dim % 2:
        raise CheckpointError(
            f"{where}: head_dim {config.head_dim} with partial_rotary_factor {config.partial_rotary_factor:g} rotates "
            f"{config.rotary_dim} channels; it must be an even number of at least 2"
        )
    ids = () if config.vision is None else (config.vision.begin_id, config.vision.end_id)
    if any(token >= config.vocab_size for token in ids):
        raise CheckpointError(f"{where}: boi_token_id or eoi_token_id lies outside the vocabulary")
    if config.vocab_size > 1 << 20:
        raise CheckpointError(f"{where}: a vocabulary of {config.vocab_size} tokens is more than 2^20")
    notes: list[str] = []
    if model_type == "chatglm" and layout == "gguf" and _is_faulty_conversion(config):
        notes.append(
            f"the file says: context {config.max_position_embeddings}, rope base 10000. llama.cpp's converter "
            "writes these for GLM-4's -hf layout (the width as context; epsilon and end of message are wrong, too); "
            "long prompts suffer. Make the file again from the original: glm4 export MODEL --to gguf"
        )
    if config.rope_theta == _ROPE_BASE and config.max_position_embeddings >= _SUSPICIOUS_CONTEXT:
        notes.append(
            f"rope_theta is 10000 while the context is {config.max_position_embeddings}: long prompts will suffer if "
            "the configuration is wrong (the published glm-4-9b-chat has 5000000)"
        )
    kept = tuple(dict.fromkeys(token for token in config.eos_token_ids if token < config.vocab_size))
    if len(kept) < len(set(config.eos_token_ids)):
        notes.append("some eos_token_id lie outside the vocabulary and were dropped")
    pad = config.pad_token_id if config.pad_token_id is not None and config.pad_token_id < config.vocab_size else None
    config = replace(config, eos_token_ids=kept, pad_token_id=pad)
    return ParsedConfig(config, model_type, layout, tuple(notes))

"""Configuration files → ModelConfig: the published ones, both RoPE spellings, and everything we refuse."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest

from glm4.checkpoints.config_reader import config_from_gguf, config_from_json
from glm4.checkpoints.tensor_source import Float32, TensorInfo
from glm4.errors import CheckpointError, UnsupportedModelError
from glm4.model.config import ModelConfig
from glm4.model.tensors import num_parameters
from golden_models import TINY_MODELS, TinyModel, config_json

EOS = [151329, 151336, 151338]

# The keys of the published glm-4-9b-chat configuration.
CHAT: dict[str, Any] = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"},
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "eos_token_id": EOS,
    "ffn_hidden_size": 13696,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1.5625e-07,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 40,
    "original_rope": True,
    "pad_token_id": 151329,
    "padded_vocab_size": 151552,
    "post_layer_norm": True,
    "rmsnorm": True,
    "rope_ratio": 500,
    "seq_length": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
HF: dict[str, Any] = {
    "model_type": "glm",
    "architectures": ["GlmForCausalLM"],
    "attention_bias": True,
    "eos_token_id": EOS,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "pad_token_id": 151329,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1.5625e-07,
    "rope_theta": 5000000.0,
    "tie_word_embeddings": False,
    "vocab_size": 151552,
}
EXPECTED = ModelConfig(
    architecture="glm",
    vocab_size=151552,
    hidden_size=4096,
    intermediate_size=13696,
    num_hidden_layers=40,
    num_attention_heads=32,
    num_key_value_heads=2,
    head_dim=128,
    max_position_embeddings=131072,
    rms_norm_eps=1.5625e-07,
    rope_theta=5e6,
    partial_rotary_factor=0.5,
    attention_bias=True,
    tie_word_embeddings=False,
    eos_token_ids=(151329, 151336, 151338),
    pad_token_id=151329,
)


def read(data: dict[str, Any], **changes: Any) -> ModelConfig:
    """The configuration after changing keys; None removes one."""
    merged = {key: value for key, value in {**data, **changes}.items() if value is not None}
    return config_from_json(merged, "config.json").config


def test_the_chat_model_in_both_layouts() -> None:
    assert read(CHAT) == EXPECTED
    assert read(HF) == EXPECTED
    assert num_parameters(EXPECTED) == 9_399_951_360
    assert config_from_json(CHAT, "x").layout == "chatglm"
    assert config_from_json(HF, "x").layout == "hf"
    assert config_from_json(HF, "x").notes == ()


@pytest.mark.parametrize(("model_type", "biased"), [("qwen2", True), ("llama", False)])
def test_the_classes_of_the_starters(model_type: str, biased: bool) -> None:
    """They rotate whole heads, half-split, whatever keys of other classes say; Qwen2 has no key for its biases."""
    foreign = {"attention_bias": None, "partial_rotary_factor": 0.25, "head_dim": None}
    config = read(HF, model_type=model_type, use_sliding_window=False, sliding_window=32768, **foreign)
    assert (config.rotary_half_split, config.rotary_dim, config.head_dim) == (True, 128, 128)
    assert config.attention_bias is biased
    assert config.architecture == "glm"


def test_the_million_token_model() -> None:
    config = read(CHAT, multi_query_group_num=4, rope_ratio=10000, seq_length=1048576)
    assert (config.num_key_value_heads, config.rope_theta, config.max_position_embeddings) == (4, 1e8, 1048576)
    assert num_parameters(config) == 9_483_857_920


def test_chatglm_defaults() -> None:
    assert read(CHAT, rope_ratio=None, seq_length=8192).rope_theta == 1e4
    assert read(CHAT, original_rope=None).rotary_half_split is False
    assert read(CHAT, original_rope=False).rotary_half_split is True
    assert read(CHAT, kv_channels=None).head_dim == 128
    assert read(CHAT, padded_vocab_size=None, vocab_size=65024, eos_token_id=2).vocab_size == 65024
    assert read(CHAT, multi_query_attention=False).num_key_value_heads == 32
    assert read(CHAT, multi_query_attention=False, multi_query_group_num=None).num_key_value_heads == 32
    assert read(CHAT, add_qkv_bias=None).attention_bias is False
    assert read(CHAT, eos_token_id=151329).eos_token_ids == (151329,)
    assert read(CHAT, eos_token_id=None, pad_token_id=None).eos_token_ids == ()


def test_both_spellings_of_rope() -> None:
    new = {"rope_type": "default", "rope_theta": 1e8, "partial_rotary_factor": 1.0}
    config = read(HF, rope_theta=None, partial_rotary_factor=None, rope_parameters=new)
    assert (config.rope_theta, config.rotary_dim) == (1e8, 128)
    assert read(HF, rope_parameters={"rope_theta": 7.0}).partial_rotary_factor == 0.5
    assert read(HF, rope_parameters={"partial_rotary_factor": 1.0}).rope_theta == 5e6
    assert read(HF, partial_rotary_factor=None).rotary_dim == 64
    assert read(HF, rope_theta=None, max_position_embeddings=8192).rope_theta == 1e4
    assert read(HF, rope_theta=5000000).rope_theta == 5e6


def test_hugging_face_defaults() -> None:
    assert read(HF, head_dim=None).head_dim == 128
    assert read(HF, attention_bias=None).attention_bias is True
    assert read(HF, num_key_value_heads=None).num_key_value_heads == 32
    assert read(HF, tie_word_embeddings=True).tie_word_embeddings is True
    assert read(HF, model_type="glm4").architecture == "glm4"


@pytest.mark.parametrize("model", TINY_MODELS.values(), ids=TINY_MODELS)
def test_every_tiny_model_is_read_back(model: TinyModel) -> None:
    config = config_from_json(config_json(model), "config.json").config
    for name in (
        "architecture", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta",
        "partial_rotary_factor", "attention_bias", "tie_word_embeddings",
    ):  # fmt: skip
        assert getattr(config, name) == getattr(model, name), name
    assert config.rotary_half_split == model.half_split


def test_a_suspicious_theta_is_noted() -> None:
    for data, change in ((HF, {"rope_theta": 10000.0}), (CHAT, {"rope_ratio": 1})):
        assert "rope_theta is 10000" in config_from_json({**data, **change}, "x").notes[0]


def test_stop_ids_outside_the_vocabulary_are_dropped_and_noted() -> None:
    parsed = config_from_json({**HF, "vocab_size": 151330}, "x")
    assert parsed.config.eos_token_ids == (151329,)
    assert "outside the vocabulary" in parsed.notes[0]
    assert read(HF, vocab_size=100).pad_token_id is None


REFUSED_CHATGLM = {
    "add_bias_linear": True,
    "apply_residual_connection_post_layernorm": True,
    "rmsnorm": False,
    "post_layer_norm": False,
    "interleaved_qkv": True,
    "position_encoding_2d": True,
    "pre_seq_len": 128,
    "prefix_projection": True,
    "quantization_bit": 4,
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "sliding_window": 4096,
    "num_experts": 8,
    "quantization_config": {"quant_method": "bitsandbytes"},
    "vision_tower": "eva",
    "audio_config": {},
}
REFUSED_HF = {
    "hidden_act": "gelu",
    "mlp_bias": True,
    "sliding_window": 4096,
    "use_sliding_window": True,
    "layer_types": ["full_attention", "sliding_attention"],
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4},
    "logit_scale": 0.5,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "query_pre_attn_scalar": 256,
    "num_local_experts": 8,
    "n_routed_experts": 64,
    "use_qk_norm": True,
    "residual_multiplier": 0.22,
    "num_nextn_predict_layers": 1,
    "rope_interleave": False,
    "quantization_config": {"quant_method": "awq", "bits": 4},
    "compression_config": {"format": "fp8"},
    "vision_tower": "eva",
    "audio_config": {},
}


@pytest.mark.parametrize("key", REFUSED_CHATGLM)
def test_chatglm_options_we_do_not_do_are_refused(key: str) -> None:
    with pytest.raises(UnsupportedModelError, match=key):
        read(CHAT, **{key: REFUSED_CHATGLM[key]})


@pytest.mark.parametrize("key", REFUSED_HF)
def test_hugging_face_options_we_do_not_do_are_refused(key: str) -> None:
    with pytest.raises(UnsupportedModelError, match=key):
        read(HF, **{key: REFUSED_HF[key]})


def test_the_same_options_switched_off_are_fine() -> None:
    off = {
        "sliding_window": 4096, "use_sliding_window": False, "rope_scaling": {"rope_type": "default"},
        "layer_types": ["full_attention"] * 40, "hidden_act": "swish", "logit_scale": 1.0, "num_experts": 0,
    }  # fmt: skip
    assert read(HF, **off) == EXPECTED
    assert read(CHAT, pre_seq_len=0, quantization_bit=0, prefix_projection=False) == EXPECTED


@pytest.mark.parametrize("rope", [{"rope_theta": 1.0, "surprise": 1}, {"factor": 2.0}, ["default"]])
def test_strange_rope_parameters_are_refused(rope: Any) -> None:
    with pytest.raises(CheckpointError, match="rope_parameters"):
        read(HF, rope_parameters=rope)


@pytest.mark.parametrize("model_type", ["mistral", "qwen3", "glm4_moe", "", 7, ["glm"]])
def test_other_model_types_are_refused(model_type: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="this build runs chatglm, glm, glm4"):
        read(HF, model_type=model_type)


def test_vision_models_are_told_apart() -> None:
    with pytest.raises(UnsupportedModelError, match="vision part"):
        read(HF, model_type="glm4v")
    with pytest.raises(UnsupportedModelError, match="glm-4v"):
        read(CHAT, audio_config={})
    with pytest.raises(CheckpointError, match="vision_config lacks num_hidden_layers"):
        read(CHAT, vision_config={})


IMPOSSIBLE: dict[str, list[Any]] = {
    "vocab_size": [0, -1, 1 << 40, 1.5, "151552", True, [1], None],
    "hidden_size": [0, 1 << 20, 4096.0, None],
    "intermediate_size": [0, 1 << 40, None],
    "num_hidden_layers": [0, 1025, 1 << 60, None],
    "num_attention_heads": [0, 3, 1 << 20, None],
    "num_key_value_heads": [0, 3, 64, -2],
    "head_dim": [0, 1, 7, 1 << 20],
    "max_position_embeddings": [0, 1 << 30, None],
    "rms_norm_eps": [0, 0.0, -1e-6, 1.0, float("nan"), float("inf"), "1e-6", None],
    "rope_theta": [0, 0.5, -1e4, float("inf"), float("nan"), 10**400, "1e4", True],
    "partial_rotary_factor": [0, -0.5, 1.5, 0.001, float("nan")],
    "attention_bias": [1, "true"],
    "tie_word_embeddings": [0, "no"],
    "eos_token_id": [-1, "a", [1, "a"], 1.5, True, list(range(100))],
    "pad_token_id": [1.5, "a"],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in IMPOSSIBLE.items() for value in values], ids=repr
)
def test_impossible_values_name_their_key(key: str, value: Any) -> None:
    names = {"partial_rotary_factor": "rotat|partial_rotary_factor", "num_attention_heads": "heads", "head_dim": "head"}
    with pytest.raises(CheckpointError, match=names.get(key, f"{key}|heads")):
        read(HF, **{key: value})


class Table:
    """A tensor table without data, for GGUF files whose metadata alone matters."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self._shapes = {name.replace("__", "."): shape for name, shape in shapes.items()}

    def names(self) -> Collection[str]:
        return self._shapes.keys()

    def info(self, name: str) -> TensorInfo:
        return TensorInfo(self._shapes[name], "F32", 4 * int(np.prod(self._shapes[name])))

    def read(self, name: str) -> Float32:
        raise AssertionError("no data may be read for a configuration")

    def read_rows(self, name: str, start: int, stop: int) -> Float32:
        raise AssertionError("no data may be read for a configuration")

    def close(self) -> None:
        pass


# The metadata of the published glm-4-9b-chat GGUF files (architecture keys).
GGUF_CHAT: dict[str, Any] = {
    "general.architecture": "chatglm",
    "chatglm.context_length": 131072,
    "chatglm.embedding_length": 4096,
    "chatglm.feed_forward_length": 13696,
    "chatglm.block_count": 40,
    "chatglm.attention.head_count": 32,
    "chatglm.attention.head_count_kv": 2,
    "chatglm.attention.layer_norm_rms_epsilon": float(np.float32(1.5625e-07)),
    "chatglm.rope.dimension_count": 64,
    "chatglm.rope.freq_base": 5000000.0,
    "tokenizer.ggml.eos_token_id": 151329,
    "tokenizer.ggml.eot_token_id": 151336,
    "tokenizer.ggml.padding_token_id": 151329,
}
EMBEDDING = Table(token_embd__weight=(151552, 4096), output__weight=(151552, 4096), blk__0__attn_qkv__bias=(4608,))


def read_gguf(changes: dict[str, Any] | None = None, table: Table = EMBEDDING) -> ModelConfig:
    merged = {key: value for key, value in {**GGUF_CHAT, **(changes or {})}.items() if value is not None}
    return config_from_gguf(merged, table, "m.gguf").config


def test_the_chat_model_as_gguf() -> None:
    config = read_gguf()
    assert config.eos_token_ids == (151329, 151336)
    assert {**vars(config), "eos_token_ids": EXPECTED.eos_token_ids} == vars(EXPECTED)


def test_gguf_defaults_follow_the_architecture() -> None:
    assert read_gguf({"chatglm.rope.dimension_count": None}).rotary_dim == 64
    assert read_gguf({"chatglm.rope.freq_base": None, "chatglm.context_length": 8192}).rope_theta == 1e4
    assert read_gguf({"chatglm.attention.key_length": 64, "chatglm.attention.value_length": 64}).head_dim == 64
    assert read_gguf(table=Table(token_embd__weight=(5, 4096))).tie_word_embeddings is True
    assert read_gguf(table=Table(token_embd__weight=(5, 4096))).attention_bias is False
    qwen2 = {key.replace("chatglm.", "qwen2."): value for key, value in GGUF_CHAT.items()}
    qwen2 |= {"general.architecture": "qwen2", "qwen2.rope.dimension_count": None}
    config = read_gguf({**dict.fromkeys(GGUF_CHAT), **qwen2})
    assert (config.rotary_half_split, config.rotary_dim) == (True, 128)


def test_every_rotary_dimension_survives_the_factor() -> None:
    for head_dim in range(2, 257):
        for rotary in range(2, head_dim + 1, 2):
            lengths = {"chatglm.attention.key_length": head_dim, "chatglm.attention.value_length": head_dim}
            assert read_gguf({"chatglm.rope.dimension_count": rotary, **lengths}).rotary_dim == rotary


REFUSED_GGUF: dict[str, Any] = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "attention.sliding_window": 4096,
    "attention.value_length": 64,
    "attention.causal": False,
    "attention.scale": 0.5,
    "attention.clamp_kqv": 8.0,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "expert_count": 8,
    "logit_scale": 0.5,
    "nextn_predict_layers": 1,
    "use_parallel_residual": True,
    "rope.dimension_sections": [16, 24, 24, 0],
    "a_key_of_the_future": 3,
}


@pytest.mark.parametrize("option", REFUSED_GGUF)
def test_gguf_options_we_do_not_do_are_refused(option: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"chatglm.{option}"):
        read_gguf({f"chatglm.{option}": REFUSED_GGUF[option]})


def test_gguf_options_switched_off_are_fine() -> None:
    off = {"rope.scaling.type": "none", "rope.scaling.factor": 1.0, "expert_count": 0, "vocab_size": 151552}
    assert read_gguf({f"chatglm.{key}": value for key, value in off.items()}) == read_gguf()


def test_gguf_scaling_factors_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="rope_freqs"):
        read_gguf(table=Table(token_embd__weight=(5, 4096), rope_freqs__weight=(32,)))


@pytest.mark.parametrize("architecture", ["gemma", "chatglm2", None, 7, ["chatglm"]])
def test_other_gguf_architectures_are_refused(architecture: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="chatglm, glm4, llama, qwen2"):
        read_gguf({"general.architecture": architecture})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", None), ("block_count", 1 << 31), ("attention.head_count", 0),
        ("attention.head_count_kv", [2, 2]),
        ("attention.layer_norm_rms_epsilon", "a"), ("rope.dimension_count", 130), ("rope.dimension_count", 63),
        ("embedding_length", -1), ("rope.freq_base", float("nan")), ("context_length", True),
    ],
)  # fmt: skip
def test_impossible_gguf_values_are_refused(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=f"{key}|rotates"):
        read_gguf({f"chatglm.{key}": value})


def test_a_gguf_without_embedding_is_no_model() -> None:
    with pytest.raises(CheckpointError, match=r"no token_embd\.weight"):
        read_gguf(table=Table(output__weight=(5, 4096)))
    with pytest.raises(CheckpointError, match="vocabulary of 9999999 tokens"):
        read_gguf(table=Table(token_embd__weight=(9999999, 4096)))

"""Shapes of the published models by name, for planning and benchmarks without their files.

Loading never uses them: a checkpoint's own configuration decides. Sizes are the published ones (tests compare each
row's parameter count with `variants.py`); norm epsilon and RoPE base do not affect sizes.
"""

from __future__ import annotations

from dataclasses import replace

from glm4.model.config import ModelConfig, VisionConfig

_CHAT = ModelConfig(
    architecture="glm",
    vocab_size=151552,
    hidden_size=4096,
    intermediate_size=13696,
    num_hidden_layers=40,
    num_attention_heads=32,
    num_key_value_heads=2,
    head_dim=128,
    max_position_embeddings=131072,
    rms_norm_eps=1.5625e-7,
    rope_theta=5.0e6,
    partial_rotary_factor=0.5,
    attention_bias=True,
    tie_word_embeddings=False,
)
_CHAT_1M = replace(_CHAT, num_key_value_heads=4, max_position_embeddings=1048576, rope_theta=1.0e8)
_BASE = replace(_CHAT, max_position_embeddings=8192, rope_theta=1.0e4)
_4V = replace(
    _BASE,
    vision=VisionConfig(
        num_hidden_layers=63,
        hidden_size=1792,
        num_attention_heads=16,
        intermediate_size=15360,
        image_size=1120,
        patch_size=14,
        layer_norm_eps=1e-6,
        scaling_factor=8.0,
        begin_id=151339,
        end_id=151340,
    ),
)
_9B_0414 = replace(
    _CHAT,
    architecture="glm4",
    max_position_embeddings=32768,
    rms_norm_eps=1e-5,
    rope_theta=1.0e4,
)
_32B_0414 = replace(
    _9B_0414,
    hidden_size=6144,
    intermediate_size=23040,
    num_hidden_layers=61,
    num_attention_heads=48,
    attention_bias=False,
)
_EDGE_1_5B = replace(
    _CHAT,
    vocab_size=59264,
    hidden_size=2048,
    intermediate_size=6144,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=4,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=1.0e4,
    partial_rotary_factor=1.0,
    attention_bias=False,
)
_EDGE_4B = replace(
    _EDGE_1_5B,
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=40,
    num_attention_heads=24,
    num_key_value_heads=6,
)
_STARTER = ModelConfig(
    architecture="glm",
    vocab_size=151936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=32768,
    rms_norm_eps=1e-6,
    rope_theta=1.0e6,
    partial_rotary_factor=1.0,
    attention_bias=True,
    tie_word_embeddings=True,
)
_STARTER_LARGE = replace(
    _STARTER,
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    head_dim=128,
)
_SMOKE = replace(
    _STARTER,
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=1.0e5,
    attention_bias=False,
)

SHAPES: dict[str, ModelConfig] = {
    "glm-4-9b-chat": _CHAT,
    "glm-4-9b-chat-hf": _CHAT,
    "glm-4-9b-chat-1m": _CHAT_1M,
    "glm-4-9b-chat-1m-hf": _CHAT_1M,
    "glm-4-9b": _BASE,
    "glm-4-9b-hf": _BASE,
    "glm-4v-9b": _4V,
    "longwriter-glm4-9b": _CHAT,
    "longcite-glm4-9b": _CHAT,
    "glm-4-9b-0414": _9B_0414,
    "glm-4-32b-0414": _32B_0414,
    "glm-z1-9b-0414": _9B_0414,
    "glm-z1-32b-0414": _32B_0414,
    "glm-edge-1.5b-chat": _EDGE_1_5B,
    "glm-edge-4b-chat": _EDGE_4B,
    "starter": _STARTER,
    "starter-large": _STARTER_LARGE,
    "smoke": _SMOKE,
}

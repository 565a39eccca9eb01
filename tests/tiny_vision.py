"""A tiny random GLM-4V, for tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from glm4.kernels.base import Kernels
from glm4.loading.weights import random_model
from glm4.model.config import ModelConfig, VisionConfig
from glm4.model.precision import PRECISIONS
from glm4.model.transformer import Transformer

VISION = VisionConfig(
    num_hidden_layers=3,
    hidden_size=48,
    num_attention_heads=3,
    intermediate_size=80,
    image_size=84,
    patch_size=14,
    layer_norm_eps=1e-6,
    scaling_factor=2.0,
    begin_id=120,
    end_id=121,
)
CONFIG = ModelConfig(
    architecture="glm",
    vocab_size=128,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=512,
    rms_norm_eps=1.5625e-7,
    rope_theta=1e4,
    partial_rotary_factor=0.5,
    attention_bias=True,
    tie_word_embeddings=False,
    vision=VISION,
)


def model(kernels: Kernels, dtype: str = "fp32") -> Transformer:
    """The same weights every time."""
    return random_model(CONFIG, PRECISIONS[dtype], kernels)


def pixels(seed: int = 0) -> NDArray[np.uint8]:
    """A picture of noise."""
    side = VISION.image_size
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)

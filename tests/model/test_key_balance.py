"""Balanced keys: the same attention, and an int8 cache that a few large key biases no longer spoil."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from glm4.kernels import get_kernels
from glm4.loading.weights import random_model
from glm4.model import key_balance as module
from glm4.model.config import ModelConfig
from glm4.model.key_balance import key_balance
from glm4.model.precision import PRECISIONS
from glm4.model.transformer import Transformer
from model_driver import forced_logits

CONFIG = ModelConfig("glm", 120, 64, 96, 2, 4, 2, 32, 512, 1.5625e-7, 1e4, 0.5, True, False)
IDS = np.random.default_rng(0).integers(0, 120, 150).astype(np.int32)


def model(largest_bias: float) -> Transformer:
    """A random model with one large bias in each key head, in a channel that is not rotated."""
    made = random_model(CONFIG, PRECISIONS["fp32"], get_kernels())
    for layer in made.weights.layers:
        assert layer.qkv_bias is not None
        layer.qkv_bias[CONFIG.query_size + 20 : CONFIG.query_size + CONFIG.key_value_size : 32] = largest_bias
    return made


def error(made: Transformer) -> float:
    exact, int8 = (forced_logits(made, IDS, kv_dtype=dtype) for dtype in ("fp32", "int8"))
    return float(np.sqrt(np.mean((exact - int8) ** 2)))


def test_scores_stay_and_pairs_share_a_factor() -> None:
    made = model(30.0)
    factors = key_balance(CONFIG, made.weights.layers[0], made.kernels)
    assert factors.shape == (6, 32)
    np.testing.assert_array_equal(factors[:, 0::2], factors[:, 1::2])
    for head in range(4):
        np.testing.assert_allclose(factors[head] * factors[4 + head // 2], 1.0, rtol=1e-6)
    assert factors[0, 20] > 3 * np.median(factors[0])


def test_large_key_biases_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    balanced = error(model(100.0))
    monkeypatch.setattr(module, "_POWER", 0.0)
    assert balanced < error(model(100.0)) / 3


def test_without_biases_and_with_empty_channels() -> None:
    made = model(0.0)
    layer = made.weights.layers[0]
    silent = dataclasses.replace(layer, qkv_bias=None, input_layernorm=np.zeros(64, np.float32))
    np.testing.assert_array_equal(key_balance(CONFIG, silent, made.kernels), np.ones((6, 32), np.float32))

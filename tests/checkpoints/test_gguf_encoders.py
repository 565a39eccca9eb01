"""Encoders of GGUF types: what the `gguf` package and our reader decode, how far it is from the weights, and edges."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from glm4.checkpoints.gguf_encoders import ENCODINGS, quantize
from glm4.checkpoints.gguf_quants import dequantize
from glm4.checkpoints.gguf_search import Float32, affine_steps, importance, rounded, squared_error, symmetric_steps

# Error of Gaussian weights, relative to their norm: at most that of llama.cpp's encoders on the same weights.
LLAMA_CPP = {
    "q8_0": 0.0054, "q6_k": 0.0178, "q5_k": 0.0362, "q5_1": 0.0378, "q5_0": 0.0428, "q4_k": 0.0714, "q4_1": 0.0784,
    "q4_0": 0.0859,
}  # fmt: skip
SEARCHED = ("q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0")


def round_trip(weights: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """Weights as both readers decode them."""
    encoding = ENCODINGS[name]
    packed = quantize(weights, encoding)
    assert packed.size == encoding.nbytes(weights.shape)
    out = np.empty(weights.size, np.float32)
    dequantize(packed, encoding.block_format, out)
    theirs = gguf.quants.dequantize(packed, GGMLQuantizationType(encoding.number))
    np.testing.assert_array_equal(out, np.asarray(theirs, np.float32).reshape(-1))
    return out.reshape(weights.shape)


def error(weights: NDArray[np.float32], name: str) -> float:
    return float(np.linalg.norm(round_trip(weights, name) - weights) / np.linalg.norm(weights))


@pytest.mark.parametrize("name", LLAMA_CPP)
def test_gaussian_weights(name: str) -> None:
    weights = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32) * 0.02
    assert error(weights, name) <= LLAMA_CPP[name]


@pytest.mark.parametrize("name", ["q5_1", "q5_0", "q4_1", "q4_0"])
def test_the_search_beats_the_rule_of_the_package(name: str) -> None:
    rng = np.random.default_rng(1)
    for weights in (rng.standard_normal((32, 256)), rng.laplace(size=(32, 256)), rng.uniform(0.5, 1, (32, 256))):
        values = weights.astype(np.float32)
        kind = GGMLQuantizationType(ENCODINGS[name].number)
        rule = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind).reshape(values.shape)
        assert np.linalg.norm(round_trip(values, name) - values) <= np.linalg.norm(rule - values)


@pytest.mark.parametrize("top", [15, 31])
@pytest.mark.parametrize("kind", ["standard_normal", "laplace", "lognormal"])
def test_the_search_finds_less_weighted_error(top: int, kind: str) -> None:
    """Less than dividing the range evenly, and than the same search in which all weights count the same."""
    draw = getattr(np.random.default_rng(5), kind)
    columns = np.asarray(draw(size=(32, 4096)), np.float32)
    counts, half, zero = importance(columns), (top + 1) // 2, np.zeros(4096, np.float32)
    low, high = columns.min(axis=0), columns.max(axis=0)

    def affine_error(step: Float32, base: Float32) -> float:
        return float(squared_error(columns, counts, rounded(columns, step, base, (0, top)), step, base).sum())

    def symmetric_error(step: Float32) -> float:
        codes = rounded(columns, step, zero, (-half, half - 1))
        return float(squared_error(columns, counts, codes, step, zero).sum())

    ones, starts = np.ones_like(columns), (top - 1.5, top - 0.5, top + 0.5)
    best = affine_error(*affine_steps(columns, counts, top, starts))
    assert best < affine_error((high - low) / np.float32(top), low)
    assert best < affine_error(*affine_steps(columns, ones, top, starts))
    starts = (half - 1.0, half - 0.5, half)
    best = symmetric_error(symmetric_steps(columns, counts, half, starts))
    assert best < symmetric_error(np.where(high > -low, high, low) / np.float32(-half))
    assert best < symmetric_error(symmetric_steps(columns, ones, half, starts))


@pytest.mark.parametrize("name", SEARCHED)
def test_odd_blocks(name: str) -> None:
    """Zeros stay zeros; constants, one outlier, one sign and tiny numbers stay within a step."""
    zeros = np.zeros((1, 512), np.float32)
    np.testing.assert_array_equal(round_trip(zeros, name), zeros)
    steps = 2 ** int(name[1]) - 1
    spike = zeros.copy()
    spike[0, 300] = -3
    assert np.abs(round_trip(spike, name) - spike).max() <= 3 / steps * 1.1
    for low, high in ((-1, 0), (0, 1), (-0.5, 1), (2, 2), (-2, -2)):
        values = np.linspace(low, high, 512, dtype=np.float32)[None]
        # Symmetric codes divide twice the largest weight; those of the K types cannot begin above zero.
        span = 2 * np.abs(values).max()
        assert np.abs(round_trip(values, name) - values).max() <= span / steps, (low, high)
    small = np.random.default_rng(2).standard_normal((4, 256)).astype(np.float32) * 1e-9
    assert np.isfinite(round_trip(small, name)).all()


@pytest.mark.parametrize("name", SEARCHED)
def test_what_lies_on_the_grid_stays_there(name: str) -> None:
    weights = np.random.default_rng(3).standard_normal((16, 512)).astype(np.float32)
    once = round_trip(weights, name)
    again = round_trip(once, name)
    assert np.linalg.norm(again - once) <= 0.35 * np.linalg.norm(once - weights)


@pytest.mark.parametrize("name", ENCODINGS)
def test_chunks_and_threads_do_not_show(name: str) -> None:
    weights = np.random.default_rng(4).standard_normal((9, 65536 // 4)).astype(np.float32)
    parts = [quantize(row[None], ENCODINGS[name]) for row in weights]
    np.testing.assert_array_equal(quantize(weights, ENCODINGS[name]), np.concatenate(parts))

"""Norm, rotary, activation, residual and log-softmax against float64 formulas, and row independence."""

from __future__ import annotations

import math

import numpy as np
import pytest

from glm4.kernels.base import Kernels

WIDTHS = [1, 3, 8, 31, 64, 129, 1000]
_ERFC = np.frompyfunc(math.erfc, 1, 1)


def exact_gelu(x: np.ndarray) -> np.ndarray:
    x64 = x.astype(np.float64)
    exact: np.ndarray = x64 * 0.5 * np.asarray(_ERFC(-x64 / math.sqrt(2)), np.float64)
    return exact


def exact_layer_norm(x: np.ndarray, w: np.ndarray, b: np.ndarray, eps: float) -> np.ndarray:
    centered = x.astype(np.float64) - x.astype(np.float64).mean(axis=1, keepdims=True)
    normal: np.ndarray = centered / np.sqrt(np.square(centered).mean(axis=1, keepdims=True) + eps) * w + b
    return normal


def gaussian(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(any_kernels: Kernels, rng: np.random.Generator, width: int) -> None:
    x, w = gaussian(rng, 7, width), gaussian(rng, width)
    x64 = x.astype(np.float64)
    expected = x64 / np.sqrt(np.square(x64).mean(axis=1, keepdims=True) + 1e-5) * w
    np.testing.assert_allclose(any_kernels.rms_norm(x, w, 1e-5), expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("width", [*WIDTHS, 1792])
def test_layer_norm(any_kernels: Kernels, rng: np.random.Generator, width: int) -> None:
    x, w, b = gaussian(rng, 7, width), gaussian(rng, width), gaussian(rng, width)
    x *= np.float32(10) ** np.arange(-3, 4, dtype=np.float32)[:, None]
    found = any_kernels.layer_norm(x, w, b, 1e-6)
    np.testing.assert_allclose(found, exact_layer_norm(x, w, b, 1e-6), rtol=2e-6, atol=5e-6)


@pytest.mark.parametrize("mean", [1e3, -1e5, 3e6])
def test_layer_norm_far_from_zero(any_kernels: Kernels, rng: np.random.Generator, mean: float) -> None:
    """The mean of a million standard deviations takes no digit away."""
    x, one, zero = gaussian(rng, 3, 1001) + np.float32(mean), np.ones(1001, np.float32), np.zeros(1001, np.float32)
    np.testing.assert_allclose(
        any_kernels.layer_norm(x, one, zero, 1e-6), exact_layer_norm(x, one, zero, 1e-6), atol=5e-6
    )


def test_layer_norm_of_equal_and_bad_values(any_kernels: Kernels, rng: np.random.Generator) -> None:
    x, w, b = gaussian(rng, 6, 333), gaussian(rng, 333), gaussian(rng, 333)
    x[0], x[1], x[2] = 0.1, 1e10, 0.0
    x[3, 332], x[4, 5] = np.nan, np.inf
    out = any_kernels.layer_norm(x, w, b, 1e-6)
    np.testing.assert_allclose(out[[0, 2]], [b, b], atol=1e-6)
    assert np.isfinite(out[1]).all()
    assert np.isnan(out[3:5]).all()
    np.testing.assert_array_equal(out[5:], any_kernels.layer_norm(x[5:], w, b, 1e-6))


@pytest.mark.parametrize(("heads", "dim", "rotated"), [(1, 4, 2), (3, 16, 8), (2, 128, 64), (4, 20, 20), (2, 8, 0)])
def test_rotary(any_kernels: Kernels, rng: np.random.Generator, heads: int, dim: int, rotated: int) -> None:
    """Complex multiplication of adjacent channels, in place, in a strided view; the rest of the row is untouched."""
    fused = gaussian(rng, 11, heads * dim + 10)
    before = fused.copy()
    x = fused[:, 4 : 4 + heads * dim].reshape(11, heads, dim)
    assert np.shares_memory(x, fused)
    angles = rng.uniform(-9, 9, (11, rotated // 2))
    any_kernels.rotary(x, np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
    expected = before[:, 4 : 4 + heads * dim].reshape(11, heads, dim).astype(np.float64)
    pairs = expected[:, :, 0:rotated:2] + 1j * expected[:, :, 1:rotated:2]
    pairs = pairs * np.exp(1j * angles)[:, None, :]
    expected[:, :, 0:rotated:2], expected[:, :, 1:rotated:2] = pairs.real, pairs.imag
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(fused[:, :4], before[:, :4])
    np.testing.assert_array_equal(fused[:, 4 + heads * dim :], before[:, 4 + heads * dim :])


@pytest.mark.parametrize("width", WIDTHS)
def test_swiglu(any_kernels: Kernels, rng: np.random.Generator, width: int) -> None:
    x = gaussian(rng, 5, 2 * width) * 4
    gate, up = x[:, :width].astype(np.float64), x[:, width:].astype(np.float64)
    np.testing.assert_allclose(any_kernels.swiglu(x), gate / (1 + np.exp(-gate)) * up, rtol=2e-6, atol=1e-12)


def test_swiglu_at_the_limits(any_kernels: Kernels) -> None:
    gate = np.array([-1e30, -200, -104, -88.5, -0.0, 0, 88.5, 200, 1e30, np.nan, np.inf], np.float32)
    out = any_kernels.swiglu(np.concatenate([gate, np.ones_like(gate)])[None])[0]
    np.testing.assert_allclose(out[:9], [0, 0, 0, 0, 0, 0, 88.5, 200, 1e30], atol=1e-35, rtol=1e-6)
    assert np.isnan(out[9])
    assert out[10] == np.inf


@pytest.mark.parametrize("shape", [(1, 1), (5, 31), (3, 129), (11, 1537), (40, 4097)], ids=str)
def test_gelu(any_kernels: Kernels, rng: np.random.Generator, shape: tuple[int, int]) -> None:
    x = gaussian(rng, *shape) * 4
    expected = exact_gelu(x)
    any_kernels.gelu_(x)
    np.testing.assert_allclose(x, expected, rtol=1.2e-7, atol=2e-7)


def test_gelu_everywhere(any_kernels: Kernels) -> None:
    x = np.linspace(-16, 16, 80001, dtype=np.float32)
    out = x[None].copy()
    any_kernels.gelu_(out)
    error = np.abs(out[0] - exact_gelu(x))
    assert (error <= 2e-7 + 6e-8 * np.maximum(x, 0)).all()
    above = x > -4
    assert (error[above] <= 1e-4 * np.abs(exact_gelu(x[above])) + 1e-12).all()


def test_gelu_at_the_limits(any_kernels: Kernels) -> None:
    x = np.array([[-np.inf, -3e38, -1e30, -14.5, -0.0, 0, 14.5, 3e38, np.inf, np.nan]], np.float32)
    any_kernels.gelu_(x)
    np.testing.assert_allclose(x[0, :9], [0, 0, 0, 0, 0, 0, 14.5, 3e38, np.inf], atol=1e-35, rtol=1e-7)
    assert np.isnan(x[0, 9])


def test_exponential_is_accurate(native: Kernels) -> None:
    """silu(x) * 1 gives exp back: exp(-x) = x / silu(x) - 1, compared where that is well conditioned."""
    x = np.linspace(-87, 0, 20001, dtype=np.float32)
    out = native.swiglu(np.concatenate([x, np.ones_like(x)])[None])[0].astype(np.float64)
    x64 = x.astype(np.float64)
    np.testing.assert_allclose(out, x64 / (1 + np.exp(-x64)), rtol=5e-7)


@pytest.mark.parametrize("shape", [(1, 1), (3, 31), (2, 70000), (40, 4097)], ids=str)
def test_add(any_kernels: Kernels, rng: np.random.Generator, shape: tuple[int, int]) -> None:
    x, y = gaussian(rng, *shape), gaussian(rng, *shape)
    expected = x + y
    any_kernels.add_(x, y)
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("width", [*WIDTHS, 151_552])
def test_log_softmax(any_kernels: Kernels, rng: np.random.Generator, width: int) -> None:
    x = gaussian(rng, 3, width) * 5
    x64 = x.astype(np.float64)
    shifted = x64 - x64.max(axis=1, keepdims=True)
    expected = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(any_kernels.log_softmax(x), expected, rtol=1e-6, atol=2e-6)


def test_log_softmax_of_masked_and_large(any_kernels: Kernels) -> None:
    x = np.full((1, 40), -np.inf, np.float32)
    x[0, 33], x[0, 7] = 3e38, 3e38
    out = any_kernels.log_softmax(x)[0]
    np.testing.assert_allclose(out[[7, 33]], -np.log(2), rtol=1e-6)
    assert (np.delete(out, [7, 33]) == -np.inf).all()


@pytest.mark.parametrize("width", [37, 4096])
def test_rows_are_independent(any_kernels: Kernels, rng: np.random.Generator, width: int) -> None:
    x, w = gaussian(rng, 50, 2 * width), gaussian(rng, 2 * width)
    norm, gated, logs = any_kernels.rms_norm(x, w, 1e-6), any_kernels.swiglu(x), any_kernels.log_softmax(x)
    centered, curved = any_kernels.layer_norm(x, w, w, 1e-6), x.copy()
    any_kernels.gelu_(curved)
    for first, last in [(0, 1), (7, 9), (49, 50), (3, 40)]:
        part = x[first:last]
        np.testing.assert_array_equal(any_kernels.rms_norm(part, w, 1e-6), norm[first:last])
        np.testing.assert_array_equal(any_kernels.swiglu(part), gated[first:last])
        np.testing.assert_array_equal(any_kernels.log_softmax(part), logs[first:last])
        np.testing.assert_array_equal(any_kernels.layer_norm(part, w, w, 1e-6), centered[first:last])
        alone = part.copy()
        any_kernels.gelu_(alone)
        np.testing.assert_array_equal(alone, curved[first:last])

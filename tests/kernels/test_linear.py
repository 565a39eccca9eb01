"""linear, embedding, pack and unpack: every format on every instruction set against the NumPy twin."""

from __future__ import annotations

import numpy as np
import pytest

from glm4.errors import TensorError
from glm4.kernels import FORMATS, PackedWeight, random_packed
from glm4.kernels.base import Kernels
from glm4.kernels.reference import ACTIVATION_GROUP, quantize_activations

SHAPES = [(1, 1), (5, 7), (32, 32), (33, 31), (64, 100), (64, 128), (97, 160), (34, 223), (130, 513)]
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 31, 33, 127, 129]


def gaussian(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    """Largest difference relative to the largest expected value."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    scale = float(np.abs(expected).max(initial=1e-30))
    assert float(np.abs(actual - expected).max(initial=0.0)) <= tolerance * scale


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_equals_twin(
    native: Kernels, reference: Kernels, rng: np.random.Generator, format: str, shape: tuple[int, int]
) -> None:
    n, k = shape
    weight = reference.pack(format, gaussian(rng, n, k))
    bias = gaussian(rng, n)
    x = gaussian(rng, max(ROWS), k)
    expected = reference.linear(x, weight, bias)
    for m in ROWS:
        assert_close(native.linear(x[:m], weight, bias), expected[:m])
    assert_close(native.linear(x, weight), reference.linear(x, weight))


@pytest.mark.parametrize("format", FORMATS)
def test_linear_many_rows_span_bands(
    native: Kernels, reference: Kernels, rng: np.random.Generator, format: str
) -> None:
    weight = reference.pack(format, gaussian(rng, 40, 70))
    x = gaussian(rng, 500, 70)
    assert_close(native.linear(x, weight), reference.linear(x, weight))


@pytest.mark.parametrize("format", FORMATS)
def test_linear_row_is_independent_of_its_batch(any_kernels: Kernels, rng: np.random.Generator, format: str) -> None:
    weight = any_kernels.pack(format, gaussian(rng, 65, 1100))
    x = gaussian(rng, 260, 1100)
    whole = any_kernels.linear(x, weight)
    for first, last in [(0, 1), (1, 3), (100, 113), (7, 250), (255, 260)]:
        np.testing.assert_array_equal(any_kernels.linear(x[first:last], weight), whole[first:last])


@pytest.mark.parametrize("format", FORMATS)
def test_linear_is_independent_of_threads(native: Kernels, rng: np.random.Generator, format: str) -> None:
    weight = native.pack(format, gaussian(rng, 200, 512))
    x = gaussian(rng, 50, 512)
    expected = native.linear(x, weight)
    for threads in (1, 2, 5):
        native.set_num_threads(threads)
        np.testing.assert_array_equal(native.linear(x, weight), expected)


@pytest.mark.parametrize("format", FORMATS)
def test_linear_of_no_rows(any_kernels: Kernels, rng: np.random.Generator, format: str) -> None:
    weight = any_kernels.pack(format, gaussian(rng, 5, 6))
    assert any_kernels.linear(np.empty((0, 6), np.float32), weight).shape == (0, 5)


def test_dense_linear_against_float64(any_kernels: Kernels, rng: np.random.Generator) -> None:
    w, x, bias = gaussian(rng, 70, 900), gaussian(rng, 9, 900), gaussian(rng, 70)
    expected = x.astype(np.float64) @ w.astype(np.float64).T + bias
    actual = any_kernels.linear(x, any_kernels.pack("fp32", w), bias)
    assert np.abs(actual - expected).max() < 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_quantised_linear_against_its_definition(reference: Kernels, rng: np.random.Generator, format: str) -> None:
    """Float64 sums over dequantised weights and dequantised activations, formed without the twin's grouping."""
    w, x = gaussian(rng, 40, 300), gaussian(rng, 5, 300)
    weight = reference.pack(format, w)
    q, scales = quantize_activations(x, ACTIVATION_GROUP[format])
    a = (q.astype(np.float64) * scales[:, :, None]).reshape(5, -1)[:, :300]
    expected = (a @ reference.unpack(weight).astype(np.float64).T).astype(np.float32)
    # int4: a negative sum borrows one unit of the offset's factor, which is an eighth of an activation step
    assert_close(reference.linear(x, weight), expected, tolerance=1e-5 if format == "int8" else 5e-4)
    assert np.abs(a - x).max() <= np.abs(x).max() / 254 * 1.0001


def test_extreme_integers_do_not_saturate(native: Kernels) -> None:
    """All products at their limit and of one sign: where a 16-bit intermediate sum would overflow."""
    for sign in (1.0, -1.0):
        w = np.full((32, 256), 127.0, np.float32)
        x = np.full((3, 256), sign, np.float32)
        np.testing.assert_allclose(native.linear(x, native.pack("int8", w)), sign * 127 * 256, rtol=1e-4)
        for value in (-8.0, 8.0):
            w4 = np.full((32, 256), value, np.float32)
            np.testing.assert_allclose(native.linear(x, native.pack("int4", w4)), sign * value * 256, rtol=1e-4)


@pytest.mark.parametrize("low", [0, 15])
@pytest.mark.parametrize("offset", [0, 1, 128, 255])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_extreme_int4_cells(native: Kernels, reference: Kernels, low: int, offset: int, sign: float) -> None:
    """Every nibble, scale, offset and activation at its limit: where a 16-bit half would overflow."""
    weight = reference.pack("int4", np.ones((32, 256), np.float32))
    cells = weight.data[:-128].reshape(8, 576)
    cells[:, :512] = low * 17
    cells[:, 512::2] = 255
    cells[:, 513::2] = offset
    x = np.full((7, 256), sign, np.float32)
    assert_close(native.linear(x, weight), reference.linear(x, weight), tolerance=1e-6)
    exact = x @ reference.unpack(weight).T
    assert np.abs(native.linear(x, weight) - exact).max() <= 1e-3 * max(1.0, float(np.abs(exact).max()))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_activation_spoils_its_row_only(
    any_kernels: Kernels, rng: np.random.Generator, format: str, bad: float
) -> None:
    weight = any_kernels.pack(format, gaussian(rng, 33, 70))
    x = gaussian(rng, 4, 70)
    expected = any_kernels.linear(x, weight)
    x[2, 69] = bad
    with np.errstate(invalid="ignore"):
        actual = any_kernels.linear(x, weight)
    assert not np.isfinite(actual[2]).any()
    np.testing.assert_array_equal(actual[[0, 1, 3]], expected[[0, 1, 3]])


@pytest.mark.parametrize("format", FORMATS)
def test_zero_and_tiny_activations(any_kernels: Kernels, rng: np.random.Generator, format: str) -> None:
    weight = any_kernels.pack(format, gaussian(rng, 8, 64))
    x = np.zeros((2, 64), np.float32)
    x[1] = 1e-38
    assert np.abs(any_kernels.linear(x, weight)).max() < 1e-35


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pack_is_byte_identical_to_twin(
    native: Kernels, reference: Kernels, rng: np.random.Generator, format: str, shape: tuple[int, int]
) -> None:
    w = gaussian(rng, *shape) * np.exp(gaussian(rng, shape[0], 1) * 2.5).astype(np.float32)
    w[rng.random(shape) < 0.1] = 0.0
    packed = native.pack(format, w)
    np.testing.assert_array_equal(packed.data, reference.pack(format, w).data)
    assert packed.data.ctypes.data % 64 == 0
    np.testing.assert_array_equal(native.unpack(packed), reference.unpack(packed))


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_pack_ties_and_subnormals_are_identical(native: Kernels, reference: Kernels, format: str) -> None:
    rows = [
        np.arange(-16, 16) / 2.0,
        np.full(32, 1e-7),
        np.full(32, 65504.0 * 7),
        np.full(32, 0.3),
        -np.full(32, 1e-35),
        np.zeros(32),
        -np.arange(32.0),
    ]
    w = np.array(rows, dtype=np.float32)
    np.testing.assert_array_equal(native.pack(format, w).data, reference.pack(format, w).data)


ROUND_TRIP = {"fp32": 0.0, "bf16": 0.0018, "int8": 0.0066, "int4": 0.0805}


@pytest.mark.parametrize("format", FORMATS)
def test_round_trip_error(any_kernels: Kernels, rng: np.random.Generator, format: str) -> None:
    """Relative root mean square error on Gaussian weights; a plain symmetric 4-bit rounding has 0.097."""
    w = gaussian(rng, 96, 512) * np.float32(0.02)
    error = any_kernels.unpack(any_kernels.pack(format, w)) - w
    assert np.sqrt(np.square(error).mean() / np.square(w).mean()) <= ROUND_TRIP[format]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pack_names_the_bad_row(any_kernels: Kernels, rng: np.random.Generator, format: str, bad: float) -> None:
    w = gaussian(rng, 100, 70)
    w[41, 69] = w[99, 0] = bad
    with pytest.raises(TensorError, match="row 41"):
        any_kernels.pack(format, w)


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_pack_refuses_what_its_scale_cannot_hold(any_kernels: Kernels, format: str) -> None:
    w = np.full((3, 8), 1e7 if format == "int8" else 1e16, np.float32)
    with pytest.raises(TensorError, match="row 0"):
        any_kernels.pack(format, w)


@pytest.mark.parametrize("format", FORMATS)
def test_embedding_is_rows_of_unpack(any_kernels: Kernels, rng: np.random.Generator, format: str) -> None:
    weight = any_kernels.pack(format, gaussian(rng, 77, 45))
    ids = np.array([0, 76, 31, 32, 32, 5], np.int32)
    np.testing.assert_array_equal(any_kernels.embedding(weight, ids), any_kernels.unpack(weight)[ids])
    assert any_kernels.embedding(weight, ids[:0]).shape == (0, 45)


@pytest.mark.parametrize("format", FORMATS)
def test_random_packed_is_about_gaussian(reference: Kernels, format: str) -> None:
    weight = random_packed(format, 300, 500, np.random.default_rng(1), 0.02)
    values = reference.unpack(weight)
    assert abs(float(values.std()) - 0.02) < 0.001
    assert abs(float(values.mean())) < 0.001


@pytest.mark.parametrize("format", FORMATS)
def test_large_buffers_are_aligned_and_sized(format: str) -> None:
    weight = random_packed(format, 4096, 4100, np.random.default_rng(1), 1.0)
    fmt = FORMATS[format]
    tails = 33 * fmt.span_tail_nbytes + fmt.block_tail_nbytes
    assert weight.nbytes == 128 * (129 * fmt.cell_nbytes + tails)
    assert weight.data.ctypes.data % 64 == 0


def test_bits_per_weight_of_the_shapes_of_glm4() -> None:
    """Scales, tails and padding counted; 13696 is 107 spans."""
    for rows, cols in [(4608, 4096), (4096, 4096), (27392, 4096), (4096, 13696)]:
        assert FORMATS["int4"].bits_per_weight(rows, cols) <= 4.51
        assert FORMATS["int8"].bits_per_weight(rows, cols) <= 8.13


@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0])
def test_int4_of_groups_far_from_zero(any_kernels: Kernels, rng: np.random.Generator, spread: float) -> None:
    """Groups whose mean is far from zero, beside an outlier in the row."""
    w = gaussian(rng, 40, 256) * np.float32(0.02)
    w[:, 32:64] += 0.3
    w[3, 100] = spread
    error = np.abs(any_kernels.unpack(any_kernels.pack("int4", w)) - w)
    group_range = np.ptp(w.reshape(40, 8, 32), axis=2).repeat(32).reshape(40, 256)
    row_max = np.abs(w).max(axis=1, keepdims=True)
    assert (error <= group_range / 13 / 2 * 1.6 + row_max / 127).all()


def test_packed_weight_checks_itself() -> None:
    with pytest.raises(ValueError, match="unknown weight format"):
        PackedWeight(np.empty(4096, np.uint8), "int3", 32, 32)
    with pytest.raises(ValueError, match="is 4096 bytes"):
        PackedWeight(np.empty(4095, np.uint8), "fp32", 32, 32)
    with pytest.raises(ValueError, match="rows and columns"):
        PackedWeight(np.empty(0, np.uint8), "fp32", 0, 32)

"""Every kernel against its NumPy twin at the row counts where tiles, blocks and bands end, and at odd widths."""

from __future__ import annotations

import numpy as np
import pytest

from glm4.kernels import FORMATS, int8_cache
from glm4.kernels.base import Kernels

ROWS = [*range(1, 10), 31, 32, 33, 127, 128, 129]
# (outputs, inputs): no multiples of a block of 32 outputs, a group of 32 columns or a span of 128, and exact ones.
SHAPES = [(31, 33), (33, 127), (65, 129), (1, 257), (95, 31), (32, 128), (129, 96)]
WIDTHS = [1, 31, 33, 127, 129, 256]
CACHES = [np.float32, np.float16, np.int8]


def gaussian(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    assert float(np.abs(actual - expected).max()) <= tolerance * max(1e-30, float(np.abs(expected).max()))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear(
    native: Kernels, reference: Kernels, rng: np.random.Generator, format: str, shape: tuple[int, int]
) -> None:
    weight = native.pack(format, gaussian(rng, *shape))
    bias, x = gaussian(rng, shape[0]), gaussian(rng, max(ROWS), shape[1])
    expected = reference.linear(x, weight, bias)
    for rows in ROWS:
        assert_close(native.linear(x[:rows], weight, bias), expected[:rows])
        # Other rows in other tiles, and from the middle of the batch.
        assert_close(native.linear(x[-rows:], weight, bias), expected[-rows:])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pack_unpack_and_embedding(
    native: Kernels, reference: Kernels, rng: np.random.Generator, format: str, shape: tuple[int, int]
) -> None:
    w = gaussian(rng, *shape)
    packed, twin = native.pack(format, w), reference.pack(format, w)
    np.testing.assert_array_equal(packed.data, twin.data)
    np.testing.assert_array_equal(native.unpack(packed), reference.unpack(twin))
    for rows in ROWS:
        ids = rng.integers(0, shape[0], rows).astype(np.int32)
        np.testing.assert_array_equal(native.embedding(packed, ids), reference.embedding(twin, ids))


@pytest.mark.parametrize("width", WIDTHS)
def test_elementwise(native: Kernels, reference: Kernels, rng: np.random.Generator, width: int) -> None:
    scale = gaussian(rng, width)
    for rows in ROWS:
        x, y, both = gaussian(rng, rows, width), gaussian(rng, rows, width), gaussian(rng, rows, 2 * width) * 3
        assert_close(native.rms_norm(x, scale, 1e-6), reference.rms_norm(x, scale, 1e-6), 2e-6)
        assert_close(native.layer_norm(x, scale, y[0], 1e-6), reference.layer_norm(x, scale, y[0], 1e-6), 5e-6)
        assert_close(native.swiglu(both), reference.swiglu(both), 2e-6)
        assert_close(native.log_softmax(both), reference.log_softmax(both), 2e-6)
        ours, twins = x.copy(), x.copy()
        native.add_(ours, y)
        reference.add_(twins, y)
        np.testing.assert_array_equal(ours, twins)
        native.gelu_(ours)
        reference.gelu_(twins)
        assert_close(ours, twins, 5e-7)


@pytest.mark.parametrize(("heads", "dim", "half"), [(1, 2, 1), (3, 10, 5), (5, 48, 12), (2, 72, 33), (7, 34, 16)])
def test_rotary(native: Kernels, reference: Kernels, rng: np.random.Generator, heads: int, dim: int, half: int) -> None:
    for rows in ROWS:
        x, angles = gaussian(rng, rows, heads, dim), gaussian(rng, rows, half)
        ours, twins = x.copy(), x.copy()
        for kernels, target in ((native, ours), (reference, twins)):
            kernels.rotary(target, np.cos(angles), np.sin(angles))
        assert_close(ours, twins, 1e-6)


def new_cache(dtype: type, pages: int, heads: int, dim: int, page: int) -> tuple[np.ndarray, np.ndarray]:
    size = dim + (int8_cache.SCALE_NBYTES if dtype is np.int8 else 0)
    return np.zeros((pages, heads, size, page), dtype), np.zeros((pages, heads, page, size), dtype)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", CACHES)
@pytest.mark.parametrize(
    ("kv_heads", "group", "dim", "page"), [(1, 3, 16, 16), (2, 16, 48, 32), (3, 1, 80, 48), (2, 1, 112, 32)]
)
def test_store_kv_and_attention(
    native: Kernels,
    reference: Kernels,
    rng: np.random.Generator,
    kv_heads: int,
    group: int,
    dim: int,
    page: int,
    dtype: type,
) -> None:
    """Each count of queries over a cache that holds 0, 1 and 30 tokens more, all in one call."""
    for rows in ROWS:
        contexts = [rows, rows + 1, rows + 30]
        used = [-(-context // page) for context in contexts]
        order = rng.permutation(sum(used)).astype(np.int32)
        tables = np.full((3, max(used)), -1, np.int32)
        caches = [new_cache(dtype, sum(used), kv_heads, dim, page) for _ in range(2)]
        for s, (context, count) in enumerate(zip(contexts, used, strict=True)):
            tables[s, :count], order = order[:count], order[count:]
            where = np.arange(context)
            slots = tables[s, where // page].astype(np.int64) * page + where % page
            k, v = gaussian(rng, context, kv_heads, dim), gaussian(rng, context, kv_heads, dim)
            for kernels, cache in zip((native, reference), caches, strict=True):
                kernels.store_kv(k, v, *cache, slots)
        for ours, twins in zip(*caches, strict=True):
            np.testing.assert_array_equal(ours, twins)
        q = gaussian(rng, 3 * rows, kv_heads * group, dim)
        starts = np.arange(4, dtype=np.int32) * rows
        for causal in (True, False):
            found, expected = (
                kernels.paged_attention(q, *cache, tables, starts, np.array(contexts, np.int32), 0.2, causal)
                for kernels, cache in zip((native, reference), caches, strict=True)
            )
            assert_close(found, expected, 2e-4 if dtype is np.int8 else 5e-6)

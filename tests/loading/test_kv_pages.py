"""Pages as bytes: native ones come back to the last bit, rounded ones within half a step, and hardly move again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny_vision
from glm4.loading.kv_pages import PageCodec
from glm4.model.kv_cache import KVCache, page_nbytes

CONFIG = tiny_vision.CONFIG
Layers = list[NDArray[Any]]


def filled(kv_dtype: str, scale: float = 1.0) -> KVCache:
    """Four pages of normal numbers, with channels of keys and tokens of values of different magnitudes."""
    rng = np.random.default_rng(3)
    cache = KVCache(CONFIG, 4, kv_dtype)
    for array in (*cache.keys, *cache.values):
        if kv_dtype == "int8":
            array[:] = rng.integers(-127, 128, array.shape)
        else:
            array[:] = rng.standard_normal(array.shape) * scale * 10 ** rng.uniform(-2, 1, (*array.shape[:3], 1))
    return cache


def copied(source: KVCache, rounds: bool, page: int) -> KVCache:
    """A cache whose page 1 has gone through bytes."""
    target = KVCache(CONFIG, 4, source.kv_dtype)
    codec, other = PageCodec(source, rounds), PageCodec(target, rounds)
    data = codec.encode(codec.copy([3, page]), 1)
    assert data is not None
    assert len(data) == codec.nbytes == other.nbytes
    other.decode(memoryview(bytearray(data)), 1)
    for array in (*target.keys, *target.values):
        assert not array[[0, 2, 3]].any(), "no other page was touched"
    return target


@pytest.mark.parametrize(("kv_dtype", "rounds"), [("fp32", False), ("fp16", False), ("int8", False), ("int8", True)])
def test_native_pages_keep_every_bit(kv_dtype: str, rounds: bool) -> None:
    source = filled(kv_dtype)
    codec = PageCodec(source, rounds)
    assert not codec.rounds
    assert codec.nbytes == codec.page_nbytes == page_nbytes(CONFIG, kv_dtype)
    target = copied(source, rounds, 2)
    for old, new in zip((*source.keys, *source.values), (*target.keys, *target.values), strict=True):
        assert old[2].tobytes() == new[1].tobytes()


@pytest.mark.parametrize("kv_dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e3])
def test_rounded_pages_are_within_half_a_step(kv_dtype: str, scale: float) -> None:
    source = filled(kv_dtype, scale)
    codec = PageCodec(source, round_pages=True)
    assert codec.page_nbytes == page_nbytes(CONFIG, kv_dtype)
    assert codec.nbytes < (0.45 if kv_dtype == "fp32" else 0.7) * codec.page_nbytes
    once = copied(source, True, 2)
    twice = copied(once, True, 1)
    arrays = zip((*source.keys, *source.values), (*once.keys, *once.values), (*twice.keys, *twice.values), strict=True)
    for old, new, again in ((a[2], b[1], c[1]) for a, b, c in arrays):
        exact, rounded = old.astype(np.float64), new.astype(np.float64)
        steps = np.ptp(exact, axis=-1, keepdims=True) / 255
        spacing = np.spacing(np.abs(old)).astype(np.float64)  # of the cache's own format
        assert (np.abs(rounded - exact) <= 0.501 * steps + spacing).all()
        assert (np.abs(again.astype(np.float64) - rounded) <= 0.01 * steps + spacing).all()


@pytest.mark.parametrize("kv_dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("value", [0.0, -3.5, 1e-7, 60000.0])
def test_constant_vectors_stay_what_they_are(kv_dtype: str, value: float) -> None:
    source = filled(kv_dtype)
    for array in (*source.keys, *source.values):
        array[2] = value
    target = copied(source, True, 2)
    for old, new in zip((*source.keys, *source.values), (*target.keys, *target.values), strict=True):
        np.testing.assert_array_equal(old[2], new[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pages_that_are_not_finite_are_not_rounded(bad: float) -> None:
    source = filled("fp16")
    source.values[-1][2, 0, 5, 1] = bad
    codec = PageCodec(source, round_pages=True)
    copies = codec.copy([1, 2])
    assert codec.encode(copies, 0) is not None
    assert codec.encode(copies, 1) is None
    wide = filled("fp32")
    wide.keys[0][2, 0, 0, :2] = 3e38, -3e38  # finite, but further apart than float32 can say
    codec = PageCodec(wide, round_pages=True)
    assert codec.encode(codec.copy([2]), 0) is None


def test_a_copy_does_not_follow_the_cache() -> None:
    source = filled("fp16")
    codec = PageCodec(source, round_pages=False)
    copies = codec.copy([2])
    before = codec.encode(copies, 0)
    for array in (*source.keys, *source.values):
        array[:] = 0
    assert codec.encode(copies, 0) == before

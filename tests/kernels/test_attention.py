"""store_kv and paged_attention against a plain float64 softmax, and their invariances."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from glm4.kernels import int8_cache
from glm4.kernels.base import Kernels

PAGE = 32


def empty_cache(pages: int, kv_heads: int, dim: int, page_size: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Unwritten slots hold NaN (of an int8 cache the scales): nothing may ever be computed from them."""
    fill = -1 if dtype is np.int8 else np.nan
    rows = dim + (int8_cache.SCALE_NBYTES if dtype is np.int8 else 0)
    return np.full((pages, kv_heads, rows, page_size), fill, dtype), np.full(
        (pages, kv_heads, page_size, rows), fill, dtype
    )


def cached(x: np.ndarray, dtype: type) -> np.ndarray:
    """What a cache of that type keeps of keys or values."""
    if dtype is not np.int8:
        return x.astype(dtype)
    numbers, scales = int8_cache.quantize_tokens(x)
    return numbers * scales[..., None]


@dataclass
class Sequences:
    """Random keys and values of several sequences, stored in pages handed out in random order."""

    keys: list[np.ndarray]
    values: list[np.ndarray]
    k_cache: np.ndarray
    v_cache: np.ndarray
    tables: np.ndarray

    @classmethod
    def make(
        cls,
        kernels: Kernels,
        rng: np.random.Generator,
        lengths: list[int],
        *,
        kv_heads: int,
        dim: int,
        dtype: type = np.float32,
        page_size: int = PAGE,
    ) -> Sequences:
        pages_of = [-(-length // page_size) for length in lengths]
        total = sum(pages_of) + 3
        order = rng.permutation(total).astype(np.int32)
        tables = np.full((len(lengths), max(pages_of) + 1), -1, np.int32)
        k_cache, v_cache = empty_cache(total, kv_heads, dim, page_size, dtype)
        keys, values, used = [], [], 0
        for s, length in enumerate(lengths):
            tables[s, : pages_of[s]] = order[used : used + pages_of[s]]
            used += pages_of[s]
            k, v = rng.standard_normal((2, length, kv_heads, dim), dtype=np.float32)
            positions = np.arange(length)
            slots = tables[s, positions // page_size].astype(np.int64) * page_size + positions % page_size
            kernels.store_kv(k, v, k_cache, v_cache, slots)
            keys.append(cached(k, dtype))
            values.append(cached(v, dtype))
        return cls(keys, values, k_cache, v_cache, tables)

    def attend(
        self,
        kernels: Kernels,
        queries: list[np.ndarray],
        contexts: list[int],
        scale: float = 0.3,
        causal: bool = True,
    ) -> list[np.ndarray]:
        """Attention of each sequence's queries, which are the last rows of its context if causal."""
        starts = np.cumsum([0, *(len(q) for q in queries)]).astype(np.int32)
        out = kernels.paged_attention(
            np.concatenate(queries),
            self.k_cache,
            self.v_cache,
            self.tables,
            starts,
            np.array(contexts, np.int32),
            scale,
            causal,
        )
        return [out[starts[i] : starts[i + 1]] for i in range(len(queries))]

    def oracle(self, s: int, q: np.ndarray, context: int, scale: float = 0.3, causal: bool = True) -> np.ndarray:
        """The textbook formula in float64."""
        group = q.shape[1] // self.keys[s].shape[1]
        k = np.repeat(self.keys[s][:context].astype(np.float64), group, axis=1)
        v = np.repeat(self.values[s][:context].astype(np.float64), group, axis=1)
        scores = np.einsum("mhd,khd->mhk", q.astype(np.float64), k) * scale
        positions = context - len(q) + np.arange(len(q))
        if causal:
            scores[np.broadcast_to(np.arange(context) > positions[:, None, None], scores.shape)] = -np.inf
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        return np.einsum("mhk,khd->mhd", weights, v)


def queries(rng: np.random.Generator, rows: int, heads: int, dim: int) -> np.ndarray:
    return rng.standard_normal((rows, heads, dim), dtype=np.float32)


CASES = [  # kv heads, group, head dim, page size
    (1, 1, 4, 16),
    (2, 4, 16, 32),
    (2, 16, 128, 32),
    (4, 3, 64, 48),
    (3, 2, 20, 32),
    (2, 7, 72, 64),
    (1, 5, 33, 32),
    (3, 1, 112, 32),
]
INT8_CASES = [
    (1, 1, 16, 16),
    (2, 16, 128, 32),
    (4, 3, 64, 48),
    (3, 2, 80, 32),
    (2, 7, 64, 64),
    (1, 9, 96, 256),
    (3, 1, 112, 32),
]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_against_float64(
    any_kernels: Kernels, rng: np.random.Generator, case: tuple[int, int, int, int], dtype: type, causal: bool
) -> None:
    kv_heads, group, dim, page_size = case
    lengths = [1, 40, 97, 64]
    cached = Sequences.make(any_kernels, rng, lengths, kv_heads=kv_heads, dim=dim, dtype=dtype, page_size=page_size)
    qs = [queries(rng, rows, kv_heads * group, dim) for rows in (1, 40, 9, 1)]
    for s, out in enumerate(cached.attend(any_kernels, qs, lengths, causal=causal)):
        expected = cached.oracle(s, qs[s], lengths[s], causal=causal)
        assert np.abs(out - expected).max() < 2e-6 * max(1.0, float(np.abs(expected).max()))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("case", INT8_CASES, ids=str)
def test_int8_attention_against_float64(
    any_kernels: Kernels, rng: np.random.Generator, case: tuple[int, int, int, int], causal: bool
) -> None:
    """Against the cached numbers: what is left is the 16-bit rounding of queries and weights."""
    kv_heads, group, dim, page_size = case
    lengths = [1, 40, 97, 64, 333]
    cached = Sequences.make(any_kernels, rng, lengths, kv_heads=kv_heads, dim=dim, dtype=np.int8, page_size=page_size)
    qs = [queries(rng, rows, kv_heads * group, dim) for rows in (1, 40, 9, 1, 2)]
    for s, out in enumerate(cached.attend(any_kernels, qs, lengths, causal=causal)):
        expected = cached.oracle(s, qs[s], lengths[s], causal=causal)
        assert np.abs(out - expected).max() < 2e-4 * max(1.0, float(np.abs(expected).max()))


def test_int8_pages_are_what_the_twin_writes(native: Kernels, reference: Kernels, rng: np.random.Generator) -> None:
    x = rng.standard_normal((70, 3, 48), dtype=np.float32) * np.float32(10) ** rng.integers(-36, 36, (70, 3, 1)).astype(
        np.float32
    )
    x[3, 1, 5], x[4, 0, 7], x[5, 2] = np.nan, np.inf, 0.0
    x[6, 0] = np.arange(48) - 23.5  # 127 / 24.5 times half-integers: ties
    slots = rng.permutation(96)[:70].astype(np.int64)
    pages = []
    for kernels in (native, reference):
        k_cache, v_cache = empty_cache(3, 3, 48, 32, np.int8)
        kernels.store_kv(x, x[::-1].copy(), k_cache, v_cache, slots)
        pages.append((k_cache, v_cache))
    for view in (int8_cache.key_views, int8_cache.value_views):
        for ours, twin in zip(*(view(pair[view is int8_cache.value_views]) for pair in pages), strict=True):
            np.testing.assert_array_equal(ours, twin)


def test_an_int8_token_that_is_no_number_spoils_those_who_see_it(
    any_kernels: Kernels, rng: np.random.Generator
) -> None:
    cached = Sequences.make(any_kernels, rng, [40], kv_heads=1, dim=16, dtype=np.int8)
    k = rng.standard_normal((1, 1, 16), dtype=np.float32)
    k[0, 0, 3] = np.inf
    slot = np.array([cached.tables[0, 0] * PAGE + 20], np.int64)
    any_kernels.store_kv(k, np.zeros_like(k), cached.k_cache, cached.v_cache, slot)
    out = cached.attend(any_kernels, [queries(rng, 40, 2, 16)], [40])[0]
    assert np.isfinite(out[:20]).all()
    assert np.isnan(out[20:]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_long_contexts_shared_by_threads(native: Kernels, rng: np.random.Generator, dtype: type) -> None:
    """Beyond the length from which a context is cut up among threads: right, and equal for every number of them."""
    lengths = [5000, 2100, 30]
    cached = Sequences.make(native, rng, lengths, kv_heads=2, dim=32, dtype=dtype)
    qs = [queries(rng, rows, 6, 32) for rows in (2, 70, 30)]
    native.set_num_threads(1)
    expected = cached.attend(native, qs, lengths)
    for s in range(3):
        assert np.abs(expected[s] - cached.oracle(s, qs[s], lengths[s])).max() < (2e-4 if dtype is np.int8 else 1e-5)
    for threads in (2, 3, 16):
        native.set_num_threads(threads)
        for s, out in enumerate(cached.attend(native, qs, lengths)):
            np.testing.assert_array_equal(out, expected[s])
            np.testing.assert_array_equal(
                cached.attend(native, [q[:0] if i != s else q for i, q in enumerate(qs)], lengths)[s], out
            )
        last = cached.attend(native, [q[-1:] for q in qs], lengths)
        for s in range(3):
            np.testing.assert_array_equal(last[s], expected[s][-1:])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_chunks_and_neighbours_change_nothing(any_kernels: Kernels, rng: np.random.Generator, dtype: type) -> None:
    lengths = [150, 70]
    cached = Sequences.make(any_kernels, rng, lengths, kv_heads=2, dim=48, dtype=dtype)
    qs = [queries(rng, length, 10, 48) for length in lengths]
    whole = cached.attend(any_kernels, qs, lengths)
    for cuts in ([0, 1, 2, 33, 150], [0, 32, 64, 149, 150], [0, 97, 150]):
        for first, last in itertools.pairwise(cuts):
            part = cached.attend(any_kernels, [qs[0][first:last], qs[1][69:]], [last, 70])
            np.testing.assert_array_equal(part[0], whole[0][first:last])
            np.testing.assert_array_equal(part[1], whole[1][69:])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_without_the_mask_any_rows_at_a_time(native: Kernels, rng: np.random.Generator, dtype: type) -> None:
    """A row's result is the same wherever it stands in whatever batch, alone too, and for every number of threads."""
    lengths = [1301, 70]  # more than a chunk of keys, and an odd number of rows
    cached = Sequences.make(native, rng, lengths, kv_heads=2, dim=112, dtype=dtype)
    qs = [queries(rng, length, 2, 112) for length in lengths]
    whole = cached.attend(native, qs, lengths, 0.1, causal=False)
    for s in range(2):
        expected = cached.oracle(s, qs[s], lengths[s], 0.1, causal=False)
        assert np.abs(whole[s] - expected).max() < (2e-4 if dtype is np.int8 else 1e-5)
    for threads in (1, 2, 8):
        native.set_num_threads(threads)
        for first, last in [(0, 1301), (0, 1), (3, 10), (64, 128), (640, 1300), (1300, 1301)]:
            other = slice(69, 70) if last - first < 100 else slice(0, 0)
            part = cached.attend(native, [qs[0][first:last], qs[1][other]], lengths, 0.1, causal=False)
            np.testing.assert_array_equal(part[0], whole[0][first:last])
            np.testing.assert_array_equal(part[1], whole[1][other])


def test_without_the_mask_the_twin_takes_any_rows(reference: Kernels, rng: np.random.Generator) -> None:
    cached = Sequences.make(reference, rng, [70], kv_heads=2, dim=16)
    q = queries(rng, 70, 4, 16)
    whole = cached.attend(reference, [q], [70], causal=False)[0]
    for first, last in [(0, 1), (5, 40), (69, 70)]:
        part = cached.attend(reference, [q[first:last]], [70], causal=False)[0]
        np.testing.assert_array_equal(part, whole[first:last])


@pytest.mark.parametrize("dtype", [np.float16, np.int8])
def test_without_the_mask_a_token_that_is_no_number_spoils_all(
    any_kernels: Kernels, rng: np.random.Generator, dtype: type
) -> None:
    cached = Sequences.make(any_kernels, rng, [40, 40], kv_heads=2, dim=16, dtype=dtype)
    v = rng.standard_normal((1, 2, 16), dtype=np.float32)
    v[0, 1, 3] = np.nan
    slot = np.array([cached.tables[0, 1] * PAGE + 7], np.int64)
    any_kernels.store_kv(v, v, cached.k_cache, cached.v_cache, slot)
    spoiled, intact = cached.attend(any_kernels, [queries(rng, 40, 2, 16)] * 2, [40, 40], causal=False)
    assert np.isfinite(spoiled[:, 0]).all()
    assert np.isnan(spoiled[:, 1]).any(axis=1).all()
    assert np.isfinite(intact).all()


@pytest.mark.parametrize("dtype", [np.float16, np.int8])
def test_threads_change_nothing(native: Kernels, rng: np.random.Generator, dtype: type) -> None:
    cached = Sequences.make(native, rng, [333], kv_heads=2, dim=64, dtype=dtype)
    q = queries(rng, 20, 32, 64)
    expected = cached.attend(native, [q], [333])[0]
    for threads in (1, 2, 8):
        native.set_num_threads(threads)
        np.testing.assert_array_equal(cached.attend(native, [q], [333])[0], expected)
        np.testing.assert_array_equal(cached.attend(native, [q[19:]], [333])[0], expected[19:])


def test_page_order_changes_nothing(any_kernels: Kernels, rng: np.random.Generator) -> None:
    cached = Sequences.make(any_kernels, rng, [100], kv_heads=2, dim=16)
    q = queries(rng, 5, 4, 16)
    expected = cached.attend(any_kernels, [q], [100])[0]
    moved = rng.permutation(len(cached.k_cache))
    cached.k_cache, cached.v_cache = cached.k_cache[moved], cached.v_cache[moved]
    where = np.argsort(moved).astype(np.int32)
    cached.tables = np.where(cached.tables >= 0, where[cached.tables], -1).astype(np.int32)
    np.testing.assert_array_equal(cached.attend(any_kernels, [q], [100])[0], expected)


def test_strided_rows_of_a_fused_projection(any_kernels: Kernels, rng: np.random.Generator) -> None:
    """q, k and v as views of [rows, q | k | v], the way the model passes them."""
    heads, kv_heads, dim, rows = 4, 2, 8, 37
    fused = rng.standard_normal((rows, (heads + 2 * kv_heads) * dim), dtype=np.float32)
    q = fused[:, : heads * dim].reshape(rows, heads, dim)
    k = fused[:, heads * dim : (heads + kv_heads) * dim].reshape(rows, kv_heads, dim)
    v = fused[:, (heads + kv_heads) * dim :].reshape(rows, kv_heads, dim)
    assert q.base is not None
    assert not q.flags.c_contiguous
    outs = []
    for arrays in ((q, k, v), tuple(np.ascontiguousarray(a) for a in (q, k, v))):
        k_cache = np.zeros((2, kv_heads, dim, PAGE), np.float32)
        v_cache = np.zeros((2, kv_heads, PAGE, dim), np.float32)
        any_kernels.store_kv(arrays[1], arrays[2], k_cache, v_cache, np.arange(rows, dtype=np.int64))
        table, starts = np.array([[0, 1]], np.int32), np.array([0, rows], np.int32)
        outs.append(any_kernels.paged_attention(arrays[0], k_cache, v_cache, table, starts, starts[1:], 0.5))
    np.testing.assert_array_equal(outs[0], outs[1])


def test_large_scores_stay_finite(any_kernels: Kernels, rng: np.random.Generator) -> None:
    cached = Sequences.make(any_kernels, rng, [90], kv_heads=1, dim=8)
    q = queries(rng, 3, 2, 8) * 1000
    out = cached.attend(any_kernels, [q], [90])[0]
    assert np.abs(out - cached.oracle(0, q, 90)).max() < 1e-3


def test_bad_query_spoils_only_itself(any_kernels: Kernels, rng: np.random.Generator) -> None:
    cached = Sequences.make(any_kernels, rng, [70], kv_heads=1, dim=8)
    q = queries(rng, 6, 3, 8)
    expected = cached.attend(any_kernels, [q], [70])[0]
    q[2, 1, 5] = np.nan
    out = cached.attend(any_kernels, [q], [70])[0]
    assert np.isnan(out[2, 1]).all()
    out[2, 1] = expected[2, 1]
    np.testing.assert_array_equal(out, expected)


def test_no_rows_and_no_sequences(any_kernels: Kernels, rng: np.random.Generator) -> None:
    cached = Sequences.make(any_kernels, rng, [50, 20], kv_heads=1, dim=8)
    q = queries(rng, 2, 2, 8)
    idle, busy = cached.attend(any_kernels, [q[:0], q], [50, 20])
    assert idle.shape == (0, 2, 8)
    assert np.abs(busy - cached.oracle(1, q, 20)).max() < 1e-5
    zero = np.zeros(1, np.int32)
    out = any_kernels.paged_attention(q[:0], cached.k_cache, cached.v_cache, cached.tables[:0], zero, zero[:0], 1.0)
    assert out.shape == (0, 2, 8)


def test_store_kv_saturates_float16(any_kernels: Kernels) -> None:
    values = np.array([1e6, -1e6, 65519.0, np.inf, -np.inf, np.nan, 1e-8, 0.1], np.float32).reshape(1, 1, 8)
    k_cache, v_cache = np.zeros((1, 1, 8, 16), np.float16), np.zeros((1, 1, 16, 8), np.float16)
    any_kernels.store_kv(values, values, k_cache, v_cache, np.array([3], np.int64))
    expected = np.array([65504, -65504, 65504, 65504, -65504, np.nan, 0, 0.1], np.float16)
    np.testing.assert_array_equal(k_cache[0, 0, :, 3], expected)
    np.testing.assert_array_equal(v_cache[0, 0, 3], expected)
    assert np.count_nonzero(k_cache) == np.count_nonzero(v_cache) == 7


def test_store_kv_rounds_like_numpy(any_kernels: Kernels) -> None:
    """Every float16 value, the points halfway between them, and their neighbours."""
    half = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (half[1:] + half[:-1]) / 2
    x = np.concatenate([half, middle, np.nextafter(middle, np.inf), np.nextafter(middle, np.float32(0))])
    x = np.concatenate([x, -x]).astype(np.float32)
    x = np.pad(x, (0, -len(x) % 32)).reshape(-1, 1, 32)
    k_cache = np.zeros((-(-len(x) // 16), 1, 32, 16), np.float16)
    v_cache = np.zeros((len(k_cache), 1, 16, 32), np.float16)
    any_kernels.store_kv(x, x, k_cache, v_cache, np.arange(len(x)))
    np.testing.assert_array_equal(
        v_cache.reshape(-1, 32)[: len(x)].view(np.uint16), x[:, 0].astype(np.float16).view(np.uint16)
    )

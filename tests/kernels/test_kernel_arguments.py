"""Wrong arguments raise a clear error and never touch memory that is not theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from glm4.kernels import PackedWeight, _native, packed_nbytes
from glm4.kernels.base import Kernels

F = np.float32


def zeros(*shape: int, dtype: type = F) -> np.ndarray:
    return np.zeros(shape, dtype)


def weight(kernels: Kernels) -> PackedWeight:
    return kernels.pack("int8", zeros(40, 64))


def reversed_rows(a: np.ndarray) -> np.ndarray:
    return a[::-1]


def misaligned(*shape: int) -> np.ndarray:
    raw = np.zeros(int(np.prod(shape)) * 4 + 1, np.uint8)
    return raw[1:].view(F).reshape(shape)


LINEAR: list[tuple[str, Callable[[Kernels], object]]] = [
    ("float64 x", lambda k: k.linear(zeros(2, 64, dtype=np.float64), weight(k))),
    ("float16 x", lambda k: k.linear(zeros(2, 64, dtype=np.float16), weight(k))),
    ("wrong columns", lambda k: k.linear(zeros(2, 63), weight(k))),
    ("one dimension", lambda k: k.linear(zeros(64), weight(k))),
    ("transposed x", lambda k: k.linear(zeros(64, 2).T, weight(k))),
    ("strided x", lambda k: k.linear(zeros(4, 64)[::2], weight(k))),
    ("reversed x", lambda k: k.linear(reversed_rows(zeros(4, 64)), weight(k))),
    ("short bias", lambda k: k.linear(zeros(2, 64), weight(k), zeros(39))),
    ("float64 bias", lambda k: k.linear(zeros(2, 64), weight(k), zeros(40, dtype=np.float64))),
    ("bias of two dimensions", lambda k: k.linear(zeros(2, 64), weight(k), zeros(1, 40))),
    ("pack float64", lambda k: k.pack("fp32", zeros(2, 2, dtype=np.float64))),
    ("pack vector", lambda k: k.pack("fp32", zeros(4))),
    ("pack nothing", lambda k: k.pack("fp32", zeros(0, 4))),
    ("pack unknown format", lambda k: k.pack("int5", zeros(4, 4))),
    ("pack strided", lambda k: k.pack("int4", zeros(8, 8)[:, ::2])),
    ("int64 ids", lambda k: k.embedding(weight(k), zeros(2, dtype=np.int64))),
    ("ids of two dimensions", lambda k: k.embedding(weight(k), zeros(2, 2, dtype=np.int32))),
]

ELEMENTWISE: list[tuple[str, Callable[[Kernels], object]]] = [
    ("norm width", lambda k: k.rms_norm(zeros(2, 8), zeros(9), 1e-5)),
    ("norm float64", lambda k: k.rms_norm(zeros(2, 8, dtype=np.float64), zeros(8), 1e-5)),
    ("norm weight strided", lambda k: k.rms_norm(zeros(2, 8), zeros(16)[::2], 1e-5)),
    ("layer norm weight", lambda k: k.layer_norm(zeros(2, 8), zeros(9), zeros(8), 1e-5)),
    ("layer norm bias", lambda k: k.layer_norm(zeros(2, 8), zeros(8), zeros(7), 1e-5)),
    ("layer norm vector", lambda k: k.layer_norm(zeros(8), zeros(8), zeros(8), 1e-5)),
    ("layer norm float64", lambda k: k.layer_norm(zeros(2, 8), zeros(8), zeros(8, dtype=np.float64), 1e-5)),
    ("gelu vector", lambda k: k.gelu_(zeros(8))),
    ("gelu float16", lambda k: k.gelu_(zeros(2, 8, dtype=np.float16))),
    ("gelu strided", lambda k: k.gelu_(zeros(2, 16)[:, ::2])),
    ("rotary too wide", lambda k: k.rotary(zeros(2, 1, 8), zeros(2, 5), zeros(2, 5))),
    ("rotary rows", lambda k: k.rotary(zeros(2, 1, 8), zeros(3, 4), zeros(3, 4))),
    ("rotary sin", lambda k: k.rotary(zeros(2, 1, 8), zeros(2, 4), zeros(2, 3))),
    ("rotary inner stride", lambda k: k.rotary(zeros(2, 1, 16)[:, :, ::2], zeros(2, 4), zeros(2, 4))),
    ("swiglu odd", lambda k: k.swiglu(zeros(2, 7))),
    ("swiglu three dimensions", lambda k: k.swiglu(zeros(2, 2, 8))),
    ("swiglu int", lambda k: k.swiglu(zeros(2, 8, dtype=np.int32))),
    ("add shapes", lambda k: k.add_(zeros(2, 8), zeros(8, 2))),
    ("add float64", lambda k: k.add_(zeros(2, 8), zeros(2, 8, dtype=np.float64))),
    ("log_softmax empty", lambda k: k.log_softmax(zeros(2, 0))),
    ("log_softmax vector", lambda k: k.log_softmax(zeros(4))),
    ("no threads", lambda k: k.set_num_threads(0)),
]


@pytest.mark.parametrize("call", [c for _, c in LINEAR + ELEMENTWISE], ids=[n for n, _ in LINEAR + ELEMENTWISE])
def test_wrong_arrays_raise_value_error(any_kernels: Kernels, call: Callable[[Kernels], object]) -> None:
    with pytest.raises(ValueError):
        call(any_kernels)


@pytest.mark.parametrize("ids", [[-1], [40], [0, 1, 2**31 - 1], [-(2**31)]], ids=str)
def test_ids_out_of_range(any_kernels: Kernels, ids: list[int]) -> None:
    with pytest.raises(IndexError, match=r"outside 0\.\.39"):
        any_kernels.embedding(weight(any_kernels), np.array(ids, np.int32))


@pytest.mark.parametrize("value", [None, 3, "text", [[1.0] * 64]], ids=str)
def test_no_array_at_all(native: Kernels, value: Any) -> None:
    with pytest.raises(TypeError):
        native.add_(value, value)
    with pytest.raises((TypeError, ValueError, AttributeError)):
        native.linear(value, weight(native))


def test_read_only_outputs_are_refused(native: Kernels) -> None:
    x = zeros(2, 8)
    x.flags.writeable = False
    with pytest.raises(ValueError, match="writable"):
        native.add_(x, zeros(2, 8))
    with pytest.raises(ValueError, match="writable"):
        native.gelu_(x)
    with pytest.raises(ValueError, match="writable"):
        native.rotary(x.reshape(1, 2, 8), zeros(1, 4), zeros(1, 4))


def test_misaligned_and_swapped_bytes(native: Kernels) -> None:
    with pytest.raises(ValueError, match="float32"):
        native.rms_norm(misaligned(2, 8), zeros(8), 1e-5)
    with pytest.raises(ValueError):
        native.rms_norm(zeros(2, 8).astype(">f4"), zeros(8), 1e-5)


def test_overlapping_rows_are_refused(native: Kernels) -> None:
    x = np.lib.stride_tricks.as_strided(zeros(64), (4, 1, 8), (16, 32, 4))
    with pytest.raises(ValueError, match="overlapping"):
        native.rotary(x, zeros(4, 4), zeros(4, 4))


def test_raw_bindings_check_packed_sizes(native: Kernels) -> None:
    """The layer below PackedWeight does not trust it."""
    x, out = zeros(1, 64), zeros(1, 40)
    data = weight(native).data
    for rows, cols, code in [(40, 96, 2), (72, 64, 2), (40, 64, 3), (40, 64, 9), (40, 64, -1), (-40, 64, 2)]:
        with pytest.raises(ValueError):
            _native.linear(x, data, code, rows, cols, None, out)
    with pytest.raises(ValueError):
        _native.linear(x, data, 2, 2**40, 2**40, None, out)
    raw = np.zeros(packed_nbytes("int8", 40, 64) + 128, np.uint8)
    start = 32 - raw.ctypes.data % 64 + 64
    with pytest.raises(ValueError, match="aligned to 64"):
        _native.linear(x, raw[start : start + len(data)], 2, 40, 64, None, out)
    with pytest.raises(ValueError, match="dimension 1"):
        _native.linear(x, data, 2, 40, 64, None, zeros(1, 39))


class Cache:
    """A small valid set of attention arguments to spoil one at a time."""

    def __init__(self) -> None:
        self.q = zeros(3, 4, 8)
        self.k_cache, self.v_cache = zeros(5, 2, 8, 16), zeros(5, 2, 16, 8)
        self.tables = np.array([[0, 1, -1], [4, -1, -1]], np.int32)
        self.starts, self.lens = np.array([0, 2, 3], np.int32), np.array([20, 16], np.int32)
        self.k, self.v, self.slots = zeros(2, 2, 8), zeros(2, 2, 8), np.array([0, 79], np.int64)

    def attend(self, kernels: Kernels, causal: bool = True) -> np.ndarray:
        caches = self.k_cache, self.v_cache
        return kernels.paged_attention(self.q, *caches, self.tables, self.starts, self.lens, 1.0, causal)

    def store(self, kernels: Kernels) -> None:
        kernels.store_kv(self.k, self.v, self.k_cache, self.v_cache, self.slots)


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


SPOILED_ATTENTION: dict[str, dict[str, Any]] = {
    "head size": {"q": zeros(3, 4, 9)},
    "no channels": {"q": zeros(3, 4, 0), "k_cache": zeros(5, 2, 0, 16), "v_cache": zeros(5, 2, 16, 0)},
    "heads not a multiple": {"q": zeros(3, 3, 8)},
    "float64 queries": {"q": zeros(3, 4, 8, dtype=np.float64)},
    "mixed cache dtypes": {"v_cache": zeros(5, 2, 16, 8, dtype=np.float16)},
    "double cache": {"k_cache": zeros(5, 2, 8, 16, dtype=np.float64), "v_cache": zeros(5, 2, 16, 8, dtype=np.float64)},
    "int8 with odd heads": {
        "k_cache": zeros(5, 2, 12, 16, dtype=np.int8),
        "v_cache": zeros(5, 2, 16, 12, dtype=np.int8),
    },
    "int8 without scales": {"k_cache": zeros(5, 2, 4, 16, dtype=np.int8), "v_cache": zeros(5, 2, 16, 4, dtype=np.int8)},
    "int8 with a page too large": {
        "q": zeros(3, 4, 16),
        "k_cache": zeros(5, 2, 20, 528, dtype=np.int8),
        "v_cache": zeros(5, 2, 528, 20, dtype=np.int8),
    },
    "int8 with heads too large": {
        "q": zeros(3, 4, 528),
        "k_cache": zeros(5, 2, 532, 16, dtype=np.int8),
        "v_cache": zeros(5, 2, 16, 532, dtype=np.int8),
    },
    "int8 keys only": {"k_cache": zeros(5, 2, 8, 16, dtype=np.int8)},
    "caches disagree": {"v_cache": zeros(4, 2, 16, 8)},
    "page size": {"k_cache": zeros(5, 2, 8, 8), "v_cache": zeros(5, 2, 8, 8)},
    "strided cache": {"k_cache": zeros(5, 2, 8, 32)[:, :, :, ::2]},
    "int64 tables": {"tables": np.zeros((2, 3), np.int64)},
    "too few tables": {"tables": np.zeros((1, 3), np.int32)},
    "starts begin late": {"starts": i32(1, 2, 3)},
    "starts end early": {"starts": i32(0, 2, 2)},
    "starts end late": {"starts": i32(0, 2, 4)},
    "starts decrease": {"starts": i32(0, 4, 3)},
    "starts far negative": {"starts": i32(0, -(2**31), 3)},
    "starts too short": {"starts": i32(0, 3)},
    "context below queries": {"lens": i32(1, 16)},
    "context negative": {"lens": i32(-5, 16)},
    "context beyond table": {"lens": i32(49, 16)},
    "context huge": {"lens": i32(2**31 - 1, 16)},
}


@pytest.mark.parametrize("spoiled", SPOILED_ATTENTION.values(), ids=SPOILED_ATTENTION)
def test_lying_attention_arguments(any_kernels: Kernels, spoiled: dict[str, Any]) -> None:
    cache = Cache()
    assert cache.attend(any_kernels).shape == (3, 4, 8)
    for name, value in spoiled.items():
        setattr(cache, name, value)
    for causal in (True, False):
        with pytest.raises(ValueError):
            cache.attend(any_kernels, causal)


@pytest.mark.parametrize("page", [-1, 5, 2**31 - 1, -(2**31)])
def test_lying_block_tables(any_kernels: Kernels, page: int) -> None:
    cache = Cache()
    cache.tables[0, 1] = page
    with pytest.raises(IndexError, match=r"block_tables\[0\]\[1\]"):
        cache.attend(any_kernels)


@pytest.mark.parametrize("slot", [-1, 80, 2**62])
def test_slots_out_of_range(any_kernels: Kernels, slot: int) -> None:
    cache = Cache()
    cache.slots[1] = slot
    with pytest.raises(IndexError, match=r"outside 0\.\.79"):
        cache.store(any_kernels)


@pytest.mark.parametrize(
    "spoiled",
    [
        {"k": zeros(3, 2, 8)},
        {"v": zeros(2, 1, 8)},
        {"k": zeros(2, 2, 7)},
        {"slots": zeros(2, dtype=np.int32)},
        {"slots": zeros(3, dtype=np.int64)},
        {"k": zeros(2, 2, 8, dtype=np.float16)},
    ],
    ids=lambda spoiled: next(iter(spoiled)),
)
def test_lying_store_arguments(any_kernels: Kernels, spoiled: dict[str, Any]) -> None:
    cache = Cache()
    cache.store(any_kernels)
    for name, value in spoiled.items():
        setattr(cache, name, value)
    with pytest.raises(ValueError):
        cache.store(any_kernels)

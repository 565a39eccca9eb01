"""The paged KV cache: fixed-size pages of keys and values, allocated and freed one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from glm4.errors import InvalidRequestError
from glm4.kernels import int8_cache
from glm4.model.config import ModelConfig
from glm4.model.precision import short_dtype

PAGE_SIZE = 32
# Fraction of the memory left by the weights that the KV cache may take by default.
CACHE_SHARE = 0.6
KV_DTYPES: dict[str, type[np.generic]] = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}


def check_kv_dtype(kv_dtype: str, title: str) -> str:
    """The canonical name of a KV cache format, or "auto".

    Args:
        title: what error messages call it.

    Raises:
        InvalidRequestError: there is no such format.
    """
    short, known = short_dtype(kv_dtype), ("auto", *KV_DTYPES)
    if short not in known:
        raise InvalidRequestError(f"{title} must be one of {', '.join(known)}, not {kv_dtype!r}", param="kv_dtype")
    return short


def resolve_kv_dtype(kv_dtype: str, precision: str, config: ModelConfig) -> str:
    """The cache format for a dtype: "auto" is fp32 with fp32 weights, else fp16.

    Raises:
        InvalidRequestError: unknown, or int8 for an unsupported head size.
    """
    kv_dtype = check_kv_dtype(kv_dtype, "the KV cache format")
    if kv_dtype == "int8" and not int8_cache.is_supported(config.head_dim):
        raise InvalidRequestError(
            f"an int8 KV cache needs a head size that is a multiple of {int8_cache.HEAD_DIM_MULTIPLE}; this model's is "
            f"{config.head_dim}; use fp16",
            param="kv_dtype",
        )
    if kv_dtype == "auto":
        return "fp32" if precision == "fp32" else "fp16"
    return kv_dtype


def page_nbytes(config: ModelConfig, kv_dtype: str) -> int:
    """Bytes of one page: keys and values of `PAGE_SIZE` tokens in every layer."""
    itemsize = np.dtype(KV_DTYPES[kv_dtype]).itemsize
    per_token = config.num_key_value_heads * _row_size(config.head_dim, kv_dtype) * itemsize
    return 2 * config.num_hidden_layers * PAGE_SIZE * per_token


def _row_size(head_dim: int, kv_dtype: str) -> int:
    """Numbers per token and head, the bytes of its scale included."""
    return head_dim + (int8_cache.SCALE_NBYTES if kv_dtype == "int8" else 0)


def pages_for(num_tokens: int) -> int:
    """Pages that hold `num_tokens` tokens."""
    return -(-num_tokens // PAGE_SIZE)


def slots_of(pages: Sequence[int], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where rows of a sequence with these pages are in the cache: page * PAGE_SIZE + offset, int64 like `rows`."""
    return np.asarray(pages, np.int64)[rows // PAGE_SIZE] * PAGE_SIZE + rows % PAGE_SIZE


def cache_arrays(
    num_pages: int, num_heads: int, head_dim: int, kv_dtype: str
) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """Keys and values of one layer, for `Kernels.store_kv` and `Kernels.paged_attention`; zeros."""
    dim, dtype = _row_size(head_dim, kv_dtype), KV_DTYPES[kv_dtype]
    keys = np.zeros((num_pages, num_heads, dim, PAGE_SIZE), dtype)
    return keys, np.zeros((num_pages, num_heads, PAGE_SIZE, dim), dtype)


class KVCache:
    """Keys and values of all layers, and the list of free pages.

    `keys[layer]` is [num_pages, KV, D, PAGE_SIZE] (transposed within a page, so that a vector lane is a key),
    `values[layer]` is [num_pages, KV, PAGE_SIZE, D]; int8 has D + 4 instead of D (see kernels/int8_cache.py). The
    operating system zero-fills the arrays on first touch, so an unused page takes address space but no memory.
    """

    def __init__(self, config: ModelConfig, num_pages: int, kv_dtype: str = "fp16") -> None:
        self.num_pages = num_pages
        self.kv_dtype = kv_dtype
        heads, dim = config.num_key_value_heads, config.head_dim
        layers = [cache_arrays(num_pages, heads, dim, kv_dtype) for _ in range(config.num_hidden_layers)]
        self.keys, self.values = [keys for keys, _ in layers], [values for _, values in layers]
        # Popped from the end: low page numbers first, so a short run touches little memory.
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_free_pages(self) -> int:
        """Pages that are not allocated."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Allocate `count` pages. The caller has checked `num_free_pages`."""
        if count > len(self._free):
            raise ValueError(f"{count} pages requested, {len(self._free)} free")
        return [self._free.pop() for _ in range(count)]

    def free(self, pages: Sequence[int]) -> None:
        """Free pages; each must have been allocated and not yet freed."""
        self._free.extend(reversed(pages))

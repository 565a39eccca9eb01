"""Pages of a KV cache as bytes: as they are, or rounded to 8 bits.

Rounded numbers are codes between the least and the largest of a vector: a channel of a key over the page's tokens, a
token of a value over its channels. Keys have channels of very different magnitudes, values have not. Both ends are kept
in the cache's own format, so a page that was rounded before is not rounded much further. An int8 cache stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.model.kv_cache import KVCache

_Array = NDArray[Any]
Copies = tuple[_Array, _Array]
"""Keys [layers, pages, KV, D, PAGE_SIZE] and values [layers, pages, KV, PAGE_SIZE, D] of some pages in all layers."""

_LEVELS = 255
# With smaller steps a vector is as good as constant, and codes might overflow.
_MIN_STEP = np.float32(1e-30)


class PageCodec:
    """Reads and writes pages of one cache.

    Args:
        round_pages: to 8 bits, unless the cache has 8 bits itself.

    Attributes:
        rounds: whether it does.
        nbytes: of a page's bytes.
        page_nbytes: of a page in the cache.
    """

    def __init__(self, cache: KVCache, round_pages: bool) -> None:
        self._arrays = (cache.keys, cache.values)
        self.rounds = round_pages and cache.kv_dtype != "int8"
        self._shapes = [(len(layers), *layers[0].shape[1:]) for layers in self._arrays]
        self._dtype = cache.keys[0].dtype
        self.page_nbytes: int = sum(math.prod(shape) for shape in self._shapes) * self._dtype.itemsize
        self.nbytes = self.page_nbytes
        if self.rounds:
            self.nbytes = sum(math.prod(s) + 2 * math.prod(s[:-1]) * self._dtype.itemsize for s in self._shapes)

    def copy(self, pages: Sequence[int]) -> Copies:
        """Copies of some pages."""
        keys, values = (
            np.empty((len(layers), len(pages), *layers[0].shape[1:]), self._dtype) for layers in self._arrays
        )
        for copies, layers in zip((keys, values), self._arrays, strict=True):
            for copied, layer in zip(copies, layers, strict=True):
                np.take(layer, pages, axis=0, out=copied, mode="clip")  # any other mode copies twice
        return keys, values

    def encode(self, copies: Copies, index: int) -> bytes | None:
        """The bytes of one of the copied pages; None if it has numbers that cannot be rounded: infinite or NaN."""
        parts: list[bytes] = []
        for copied in copies:
            array = copied[:, index]
            if not self.rounds:
                parts.append(array.tobytes())
                continue
            rounded = _round(array)
            if rounded is None:
                return None
            parts += [part.tobytes() for part in rounded]
        return b"".join(parts)

    def decode(self, data: memoryview, page: int) -> None:
        """Fill a page of the cache from its bytes, `nbytes` long."""
        at = 0

        def take(dtype: np.dtype[Any], shape: Sequence[int]) -> _Array:
            nonlocal at
            array = np.frombuffer(data, dtype, math.prod(shape), at).reshape(shape)
            at += array.nbytes
            return array

        for layers, shape in zip(self._arrays, self._shapes, strict=True):
            if self.rounds:
                codes = take(np.dtype(np.uint8), shape)
                ends = (take(self._dtype, (*shape[:-1], 1)) for _ in range(2))
                content = _restore(codes, *ends).astype(self._dtype)
            else:
                content = take(self._dtype, shape)
            for layer, array in zip(layers, content, strict=True):
                layer[page] = array


def _round(array: _Array) -> tuple[_Array, _Array, _Array] | None:
    """Codes uint8 of the vectors along the last axis, and both ends of each."""
    numbers = array.astype(np.float32)  # much faster than float16
    low, high = numbers.min(axis=-1, keepdims=True), numbers.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):  # looked at below
        least, step = _grid(low, high)
        if not np.isfinite(step).all():
            return None
        numbers -= least
        numbers /= np.where(step < _MIN_STEP, np.float32(np.inf), step)
    np.rint(numbers, out=numbers)
    return numbers.astype(np.uint8), low.astype(array.dtype), high.astype(array.dtype)


def _restore(codes: _Array, low: _Array, high: _Array) -> NDArray[np.float32]:
    least, step = _grid(low, high)
    return codes * step + least


def _grid(low: _Array, high: _Array) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    least = low.astype(np.float32)
    return least, (high.astype(np.float32) - least) / np.float32(_LEVELS)

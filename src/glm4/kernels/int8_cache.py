"""Layout and rounding of an int8 KV cache, as computed by kernels/reference.py and written by csrc/store_kv.cpp.

A page of one head is `dim * page_size` numbers followed by one float32 scale per token, absmax / 127 over the channels.
Numbers are in pairs that one instruction multiplies: two channels of a key, or two tokens of a value. The arrays are
- k_cache [pages, KV, D + 4, page_size]: numbers as [D / 2, page_size, 2], then page_size scales;
- v_cache [pages, KV, page_size, D + 4]: numbers as [page_size / 2, D, 2], then page_size scales.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SCALE_NBYTES = 4  # per token, head and array
# Sums of products are int32: 512 * 32767 * 127 < 2^31. The other bounds come from the vector width.
MAX_HEAD_DIM = 512
MAX_PAGE_SIZE = 512
HEAD_DIM_MULTIPLE = 16

# Below this the reciprocal of the scale overflows; such a vector is stored as zeros.
_MIN_MAGNITUDE = np.float32(1e-30)

_Int8 = NDArray[np.int8]
_F32 = NDArray[np.float32]


def is_supported(head_dim: int) -> bool:
    """Whether heads of this size can be cached in int8."""
    return 0 < head_dim <= MAX_HEAD_DIM and head_dim % HEAD_DIM_MULTIPLE == 0


def quantize_tokens(x: _F32) -> tuple[_Int8, _F32]:
    """Rounds x [..., D] to int8 with one scale [...] per token. A NaN or an infinity makes the scale NaN."""
    top = np.abs(x).max(axis=-1)
    finite = np.isfinite(top)
    usable = finite & (top >= _MIN_MAGNITUDE)
    safe = np.where(usable, top, np.float32(1))
    inverse = np.where(usable, np.float32(127) / safe, np.float32(0))
    scales = np.where(usable, safe / np.float32(127), np.where(finite, np.float32(0), np.float32(np.nan)))
    clean = np.where(finite[..., None], x, np.float32(0))
    return np.rint(clean * inverse[..., None]).astype(np.int8), scales.astype(np.float32)


def key_views(k_cache: NDArray[Any]) -> tuple[_Int8, _F32]:
    """Views of the keys: numbers [pages, KV, D / 2, page_size, 2] and scales [pages, KV, page_size]."""
    pages, heads, rows, page_size = k_cache.shape
    numbers, scales = _split(k_cache, (rows - SCALE_NBYTES) * page_size)
    return numbers.reshape(pages, heads, -1, page_size, 2), scales


def value_views(v_cache: NDArray[Any]) -> tuple[_Int8, _F32]:
    """Views of the values: numbers [pages, KV, page_size / 2, D, 2] and scales [pages, KV, page_size]."""
    pages, heads, page_size, columns = v_cache.shape
    dim = columns - SCALE_NBYTES
    numbers, scales = _split(v_cache, dim * page_size)
    return numbers.reshape(pages, heads, page_size // 2, dim, 2), scales


def _split(cache: NDArray[Any], count: int) -> tuple[_Int8, _F32]:
    flat = cache.reshape(*cache.shape[:2], -1)
    return flat[:, :, :count], flat[:, :, count:].view(np.float32)

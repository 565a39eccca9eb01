"""What the NumPy twin computes, as digests, and which BLAS NumPy uses: `python twin_digests.py` prints both as JSON."""

from __future__ import annotations

import ctypes
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.kernels import FORMATS, get_kernels, int8_cache

TWIN = get_kernels("reference")


def digest(*arrays: np.ndarray) -> str:
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def blas_core() -> str:
    """The core type NumPy's OpenBLAS has chosen; empty where NumPy's BLAS is another one or cannot be asked."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    for path in sorted({line.split()[-1] for line in lines if "openblas" in line}):
        library = ctypes.CDLL(path)
        for name in ("scipy_openblas_get_corename64_", "openblas_get_corename64_", "openblas_get_corename"):
            if hasattr(library, name):
                ask = getattr(library, name)
                ask.restype = ctypes.c_char_p
                return bytes(ask()).decode()
    return ""


def blas_digest() -> str:
    """Of products that NumPy leaves to its BLAS: where this is another one, so is the order of its sums."""
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((2, 150, 150), dtype=np.float32)
    return digest(a @ b, a @ b[0], a[:10] @ b[:97].T)


def linear_digests() -> dict[str, str]:
    rng = np.random.default_rng(6)
    digests = {}
    for format in FORMATS:
        found = []
        for rows, outputs, inputs in [(1, 33, 31), (7, 65, 1100), (40, 130, 513)]:
            weight = TWIN.pack(format, rng.standard_normal((outputs, inputs), dtype=np.float32))
            found.append(TWIN.linear(rng.standard_normal((rows, inputs), dtype=np.float32), weight))
        digests[f"linear {format}"] = digest(*found)
    return digests


def attention_digest(dtype: type) -> str:
    """Prefill and decode over a cache of three pages, two key-value heads of 48 channels for ten heads."""
    rng = np.random.default_rng(7)
    rows = 48 + (int8_cache.SCALE_NBYTES if dtype is np.int8 else 0)
    k_cache: NDArray[Any] = np.zeros((3, 2, rows, 32), dtype)
    v_cache: NDArray[Any] = np.zeros((3, 2, 32, rows), dtype)
    k, v = rng.standard_normal((2, 90, 2, 48), dtype=np.float32)
    TWIN.store_kv(k, v, k_cache, v_cache, np.arange(90, dtype=np.int64))
    q = rng.standard_normal((90, 10, 48), dtype=np.float32)
    table, zero = np.arange(3, dtype=np.int32)[None], np.int32(0)
    found = []
    for count in (90, 1):
        bounds = np.array([zero, count], np.int32)
        context = np.array([90], np.int32)
        found.append(TWIN.paged_attention(q[-count:], k_cache, v_cache, table, bounds, context, 0.3))
    return digest(*found)


def rounding_digest() -> str:
    """Weights and a Hessian that are views of larger arrays, as rows of a matrix are."""
    rng = np.random.default_rng(8)
    source = rng.standard_normal((32, 70), dtype=np.float32)
    weights = rng.uniform(0.1, 3, (32, 3)).astype(np.float32)[:, 1]
    x = rng.standard_normal((50, 50), dtype=np.float32)
    hessian = (np.abs(x + x.T) + 50 * np.eye(50, dtype=np.float32))[9:41, 9:41]
    unit = np.full(70, 2e-3, np.float32)
    scale, offset = TWIN.search_int4(source, unit, weights)
    quants = rng.integers(-8, 8, (32, 70)).astype(np.int8)
    gradient = rng.standard_normal((32, 70), dtype=np.float32)
    return digest(scale, offset, *TWIN.refine_int4(gradient, hessian, source, unit, scale, offset, quants))


def twin_digests() -> dict[str, str]:
    """One digest for each kernel whose twin adds up floats."""
    rng = np.random.default_rng(9)
    wide, weight = rng.standard_normal((9, 10_001), dtype=np.float32), rng.standard_normal(10_001, dtype=np.float32)
    return {
        **linear_digests(),
        **{f"attention {np.dtype(d)}": attention_digest(d) for d in (np.float32, np.float16, np.int8)},
        "rms_norm": digest(TWIN.rms_norm(wide, weight, 1e-5)),
        "layer_norm": digest(TWIN.layer_norm(wide, weight, weight, 1e-5)),
        "log_softmax": digest(TWIN.log_softmax(wide)),
        "rounding": rounding_digest(),
    }


if __name__ == "__main__":
    print(json.dumps({"core": blas_core(), "blas": blas_digest(), "twin": twin_digests()}))

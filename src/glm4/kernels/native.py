# ruff: noqa: D102  (the contract of each method is written once, in glm4.kernels.Kernels)
"""The compiled kernels: allocates results and calls `_native`. Reads the environment so that csrc need not.

GLM4_ISA forces an instruction set: generic, avx2, avx512 or neon. GLM4_PIN=0 never binds worker threads to processors
and GLM4_PIN=1 does wherever there are enough; see `glm4.system.cpus`.
"""

from __future__ import annotations

import os
from functools import lru_cache

import numpy as np

from glm4.errors import KernelError, TensorError
from glm4.kernels import _native
from glm4.kernels.base import (
    F32,
    I8,
    I32,
    I64,
    KVCacheArray,
)
from glm4.kernels.formats import FORMATS, PackedWeight, aligned_empty, unpackable_row_message, weight_format
from glm4.kernels.ordered_sums import ordered_total
from glm4.system.cpus import default_num_threads, worker_processors

_CODES = {name: fmt.code for name, fmt in FORMATS.items()}


class NativeKernels:
    """The kernels in C++. Method contracts are in `glm4.kernels.Kernels`.

    Calls from several Python threads are safe and run one after another. After a fork the child creates its own worker
    threads on first use.
    """

    def pack(self, format: str, weight: F32) -> PackedWeight:
        fmt = weight_format(format)
        if not isinstance(weight, np.ndarray) or weight.ndim != 2:
            raise ValueError("pack: weight must be an array of 2 dimensions")
        rows, cols = weight.shape
        data = aligned_empty(fmt.packed_nbytes(rows, cols))
        bad_row = _native.pack(fmt.code, weight, fmt.max_weight, data)
        if bad_row >= 0:
            raise TensorError(unpackable_row_message(format, bad_row))
        return PackedWeight(data, format, rows, cols)

    def unpack(self, weight: PackedWeight) -> F32:
        out = np.empty((weight.rows, weight.cols), dtype=np.float32)
        _native.unpack(weight.data, _CODES[weight.format], weight.rows, weight.cols, out)
        return out

    def round_columns(
        self, target: F32, source: F32, upper: F32, step: F32, center: F32, lowest: int, highest: int
    ) -> tuple[I8, F32]:
        error, quants = np.empty(np.shape(target), np.float32), np.empty(np.shape(target), np.int8)
        _native.round_columns(target, source, upper, step, center, lowest, highest, error, quants)
        return quants, error

    def search_int4(self, target: F32, unit: F32, weights: F32) -> tuple[F32, F32]:
        scale, offset = np.empty(np.shape(unit), np.float32), np.empty(np.shape(unit), np.float32)
        _native.search_int4(target, unit, weights, ordered_total(weights), scale, offset)
        return scale, offset

    def refine_int4(
        self, gradient: F32, hessian: F32, source: F32, unit: F32, scale: F32, offset: F32, quants: I8
    ) -> tuple[F32, F32, I8, F32]:
        scale, offset, quants = np.array(scale), np.array(offset), np.array(quants, order="C")
        error, total = np.empty(np.shape(gradient), np.float32), ordered_total(hessian)
        _native.refine_int4(gradient, hessian, total, source, unit, scale, offset, quants, error)
        return scale, offset, quants, error

    def linear(self, x: F32, weight: PackedWeight, bias: F32 | None = None) -> F32:
        out = np.empty((len(x), weight.rows), dtype=np.float32)
        _native.linear(x, weight.data, _CODES[weight.format], weight.rows, weight.cols, bias, out)
        return out

    def embedding(self, weight: PackedWeight, ids: I32) -> F32:
        out = np.empty((len(ids), weight.cols), dtype=np.float32)
        _native.embedding(weight.data, _CODES[weight.format], weight.rows, weight.cols, ids, out)
        return out

    def rms_norm(self, x: F32, weight: F32, eps: float) -> F32:
        out = np.empty(np.shape(x), dtype=np.float32)
        _native.rms_norm(x, weight, eps, out)
        return out

    def layer_norm(self, x: F32, weight: F32, bias: F32, eps: float) -> F32:
        out = np.empty(np.shape(x), dtype=np.float32)
        _native.layer_norm(x, weight, bias, eps, out)
        return out

    def rotary(self, x: F32, cos: F32, sin: F32) -> None:
        _native.rotary(x, cos, sin)

    def swiglu(self, gate_up: F32) -> F32:
        if gate_up.ndim != 2:
            raise ValueError(f"swiglu: gate_up must have 2 dimensions, not {gate_up.ndim}")
        out = np.empty((gate_up.shape[0], gate_up.shape[1] // 2), dtype=np.float32)
        _native.swiglu(gate_up, out)
        return out

    def gelu_(self, x: F32) -> None:
        _native.gelu(x)

    def add_(self, x: F32, y: F32) -> None:
        _native.add(x, y)

    def log_softmax(self, x: F32) -> F32:
        out = np.empty(np.shape(x), dtype=np.float32)
        _native.log_softmax(x, out)
        return out

    def store_kv(self, k: F32, v: F32, k_cache: KVCacheArray, v_cache: KVCacheArray, slots: I64) -> None:
        _native.store_kv(k, v, k_cache, v_cache, slots)

    def paged_attention(
        self,
        q: F32,
        k_cache: KVCacheArray,
        v_cache: KVCacheArray,
        block_tables: I32,
        query_starts: I32,
        context_lens: I32,
        scale: float,
        causal: bool = True,
    ) -> F32:
        out = np.empty(np.shape(q), dtype=np.float32)
        _native.paged_attention(q, k_cache, v_cache, block_tables, query_starts, context_lens, scale, causal, out)
        return out

    def set_num_threads(self, n: int) -> None:
        _native.set_num_threads(n, worker_processors(n, _pin_setting()))

    def num_threads(self) -> int:
        return _native.num_threads()

    def isa(self) -> str:
        return _native.isa()


@lru_cache(maxsize=1)
def native_kernels() -> NativeKernels:
    """The compiled kernels, set up once: instruction set from GLM4_ISA, threads from the usable processors.

    Raises:
        KernelError: GLM4_ISA names an instruction set that is unknown or missing on this processor, or GLM4_PIN is
            neither 0 nor 1.
    """
    wanted = os.environ.get("GLM4_ISA", "")
    usable = _native.isas()
    if wanted:
        if wanted not in usable:
            raise KernelError(f"GLM4_ISA={wanted}: not an instruction set usable here; choose {', '.join(usable)}")
        _native.set_isa(wanted)
    kernels = NativeKernels()
    kernels.set_num_threads(default_num_threads())
    return kernels


def _pin_setting() -> str:
    setting = os.environ.get("GLM4_PIN", "")
    if setting not in ("", "0", "1"):
        raise KernelError(f"GLM4_PIN={setting}: must be 0 (never bind threads to processors) or 1 (always)")
    return setting

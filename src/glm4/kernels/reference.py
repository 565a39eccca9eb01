# ruff: noqa: D102  (the contract of each method is written once, in glm4.kernels.Kernels)
"""NumPy twin of every kernel: the specification, the test oracle, and the fallback without a compiler.

Slow on purpose where speed would cost clarity. The integer paths are exact and quantization uses the same float32
operations in the same order as csrc, so packed bytes are identical and results agree to float rounding. Sums of floats
have a fixed order (`ordered_sums`), so that a row has the same bits in every batch and with every BLAS.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from glm4.errors import TensorError
from glm4.kernels import int8_cache, reference_rounding
from glm4.kernels.base import (
    F32,
    I8,
    I32,
    I64,
    KVCacheArray,
)
from glm4.kernels.formats import (
    COL_GROUP,
    INT4_OFFSET_UNIT,
    ROW_BLOCK,
    SPAN_CELLS,
    PackedWeight,
    aligned_empty,
    unpackable_row_message,
    weight_format,
)
from glm4.kernels.ordered_sums import ordered_matmul, ordered_sum
from glm4.kernels.reference_packing import (
    F16_MAX,
    bf16_bits,
    cell_bytes,
    grid,
    int4_cells,
    int8_cells,
    pack_int4,
    pack_int8,
    pad,
    quantize_int4,
    to_cells,
)

# Below this the reciprocal of the scale overflows; such a group is treated as zero.
MIN_ACTIVATION = np.float32(1e-30)

# Columns that share an activation scale.
ACTIVATION_GROUP = {"int8": COL_GROUP, "int4": SPAN_CELLS * COL_GROUP}


def quantize_activations(x: F32, group: int) -> tuple[NDArray[np.int8], F32]:
    """Quantizes rows of x [M, K] in groups of `group`: int8 [M, G, group] and float32 scales [M, G] = absmax / 127.

    A group with a NaN or an infinity gets the scale NaN, so that the row's results are NaN.
    """
    groups = pad(x, 1, group).reshape(len(x), -(-x.shape[1] // group), group)
    absmax = np.abs(groups).max(axis=2)
    finite = np.isfinite(absmax)
    usable = finite & (absmax >= MIN_ACTIVATION)
    safe = np.where(usable, absmax, np.float32(1))
    inverse = np.where(usable, np.float32(127) / safe, np.float32(0))
    scales = np.where(usable, safe / np.float32(127), np.where(finite, np.float32(0), np.float32(np.nan)))
    clean = np.where(finite[:, :, None], groups, np.float32(0))
    return np.rint(clean * inverse[:, :, None]).astype(np.int8), scales.astype(np.float32)


_ERFC = np.frompyfunc(math.erfc, 1, 1)


def exp_normalize(scores: F32) -> F32:
    """Softmax of the last axis."""
    p: F32 = np.exp(scores - scores.max(axis=-1, keepdims=True))
    total = ordered_sum(np.moveaxis(p, -1, 0).astype(np.float64))
    return np.asarray(p / total[..., None].astype(np.float32), dtype=np.float32)


class ReferenceKernels:
    """The kernels in NumPy. Method contracts are in `glm4.kernels.Kernels`."""

    def pack(self, format: str, weight: F32) -> PackedWeight:
        fmt = weight_format(format)
        _check_array("pack: weight", weight, 2)
        rows, cols = weight.shape
        nbytes = fmt.packed_nbytes(rows, cols)
        with np.errstate(invalid="ignore"):
            good = (np.abs(weight) <= np.float32(fmt.max_weight)).all(axis=1)
        if not good.all():
            raise TensorError(unpackable_row_message(format, int(good.argmin())))
        cells = to_cells(weight)
        data = aligned_empty(nbytes)
        if format == "fp32":
            blocks = cell_bytes(cells.swapaxes(2, 3))
        elif format == "bf16":
            blocks = cell_bytes(bf16_bits(cells).reshape(*cells.shape[:3], 16, 2).swapaxes(2, 3))
        else:
            blocks = pack_int8(cells) if format == "int8" else pack_int4(quantize_int4(cells))
        data.reshape(len(cells), -1)[:] = blocks.reshape(len(cells), -1)
        return PackedWeight(data, format, rows, cols)

    def unpack(self, weight: PackedWeight) -> F32:
        if weight.format == "int8":
            q, scales = int8_cells(weight)
            cells: F32 = q * np.repeat(scales, SPAN_CELLS, axis=1)[:, : q.shape[1], :, None]
        elif weight.format == "int4":
            parts = int4_cells(weight)
            whole = parts.scale[..., None] * parts.quants + (INT4_OFFSET_UNIT * parts.offset)[..., None]
            cells = whole.astype(np.float32) * parts.unit[:, None, :, None]
        elif weight.format == "bf16":
            pairs = weight.data.view(np.uint16).reshape(*grid(weight), 16, ROW_BLOCK, 2).swapaxes(2, 3)
            bits = pairs.reshape(*grid(weight), ROW_BLOCK, COL_GROUP).astype(np.uint32) << 16
            cells = bits.view(np.float32)
        else:
            cells = weight.data.view(np.float32).reshape(*grid(weight), COL_GROUP, ROW_BLOCK).swapaxes(2, 3)
        padded = cells.swapaxes(1, 2).reshape(cells.shape[0] * ROW_BLOCK, -1)
        return np.ascontiguousarray(padded[: weight.rows, : weight.cols])

    def round_columns(
        self, target: F32, source: F32, upper: F32, step: F32, center: F32, lowest: int, highest: int
    ) -> tuple[I8, F32]:
        columns = len(target)
        _check(1 <= columns <= COL_GROUP, f"round_columns: 1 to 32 columns, not {columns}")
        _check(source.shape == target.shape, "round_columns: source has another shape than target")
        _check(upper.shape == (columns, columns), f"round_columns: upper must be [{columns}, {columns}]")
        for name, x in (("step", step), ("centre", center)):
            shapes = (target.shape, (1, target.shape[1]))
            _check(x.shape in shapes, f"round_columns: {name} must have one of the shapes {shapes}")
        _check(-128 <= lowest <= highest <= 127, "round_columns: quants are 8-bit integers")
        return reference_rounding.round_columns(target, source, upper, step, center, lowest, highest)

    def search_int4(self, target: F32, unit: F32, weights: F32) -> tuple[F32, F32]:
        columns, rows = target.shape
        _check(1 <= columns <= COL_GROUP, f"search_int4: 1 to 32 columns, not {columns}")
        _check(unit.shape == (rows,), f"search_int4: unit must have {rows} rows")
        _check(weights.shape == (columns,), f"search_int4: weights must have {columns} columns")
        return reference_rounding.search_int4(target, unit, weights)

    def refine_int4(
        self, gradient: F32, hessian: F32, source: F32, unit: F32, scale: F32, offset: F32, quants: I8
    ) -> tuple[F32, F32, I8, F32]:
        columns, rows = gradient.shape
        _check(1 <= columns <= COL_GROUP, f"refine_int4: 1 to 32 columns, not {columns}")
        _check(hessian.shape == (columns, columns), f"refine_int4: hessian must be [{columns}, {columns}]")
        for name, x in (("source", source), ("quants", quants)):
            _check(x.shape == gradient.shape, f"refine_int4: {name} has another shape than gradient")
        for name, x in (("unit", unit), ("scale", scale), ("offset", offset)):
            _check(x.shape == (rows,), f"refine_int4: {name} must have {rows} rows")
        return reference_rounding.refine_int4(gradient, hessian, source, unit, scale, offset, quants)

    def linear(self, x: F32, weight: PackedWeight, bias: F32 | None = None) -> F32:
        _check_array("linear: x", x, 2)
        _check(x.shape[1] == weight.cols, f"linear: x has {x.shape[1]} columns, the weight {weight.cols}")
        if bias is not None:
            _check_array("linear: bias", bias, 1)
            _check(len(bias) == weight.rows, f"linear: bias has {len(bias)} values, the weight {weight.rows} rows")
        if weight.format == "int8":
            y = self._int8_linear(x, weight)
        elif weight.format == "int4":
            y = self._int4_linear(x, weight)
        else:
            y = ordered_matmul(x[None], self.unpack(weight).T[None])[0]
        return y if bias is None else y + bias

    def _int8_linear(self, x: F32, weight: PackedWeight) -> F32:
        q, w_scales = int8_cells(weight)
        a, a_scales = quantize_activations(x, ACTIVATION_GROUP["int8"])
        y = np.zeros((len(x), len(q) * ROW_BLOCK), dtype=np.float32)
        for span in range(w_scales.shape[1]):
            part = np.zeros_like(y)
            for g in range(span * SPAN_CELLS, min((span + 1) * SPAN_CELLS, q.shape[1])):
                part += _dots(a[:, g], q[:, g]).astype(np.float32) * a_scales[:, g, None]
            y += part * w_scales[:, span].reshape(-1)
        return np.ascontiguousarray(y[:, : weight.rows])

    def _int4_linear(self, x: F32, weight: PackedWeight) -> F32:
        cells = int4_cells(weight)
        a, a_scales = quantize_activations(x, ACTIVATION_GROUP["int4"])
        a = a.reshape(len(x), a.shape[1] * SPAN_CELLS, COL_GROUP)
        y = np.zeros((len(x), len(cells.unit) * ROW_BLOCK), dtype=np.float32)
        for span in range(a_scales.shape[1]):
            part = np.zeros(y.shape, np.int32)
            for g in range(span * SPAN_CELLS, min((span + 1) * SPAN_CELLS, cells.quants.shape[1])):
                dots = _dots(a[:, g], cells.quants[:, g])
                # The kernels hold both in one 32-bit sum, whose high half borrows from a negative low half.
                sums = INT4_OFFSET_UNIT * a[:, g].sum(axis=1, dtype=np.int32)[:, None] - (dots < 0)
                part += dots * cells.scale[:, g].reshape(-1) + sums * cells.offset[:, g].reshape(-1)
            y += part.astype(np.float32) * a_scales[:, span, None]
        y *= cells.unit.reshape(-1)
        return np.ascontiguousarray(y[:, : weight.rows])

    def embedding(self, weight: PackedWeight, ids: I32) -> F32:
        _check_array("embedding: ids", ids, 1, np.int32)
        _check_index("embedding: ids", ids, weight.rows)
        out = np.empty((len(ids), weight.cols), dtype=np.float32)
        block_nbytes = weight.data.size // grid(weight)[0]
        for i, row in enumerate(ids.tolist()):
            block, lane = divmod(row, ROW_BLOCK)
            data = weight.data[block * block_nbytes : (block + 1) * block_nbytes]
            out[i] = self.unpack(PackedWeight(data, weight.format, ROW_BLOCK, weight.cols))[lane]
        return out

    def rms_norm(self, x: F32, weight: F32, eps: float) -> F32:
        _check_array("rms_norm: x", x, 2)
        _check_array("rms_norm: weight", weight, 1)
        _check(x.shape[1] == len(weight), f"rms_norm: x has {x.shape[1]} columns, the weight {len(weight)}")
        total = ordered_sum(np.square(x).T.astype(np.float64)).astype(np.float32)
        variance = (total / np.float32(x.shape[1]))[:, None]
        return np.asarray(x / np.sqrt(variance + np.float32(eps)) * weight, dtype=np.float32)

    def layer_norm(self, x: F32, weight: F32, bias: F32, eps: float) -> F32:
        _check_array("layer_norm: x", x, 2)
        for name, values in (("weight", weight), ("bias", bias)):
            _check_array(f"layer_norm: {name}", values, 1)
            _check(x.shape[1] == len(values), f"layer_norm: x has {x.shape[1]} columns, the {name} {len(values)}")
        columns = x.T.astype(np.float64)
        with np.errstate(invalid="ignore"):  # a row with an infinity becomes NaN
            centered = columns - ordered_sum(columns.copy()) / len(columns)
        variance = ordered_sum(np.square(centered)) / len(columns)
        return np.ascontiguousarray((centered / np.sqrt(variance + eps)).T * weight + bias, np.float32)

    def rotary(self, x: F32, cos: F32, sin: F32) -> None:
        _check_array("rotary: x", x, 3, strided=True)
        _check_array("rotary: cos", cos, 2)
        _check_array("rotary: sin", sin, 2)
        half = cos.shape[1]
        _check(cos.shape == sin.shape == (len(x), half), "rotary: cos and sin must both be [rows of x, R/2]")
        _check(2 * half <= x.shape[2], f"rotary: {2 * half} rotated channels, but heads have {x.shape[2]}")
        even, odd = x[:, :, 0 : 2 * half : 2].copy(), x[:, :, 1 : 2 * half : 2].copy()
        c, s = cos[:, None, :], sin[:, None, :]
        x[:, :, 0 : 2 * half : 2] = even * c - odd * s
        x[:, :, 1 : 2 * half : 2] = odd * c + even * s

    def swiglu(self, gate_up: F32) -> F32:
        _check_array("swiglu: gate_up", gate_up, 2)
        _check(gate_up.shape[1] % 2 == 0, f"swiglu: gate_up has an odd number of columns, {gate_up.shape[1]}")
        gate, up = np.split(gate_up, 2, axis=1)
        with np.errstate(over="ignore"):  # exp(-gate) = inf gives the right limit, -0
            return np.asarray(gate / (np.float32(1) + np.exp(-gate)) * up, dtype=np.float32)

    def gelu_(self, x: F32) -> None:
        _check_array("gelu_: x", x, 2)
        size = np.minimum(np.abs(x), np.float32(40)).astype(np.float64)  # P(-40) is 0 in float32, and so is its product
        x[:] = np.maximum(x, 0) - size * 0.5 * _ERFC(size / math.sqrt(2)).astype(np.float64)

    def add_(self, x: F32, y: F32) -> None:
        _check_array("add_: x", x, 2)
        _check_array("add_: y", y, 2)
        _check(x.shape == y.shape, f"add_: shapes {x.shape} and {y.shape} differ")
        x += y

    def log_softmax(self, x: F32) -> F32:
        _check_array("log_softmax: x", x, 2)
        _check(x.shape[1] > 0, "log_softmax: x has no columns")
        shifted = x - x.max(axis=1, keepdims=True)
        total = ordered_sum(np.exp(shifted).T.astype(np.float64))
        return np.asarray(shifted - np.log(total)[:, None].astype(np.float32), dtype=np.float32)

    def store_kv(self, k: F32, v: F32, k_cache: KVCacheArray, v_cache: KVCacheArray, slots: I64) -> None:
        pages, kv_heads, dim, page_size = _check_cache("store_kv", k_cache, v_cache)
        _check_array("store_kv: k", k, 3, strided=True)
        _check_array("store_kv: v", v, 3, strided=True)
        _check(k.shape == v.shape == (len(k), kv_heads, dim), f"store_kv: k and v must be [M, {kv_heads}, {dim}]")
        _check_array("store_kv: slots", slots, 1, np.int64)
        _check(len(slots) == len(k), f"store_kv: {len(slots)} slots for {len(k)} rows")
        _check_index("store_kv: slots", slots, pages * page_size)
        page, offset = np.divmod(slots, page_size)
        if k_cache.dtype == np.int8:
            _store_int8(k, v, k_cache, v_cache, page, offset)
            return
        if k_cache.dtype == np.float16:
            k, v = np.clip(k, -F16_MAX, F16_MAX), np.clip(v, -F16_MAX, F16_MAX)
        k_cache[page, :, :, offset] = k
        v_cache[page, :, offset, :] = v

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
        pages, kv_heads, dim, page_size = _check_cache("paged_attention", k_cache, v_cache)
        _check_attention(q, pages, kv_heads, dim, page_size, block_tables, query_starts, context_lens)
        group = q.shape[1] // kv_heads
        out = np.empty(q.shape, dtype=np.float32)
        for s, context in enumerate(context_lens.tolist()):
            start, stop = int(query_starts[s]), int(query_starts[s + 1])
            table = block_tables[s, : -(-context // page_size)]
            keys, values = _cached(k_cache, v_cache, table)
            keys, values = (
                keys.swapaxes(0, 1).reshape(kv_heads, -1, dim),
                values.swapaxes(0, 1).reshape(kv_heads, -1, dim),
            )
            for row in range(start, stop):  # one row at a time, over exactly what it sees: independent of chunking
                visible = context - (stop - row) + 1 if causal else context
                query = q[row].reshape(kv_heads, group, dim) * np.float32(scale)
                weights = exp_normalize(ordered_matmul(query, keys[:, :visible].swapaxes(1, 2)))
                out[row] = ordered_matmul(weights, values[:, :visible]).reshape(-1, dim)
        return out

    def set_num_threads(self, n: int) -> None:
        """Only checks the range; NumPy chooses its own threads."""
        _check(n >= 1, f"set_num_threads: {n} is not a number of threads")

    def num_threads(self) -> int:
        return 1

    def isa(self) -> str:
        return "numpy"


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_array(
    name: str, array: NDArray[np.generic], ndim: int, dtype: type = np.float32, strided: bool = False
) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, not {type(array).__name__}")
    _check(array.dtype == dtype, f"{name} must be {np.dtype(dtype)}, not {array.dtype}")
    _check(array.ndim == ndim, f"{name} must have {ndim} dimensions, not {array.ndim}")
    rows = array[:1] if strided else array
    _check(rows.flags.c_contiguous, f"{name} must be C-contiguous" + (" within a row" if strided else ""))


def _check_index(name: str, index: NDArray[np.integer], size: int) -> None:
    bad = (index < 0) | (index >= size)
    if bad.any():
        at = int(bad.argmax())
        raise IndexError(f"{name}[{at}] is {int(index[at])}, outside 0..{size - 1}")


def _check_cache(op: str, k_cache: KVCacheArray, v_cache: KVCacheArray) -> tuple[int, int, int, int]:
    """Checks one layer's cache pair and returns (pages, kv_heads, head_dim, page_size)."""
    _check(k_cache.ndim == 4 and v_cache.ndim == 4, f"{op}: k_cache and v_cache must have 4 dimensions")
    pages, kv_heads, rows, page_size = k_cache.shape
    _check(v_cache.shape == (pages, kv_heads, page_size, rows), f"{op}: k_cache and v_cache disagree in shape")
    _check(page_size > 0 and page_size % 16 == 0, f"{op}: page size {page_size} is not a multiple of 16")
    _check(k_cache.dtype == v_cache.dtype, f"{op}: k_cache is {k_cache.dtype}, v_cache {v_cache.dtype}")
    _check(k_cache.dtype in (np.float32, np.float16, np.int8), f"{op}: the cache must be float32, float16 or int8")
    _check(k_cache.flags.c_contiguous and v_cache.flags.c_contiguous, f"{op}: the cache must be C-contiguous")
    if k_cache.dtype != np.int8:
        return pages, kv_heads, rows, page_size
    dim = rows - int8_cache.SCALE_NBYTES
    _check(int8_cache.is_supported(dim), f"{op}: head size {dim} of an int8 cache is not a multiple of 16 up to 512")
    _check(page_size <= int8_cache.MAX_PAGE_SIZE, f"{op}: page size {page_size} of an int8 cache is above 512")
    return pages, kv_heads, dim, page_size


def _store_int8(
    k: F32, v: F32, k_cache: KVCacheArray, v_cache: KVCacheArray, page: NDArray[np.int64], offset: NDArray[np.int64]
) -> None:
    rows, heads, dim = k.shape
    numbers, scales = int8_cache.quantize_tokens(k)
    cached, cached_scales = int8_cache.key_views(k_cache)
    cached[page, :, :, offset] = numbers.reshape(rows, heads, dim // 2, 2)
    cached_scales[page, :, offset] = scales
    numbers, scales = int8_cache.quantize_tokens(v)
    cached, cached_scales = int8_cache.value_views(v_cache)
    cached[page, :, offset // 2, :, offset % 2] = numbers
    cached_scales[page, :, offset] = scales


def _cached(k_cache: KVCacheArray, v_cache: KVCacheArray, table: I32) -> tuple[F32, F32]:
    """Keys and values of some pages, float32 [pages, KV, page_size, D]."""
    if k_cache.dtype != np.int8:
        return k_cache[table].astype(np.float32).swapaxes(2, 3), v_cache[table].astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # slots never written may hold anything
        numbers, scales = (view[table] for view in int8_cache.key_views(k_cache))
        pages, heads, _, page_size, _ = numbers.shape
        keys = numbers.transpose(0, 1, 3, 2, 4).reshape(pages, heads, page_size, -1) * scales[..., None]
        numbers, scales = (view[table] for view in int8_cache.value_views(v_cache))
        values = numbers.swapaxes(3, 4).reshape(pages, heads, page_size, -1) * scales[..., None]
    return keys, values


def _check_attention(
    q: F32, pages: int, kv_heads: int, dim: int, page_size: int, tables: I32, starts: I32, contexts: I32
) -> None:
    _check_array("paged_attention: q", q, 3, strided=True)
    _check(q.shape[2] == dim, f"paged_attention: q has head size {q.shape[2]}, the cache {dim}")
    _check(kv_heads > 0 and q.shape[1] % kv_heads == 0, f"paged_attention: {q.shape[1]} heads over {kv_heads} KV heads")
    _check_array("paged_attention: block_tables", tables, 2, np.int32)
    _check_array("paged_attention: query_starts", starts, 1, np.int32)
    _check_array("paged_attention: context_lens", contexts, 1, np.int32)
    count = len(contexts)
    _check(len(tables) == count, f"paged_attention: {len(tables)} block tables for {count} sequences")
    _check(len(starts) == count + 1, f"paged_attention: query_starts needs {count + 1} entries, not {len(starts)}")
    _check(starts[0] == 0 and starts[-1] == len(q), "paged_attention: query_starts must run from 0 to the rows of q")
    for s in range(count):
        rows, context = int(starts[s + 1]) - int(starts[s]), int(contexts[s])
        _check(rows >= 0, f"paged_attention: query_starts decreases at {s + 1}")
        _check(context >= rows, f"paged_attention: sequence {s} has {rows} queries but a context of {context}")
        used = -(-context // page_size)
        _check(
            used <= tables.shape[1],
            f"paged_attention: sequence {s} needs {used} pages, its table has {tables.shape[1]}",
        )
        _check_index(f"paged_attention: block_tables[{s}]", tables[s, :used], pages)


def _dots(a: NDArray[np.int8], q: NDArray[np.int8]) -> I32:
    """Activations [M, 32] times the cells of one column group [row blocks, 32, 32]: int32 [M, rows].

    Sums of 32 products stay below 2^24 and are therefore exact in float32, whatever the order: the only product here
    that may be left to a BLAS.
    """
    dots = a.astype(np.float32) @ q.reshape(-1, COL_GROUP).astype(np.float32).T
    return np.asarray(dots, np.int32)


REFERENCE = ReferenceKernels()

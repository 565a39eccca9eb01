"""`Kernels`: the contract that both kernel sets implement, and its array types."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from glm4.kernels.formats import PackedWeight

F32: TypeAlias = NDArray[np.float32]


I8: TypeAlias = NDArray[np.int8]


I32: TypeAlias = NDArray[np.int32]


I64: TypeAlias = NDArray[np.int64]


KVCacheArray: TypeAlias = NDArray[Any]  # float32, float16, or int8 as described in kernels/int8_cache.py


class Kernels(Protocol):
    """The interface of both kernel sets. Activations are float32 and C-contiguous unless a row stride is allowed.

    Every result row depends only on its own inputs: it is bit-identical regardless of the other rows in the call, the
    number of threads and how a prompt was cut into chunks. Wrong shapes or dtypes raise ValueError (TypeError for
    something that is not an array), indices out of range IndexError.
    """

    def pack(self, format: str, weight: F32) -> PackedWeight:
        """Packs float32 [N, K]. Raises TensorError for a weight that is not finite or too large for the format."""

    def unpack(self, weight: PackedWeight) -> F32:
        """The dequantized float32 [N, K]."""

    def round_columns(
        self, target: F32, source: F32, upper: F32, step: F32, center: F32, lowest: int, highest: int
    ) -> tuple[I8, F32]:
        """Rounds at most 32 columns, one after another, each knowing the errors of those before it.

        Args:
            target: the columns' targets, [columns, N]; N is the rows of the matrix.
            source: the weights, [columns, N].
            upper: [columns, columns]; upper[j, k] times the error of column j is added to the target of column k > j.
            step, center: a quant q represents step * q + center; [columns, N], or [1, N] for all columns.
            lowest, highest: bounds of the quants.

        Returns:
            quants int8 [columns, N], and source minus what they represent, float32 [columns, N].
        """

    def search_int4(self, target: F32, unit: F32, weights: F32) -> tuple[F32, F32]:
        """The int4 grid of a group of at most 32 columns with the least weighted squared error, row by row.

        Args:
            target: [columns, N].
            unit: unit of each row, [N].
            weights: weights of the columns' squared errors, [columns]; positive.

        Returns:
            scale 0..255 and offset -127..127, float32 [N]: q in -8..7 represents unit * (scale * q + 8 * offset).
        """

    def refine_int4(
        self, gradient: F32, hessian: F32, source: F32, unit: F32, scale: F32, offset: F32, quants: I8
    ) -> tuple[F32, F32, I8, F32]:
        """Rounds an int4 group of at most 32 columns once more, now that the errors of all columns are known.

        The loss is sum_ij e_i H_ij e_j over all columns of the matrix, e = weight - value. Each quant in turn becomes
        the best one given all others; then scale and offset become the best ones for these quants, if they are better.

        Args:
            gradient: H e of these columns, over the errors e of all columns of the matrix, [columns, N].
            hessian: H between these columns, [columns, columns], symmetric, its diagonal positive.
            source: the weights, [columns, N].
            unit, scale, offset, quants: the group's current values, see `search_int4`; [N], and int8 [columns, N].

        Returns:
            the new scale, offset and quants, and the errors of the group, float32 [columns, N].
        """

    def linear(self, x: F32, weight: PackedWeight, bias: F32 | None = None) -> F32:
        """x [M, K] times the transposed weight [N, K], plus bias [N]: float32 [M, N].

        For int8 and int4 weights x is first quantized per row and group of 32 (int8) or 128 columns (int4), see
        `quantize_activations` of the twin.
        """

    def embedding(self, weight: PackedWeight, ids: I32) -> F32:
        """Rows `ids` [M] of the matrix, dequantized: float32 [M, K]."""

    def rms_norm(self, x: F32, weight: F32, eps: float) -> F32:
        """x / sqrt(mean(x^2) + eps) * weight for each row of x [M, H]."""

    def layer_norm(self, x: F32, weight: F32, bias: F32, eps: float) -> F32:
        """(x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias for each row of x [M, H]."""

    def rotary(self, x: F32, cos: F32, sin: F32) -> None:
        """Rotates in place the adjacent pairs among the first R channels of each head.

        x [M, heads, D] may be a view with a row stride; cos and sin [M, R/2].
        """

    def swiglu(self, gate_up: F32) -> F32:
        """silu(first half) * second half of each row: [M, 2F] to [M, F]."""

    def gelu_(self, x: F32) -> None:
        """x = x * P(x) in place, P the standard normal distribution (GELU's erf form); x [M, F].

        -inf becomes 0, the limit. The compiled kernels are within 2e-7 and a rounding of x.
        """

    def add_(self, x: F32, y: F32) -> None:
        """x += y, both [M, H]."""

    def log_softmax(self, x: F32) -> F32:
        """Log-probabilities of each row of x [M, V]."""

    def store_kv(self, k: F32, v: F32, k_cache: KVCacheArray, v_cache: KVCacheArray, slots: I64) -> None:
        """Writes keys and values [M, KV, D] (row stride allowed) to slots [M] = page * page_size + offset.

        k_cache [pages, KV, D, page_size], v_cache [pages, KV, page_size, D], float32 or float16 (saturated to
        +-65504), or both with D + 4 for D in int8 (layout and rounding: kernels/int8_cache.py).
        """

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
        """Grouped-query attention of q [M, heads, D] (row stride allowed) over cached keys and values.

        Sequence s owns rows query_starts[s]:query_starts[s+1] and context_lens[s] cached tokens, those rows
        included; its pages are block_tables[s], padded with -1. If causal, they are the last tokens and each sees those
        up to itself; otherwise every row sees all context_lens[s] tokens. Returns [M, heads, D]. Over an int8 cache the
        compiled kernels round scaled queries, and the weights of each block of keys, to 16 bits.
        """

    def set_num_threads(self, n: int) -> None:
        """Sets the number of threads of every kernel, at least 1."""

    def num_threads(self) -> int:
        """Threads in use."""

    def isa(self) -> str:
        """Instruction set in use: "generic", "avx2", "avx512", "neon", or "numpy"."""

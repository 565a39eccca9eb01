"""How much memory a model needs at a given precision and context, by part, and whether this machine has it.

An estimate from the shape alone: no weights are read. Weights and KV cache are exact; activations, loading and the
interpreter are upper bounds. The engine's own rules apply: `dtype="auto"` means what it means to `LLM`, and the KV
cache may take at most `CACHE_SHARE` of what remains after the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from glm4.errors import InvalidRequestError, OutOfMemoryError
from glm4.loading.weights import SLAB_NBYTES
from glm4.model.config import ModelConfig
from glm4.model.kv_cache import CACHE_SHARE, PAGE_SIZE, page_nbytes, pages_for, resolve_kv_dtype
from glm4.model.precision import Precision, named_precision, resolve_precision, tensor_nbytes
from glm4.model.tensors import model_tensors
from glm4.system import memory

RUNTIME_BYTES = 250_000_000  # interpreter, libraries, a vocabulary of 150,000 entries
MAX_BATCHED_TOKENS = 512  # rows per forward pass, LLM's default
_SHOWN_CONTEXT = 8192  # when nothing fits and no context was requested


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by part, and whether they fit.

    Attributes:
        dtype: precision of the weights ("auto" resolved); kv_dtype likewise.
        context: tokens of one sequence; batch: sequences at once, each of that length.
        weights: bytes of "embeddings", "attention", "mlp", "norms" and "head" (0 when tied to embeddings), and of
            the other parts in the table of tensors.
        kv_cache: whole pages for `batch` sequences of `context` tokens.
        activations: buffers of one forward pass, RoPE table, logits.
        loading: needed only while loading, in addition to the weights: rows being packed, in fp32.
        runtime: interpreter, libraries, tokenizer.
        available: bytes this process may use.
        largest_context: the longest context that fits, 0 if none does; at most `model_context`.
    """

    dtype: str
    kv_dtype: str
    context: int
    batch: int
    weights: Mapping[str, int]
    kv_cache: int
    activations: int
    loading: int
    runtime: int
    available: int
    largest_context: int
    model_context: int

    @property
    def total_weights(self) -> int:
        """Bytes of all weights."""
        return sum(self.weights.values())

    @property
    def total(self) -> int:
        """Peak bytes: while loading or while running, whichever is more."""
        return self.total_weights + self.runtime + max(self.loading, self.kv_cache + self.activations)

    @property
    def fits(self) -> bool:
        """Whether `context` tokens for `batch` sequences fit here."""
        return 0 < self.context <= self.largest_context


def plan(
    config: ModelConfig,
    *,
    dtype: str = "auto",
    kv_dtype: str = "auto",
    context: int | None = None,
    batch: int = 1,
    available_memory: int | None = None,
    stored: Precision | None = None,
) -> MemoryPlan:
    """Estimate the memory of a model.

    Args:
        config: its shape, from a checkpoint or from `model.shapes`.
        dtype: "auto" (int8 or, of 4-bit GGUF files, "stored" if it fits, else int4), "fp32", "bf16", "int8", "int4" or
            "stored".
        kv_dtype: "auto" (fp32 with fp32 weights, else fp16), "fp32", "fp16" or "int8".
        context: tokens per sequence; None means the longest that fits.
        batch: concurrent sequences.
        available_memory: bytes; None measures this machine, container limits included.
        stored: the file's own precision (`Checkpoint.stored_precision`).

    Raises:
        InvalidRequestError: an unknown dtype, or a context or batch out of range.
    """
    available = memory.available_memory() if available_memory is None else available_memory
    precision = _precision(dtype, config, available, stored)
    kv_name = resolve_kv_dtype(kv_dtype, precision.name, config)
    limit = config.max_position_embeddings
    if context is not None and not 1 <= context <= limit:
        raise InvalidRequestError(f"context must be 1 to {limit}, this model's maximum", param="context")
    if batch < 1:
        raise InvalidRequestError(f"batch must be at least 1, not {batch}", param="batch")
    weights = _weights(config, precision)
    loading = _loading(config)
    largest = _largest_context(config, kv_name, batch, available - sum(weights.values()), loading)
    chosen = context or largest or min(limit, _SHOWN_CONTEXT)
    return MemoryPlan(
        dtype=precision.name,
        kv_dtype=kv_name,
        context=chosen,
        batch=batch,
        weights=MappingProxyType(weights),
        kv_cache=_kv_nbytes(config, kv_name, chosen, batch),
        activations=_activations(config, chosen, batch),
        loading=loading,
        runtime=RUNTIME_BYTES,
        available=available,
        largest_context=largest,
        model_context=limit,
    )


def _precision(dtype: str, config: ModelConfig, available: int, stored: Precision | None) -> Precision:
    try:
        return resolve_precision(dtype, config, available, stored)
    except OutOfMemoryError:
        return named_precision("int4" if dtype == "auto" else dtype, stored)


def _weights(config: ModelConfig, precision: Precision) -> dict[str, int]:
    sizes = dict.fromkeys(("embeddings", "attention", "mlp", "norms", "head"), 0)
    for tensor in model_tensors(config, precision.extras).values():
        sizes[tensor.row.part] = sizes.get(tensor.row.part, 0) + tensor_nbytes(tensor, precision)
    return sizes


def _loading(config: ModelConfig) -> int:
    """Bytes beyond the weights while loading: a slab being packed, its packed copy, and the next one being read."""
    whole = [4 * math.prod(tensor.shape) for tensor in model_tensors(config).values() if tensor.row.rotary]
    return 3 * max(SLAB_NBYTES, *whole)


def _activations(config: ModelConfig, context: int, batch: int) -> int:
    rows = min(MAX_BATCHED_TOKENS, context * batch)
    hidden, inner = config.hidden_size, config.intermediate_size
    # Queries, keys, values and attended values; or gate, up and their product.
    widest = max(config.qkv_size + config.query_size, 3 * inner)
    buffers = 4 * rows * (3 * hidden + widest) + 2 * rows * max(inner, hidden)  # the latter: quantized to int8
    rotary_table = 4 * config.rotary_dim * context
    logits = 4 * 4 * config.vocab_size * min(batch, 64)  # with the copies that sampling makes
    return buffers + rotary_table + logits


def _kv_nbytes(config: ModelConfig, kv_dtype: str, context: int, batch: int) -> int:
    return batch * pages_for(context) * page_nbytes(config, kv_dtype)


def _largest_context(config: ModelConfig, kv_dtype: str, batch: int, free: int, loading: int) -> int:
    """The longest context, in whole pages, whose cache and activations fit into `free` bytes next to the weights."""
    if loading + RUNTIME_BYTES > free:
        return 0

    def fits(context: int) -> bool:
        cache = _kv_nbytes(config, kv_dtype, context, batch)
        return cache <= CACHE_SHARE * free and cache + _activations(config, context, batch) + RUNTIME_BYTES <= free

    limit = config.max_position_embeddings
    if fits(limit):
        return limit
    low, high = 0, pages_for(limit)  # in pages: `low` fits, `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * PAGE_SIZE) else (low, middle)
    return low * PAGE_SIZE

"""How much memory a model needs: the one estimate behind `glm4 plan`, `dtype="auto"`, the context and the loader.

Weights and KV cache are exact; the rest is measured (`benchmarks/memory.py` prints both side by side, a test holds them
within 10 %). The KV cache may take at most `CACHE_SHARE` of what remains after the weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from glm4.errors import InvalidRequestError, OutOfMemoryError
from glm4.loading.weights import SLAB_NBYTES
from glm4.model.config import ModelConfig
from glm4.model.kv_cache import CACHE_SHARE, PAGE_SIZE, page_nbytes, pages_for, resolve_kv_dtype
from glm4.model.precision import Precision, precision_candidates, tensor_nbytes
from glm4.model.tensors import model_tensors
from glm4.model.vision import encoding_nbytes
from glm4.system.memory import Room

PROGRAM_BYTES = 55_000_000  # interpreter and libraries, and the vocabulary of a packed checkpoint
# Of the vocabulary otherwise: the file's metadata, the tokenizer's tables, and what reading and saving them leaves.
ENTRY_BYTES = 1_600
AUTO_CONTEXT = 2048  # "auto" takes a smaller format rather than a context below this (and a picture)


@dataclass(frozen=True)
class Wanted:
    """What is to run: names as in `LocalOptions`.

    Attributes:
        context: tokens of one sequence; None means as many as fit.
        sequences: sequences of that length whose KV cache must fit at once.
        rows: of one forward pass.
        cache_nbytes: a size of the KV cache that the user chose, instead of a share of free memory.
        picture_cache_nbytes: of what the vision tower made of pictures, kept.
    """

    dtype: str = "auto"
    kv_dtype: str = "auto"
    context: int | None = None
    sequences: int = 1
    rows: int = 512
    cache_nbytes: int | None = None
    picture_cache_nbytes: int = 256 << 20


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a process that runs a model in one precision.

    Attributes:
        mapped: the weights are a packed file, used in place: loading takes no further memory.
        picture_cache_nbytes: as in `Wanted`.
    """

    config: ModelConfig
    precision: Precision
    kv_dtype: str
    rows: int
    mapped: bool
    picture_cache_nbytes: int = 0

    @cached_property
    def weights(self) -> Mapping[str, int]:
        """Bytes of "embeddings", "attention", "mlp", "norms", "head", and other parts in the tensor table."""
        sizes = dict.fromkeys(("embeddings", "attention", "mlp", "norms", "head"), 0)
        for tensor in model_tensors(self.config, self.precision.extras).values():
            sizes[tensor.row.part] = sizes.get(tensor.row.part, 0) + tensor_nbytes(tensor, self.precision)
        return sizes

    @property
    def program(self) -> int:
        """Interpreter, libraries, tokenizer."""
        return PROGRAM_BYTES + (0 if self.mapped else ENTRY_BYTES * self.config.vocab_size)

    @cached_property
    def loading(self) -> int:
        """Needed only while loading, beyond all weights: a slab being packed, its packed copy, and the next one being
        read, in fp32, while later weights are not there yet. Matrices with rotary rows are read whole.
        """
        if self.mapped:
            return 0
        most = packed = 0
        for tensor in model_tensors(self.config).values():
            packed += tensor_nbytes(tensor, self.precision)
            whole = 4 * math.prod(tensor.shape)
            most = max(most, packed + 3 * (whole if tensor.row.rotary else min(whole, SLAB_NBYTES)))
        return max(0, most - packed)

    def kv_cache(self, context: int, sequences: int = 1) -> int:
        """Whole pages for `sequences` sequences of `context` tokens."""
        return sequences * pages_for(context) * page_nbytes(self.config, self.kv_dtype)

    def activations(self, context: int, sequences: int = 1) -> int:
        """Buffers of one forward pass, RoPE table, logits."""
        config, rows = self.config, min(self.rows, context * sequences)
        hidden, inner = config.hidden_size, config.intermediate_size
        # Queries, keys, values and attended values; or gate, up and their product.
        widest = max(config.qkv_size + config.query_size, 3 * inner)
        buffers = 4 * rows * (3 * hidden + widest) + 2 * rows * max(inner, hidden)  # the latter: quantized to int8
        rotary_table = 4 * config.rotary_dim * context
        logits = 4 * 4 * config.vocab_size * min(sequences, 64)  # with the copies that sampling makes
        # A picture is encoded between forward passes, so only what is held in between adds up.
        held, piece = encoding_nbytes(config, self.precision.format_of("vision.layers.0.qkv"))
        return max(buffers, piece) + rotary_table + logits + held

    def pictures(self, sequences: int = 1) -> int:
        """What the tower made of pictures: as many as are kept, and those that requests beside one of them hold."""
        vision = self.config.vision
        if vision is None:
            return 0
        one = 4 * vision.num_rows * self.config.hidden_size
        return (max(1, self.picture_cache_nbytes // one) + sequences - 1) * one

    def total(self, context: int, sequences: int = 1) -> int:
        """Peak bytes: while loading or while running, whichever is more."""
        running = self.kv_cache(context, sequences) + self.activations(context, sequences) + self.pictures(sequences)
        return sum(self.weights.values()) + self.program + max(self.loading, running)

    def available(self, room: Room) -> int:
        """Bytes that this estimate may add up to: what is free, and what the process has taken for the same purpose."""
        return room.free + min(room.taken, self.program)

    def cache_budget(self, room: Room) -> int:
        """The most bytes that the KV cache may take."""
        return max(0, int(CACHE_SHARE * (self.available(room) - sum(self.weights.values()))))

    def fits(self, context: int, sequences: int, room: Room) -> bool:
        """Whether `sequences` sequences of `context` tokens fit."""
        return self.total(context, sequences) <= self.available(room) and (
            self.kv_cache(context, sequences) <= self.cache_budget(room)
        )

    def largest_context(self, room: Room, sequences: int = 1) -> int:
        """The longest context, in whole pages or the model's limit, that fits; 0 if none does."""
        limit = self.config.max_position_embeddings
        if self.fits(limit, sequences, room):
            return limit
        low, high = 0, pages_for(limit)  # in pages: `low` fits, `high` does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(middle * PAGE_SIZE, sequences, room) else (low, middle)
        return low * PAGE_SIZE


def estimates(
    config: ModelConfig, wanted: Wanted, stored: Precision | None = None, mapped: Collection[str] = ()
) -> list[MemoryEstimate]:
    """One estimate per precision that the dtype may mean, best first.

    Args:
        stored: the file's own precision (`Checkpoint.stored_precision`).
        mapped: names of the precisions that a packed file is there for.

    Raises:
        InvalidRequestError: no such dtype, a context beyond the model's, or "stored" without 4-bit tensors.
    """
    limit = config.max_position_embeddings
    if wanted.context is not None and not 1 <= wanted.context <= limit:
        raise InvalidRequestError(
            f"a context of {wanted.context} tokens (max_model_len, `--context`) is not between 1 and the {limit} this "
            "model was made for",
            param="max_model_len",
        )
    return [
        MemoryEstimate(
            config,
            precision,
            resolve_kv_dtype(wanted.kv_dtype, precision.name, config),
            wanted.rows,
            precision.name in mapped,
            wanted.picture_cache_nbytes,
        )
        for precision in precision_candidates(wanted.dtype, config, stored)
    ]


def choose_precision(
    config: ModelConfig, wanted: Wanted, room: Room, stored: Precision | None = None, mapped: Collection[str] = ()
) -> MemoryEstimate:
    """The best precision that fits with the context that is wanted, or else with `AUTO_CONTEXT`.

    "auto" is int8 (near-lossless; "stored" if most weights are 4-bit codes in the file), or int4 if that does not fit.

    Raises:
        OutOfMemoryError: none fits with even one page of KV cache.
        InvalidRequestError: as `estimates`.
    """
    candidates = estimates(config, wanted, stored, mapped)
    rows = 0 if config.vision is None else config.vision.num_rows
    context = min(wanted.context or AUTO_CONTEXT + rows, config.max_position_embeddings)
    if wanted.cache_nbytes is not None:  # what it allows is known, however long the context
        context = 1
    for estimate in candidates:
        if estimate.fits(context, wanted.sequences, room):
            return estimate
    last = candidates[-1]
    if last.fits(1, 1, room):  # the context is too long; `cache_size` says what would fit
        return last
    smaller = {"int4": "", "int8": " Try dtype int4.", "stored": " Try dtype int4."}
    raise OutOfMemoryError(
        f"the weights, the program and a first page of KV cache need {last.total(1) / 1e9:.2f} GB in "
        f"{last.precision.name}, but {last.available(room) / 1e9:.2f} GB are free."
        + smaller.get(last.precision.name, " Try dtype int8 or int4.")
    )


def cache_size(estimate: MemoryEstimate, wanted: Wanted, max_num_seqs: int, room: Room) -> tuple[int, int]:
    """(pages, tokens of the longest sequence) of the KV cache to reserve.

    Raises:
        OutOfMemoryError: the context that is wanted does not fit; says which would.
    """
    page = page_nbytes(estimate.config, estimate.kv_dtype)
    limit = estimate.config.max_position_embeddings
    if wanted.cache_nbytes is not None:
        budget = wanted.cache_nbytes
        largest = min(limit, budget // page * PAGE_SIZE)
    else:
        budget, largest = estimate.cache_budget(room), estimate.largest_context(room)
    context = wanted.context or largest
    if not 0 < context <= largest:
        context = context or 1
        raise OutOfMemoryError(
            f"a KV cache for {context} tokens takes {estimate.kv_cache(context) / 1e9:.2f} GB, and with "
            f"{estimate.precision.name} weights at most {largest} tokens fit; ask for a context of at most {largest} "
            "tokens (max_model_len, `--context`), or a smaller dtype or KV cache format"
        )
    return max(pages_for(context), min(budget // page, max_num_seqs * pages_for(context))), context

"""How much memory a model needs at a given precision and context, by part, and whether this machine has it.

From the shape alone: no weights are read. The loader's own estimate and rules apply (`loading.memory_estimate`), so
what fits here also loads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from glm4.errors import InvalidRequestError, OutOfMemoryError
from glm4.loading.memory_estimate import MemoryEstimate, Wanted, choose_precision, estimates
from glm4.model.config import ModelConfig
from glm4.model.precision import Precision
from glm4.system.memory import Room

_SHOWN_CONTEXT = 8192  # when nothing fits and no context was requested


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by part, and whether they fit.

    Attributes:
        dtype: precision of the weights ("auto" resolved); kv_dtype likewise.
        context: tokens of one sequence; batch: sequences at once, each of that length.
        weights: bytes of "embeddings", "attention", "mlp", "norms" and "head" (0 when tied to embeddings), and of
            the other parts in the table of tensors.
        mapped: a packed file is used in place.
        kv_cache: whole pages for `batch` sequences of `context` tokens.
        activations: buffers of one forward pass and of a picture in the vision tower, RoPE table, logits.
        pictures: what the tower made of pictures, kept for further questions about them.
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
    mapped: bool = False
    pictures: int = 0

    @property
    def total_weights(self) -> int:
        """Bytes of all weights."""
        return sum(self.weights.values())

    @property
    def total(self) -> int:
        """Peak bytes: while loading or while running, whichever is more."""
        return self.total_weights + self.runtime + max(self.loading, self.running)

    @property
    def running(self) -> int:
        """Bytes needed only once the model is loaded."""
        return self.kv_cache + self.activations + self.pictures

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
    mapped: Collection[str] = (),
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
        mapped: names of the precisions that a packed file is there for; it is used in place.

    Raises:
        InvalidRequestError: an unknown dtype, or a context or batch out of range.
    """
    if batch < 1:
        raise InvalidRequestError(f"batch must be at least 1, not {batch}", param="batch")
    room = Room.here() if available_memory is None else Room(available_memory)
    wanted = Wanted(dtype, kv_dtype, context, batch)
    estimate = _estimate(config, wanted, room, stored, mapped)
    largest = estimate.largest_context(room, batch)
    chosen = context or largest or min(config.max_position_embeddings, _SHOWN_CONTEXT)
    return MemoryPlan(
        dtype=estimate.precision.name,
        kv_dtype=estimate.kv_dtype,
        context=chosen,
        batch=batch,
        weights=MappingProxyType(dict(estimate.weights)),
        kv_cache=estimate.kv_cache(chosen, batch),
        activations=estimate.activations(chosen, batch),
        loading=estimate.loading,
        runtime=estimate.program,
        available=estimate.available(room),
        largest_context=largest,
        model_context=config.max_position_embeddings,
        mapped=estimate.mapped,
        pictures=estimate.pictures(batch),
    )


def _estimate(
    config: ModelConfig, wanted: Wanted, room: Room, stored: Precision | None, mapped: Collection[str]
) -> MemoryEstimate:
    """What would be loaded, or the smallest that does not fit."""
    try:
        return choose_precision(config, wanted, room, stored, mapped)
    except OutOfMemoryError:
        return estimates(config, wanted, stored, mapped)[-1]

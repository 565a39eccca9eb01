"""The backend interface: token ids in, token ids out.

Everything above (llm, server) works on messages and text; everything below works on ids. A backend is synchronous and
single-threaded: the caller adds requests and calls `step()` until nothing is left. `engine.protocol` defines what
a request carries across this interface; this module defines what a backend is and what it can do.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from glm4.engine.protocol import AdapterInfo, EngineStats, GenerationOutput, GenerationRequest
from glm4.prompt import ImageLayout
from glm4.tokenizer import Tokenizer
from glm4.variants import Variant

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STEP_WAIT = 0.1
"""Seconds that `Backend.step` may wait for something outside this process."""


class Capability(Enum):
    """Features that only some backends support. `requests.requirements` refuses requests that need a missing one."""

    ADAPTERS = "adapters"
    EMBEDDINGS = "embeddings"
    LOGIT_BIAS = "logit_bias"
    LOGPROBS = "logprobs"
    MEDIA = "media"
    """Prompts with spans that stand for images or audio."""
    MIN_TOKENS = "min_tokens"
    PROMPT_LOGPROBS = "prompt_logprobs"
    SEED = "seed"
    DECLARED_GRAMMARS = "declared_grammars"
    """Compiles grammars itself: gets `GenerationRequest.structured_outputs`."""
    COMPILED_GRAMMARS = "compiled_grammars"
    """Follows a grammar compiled above this interface: gets `GenerationRequest.constraint`."""


@dataclass(frozen=True)
class ExecutionInfo:
    """How a model is computed in this process.

    Attributes:
        dtype: weight precision, a name of `model.precision`.
        kv_cache_dtype: "fp32", "fp16" or "int8".
        kv_cache_tokens: capacity of the KV cache in tokens.
        weight_bytes: memory the weights take.
        isa: instruction set of the kernels.
        num_threads: CPU threads.
    """

    dtype: str
    kv_cache_dtype: str
    kv_cache_tokens: int
    weight_bytes: int
    isa: str
    num_threads: int


@dataclass(frozen=True)
class BackendInfo:
    """What a backend is and can do.

    Attributes:
        name: as in `backends.table`.
        vocab_size: rows of the model's vocabulary.
        max_model_len: limit on prompt + output, in tokens.
        max_num_seqs: limit on sequences that run at once; the rest wait.
        capabilities: what requests may ask for.
        execution: None if another program does the computation.
    """

    name: str
    vocab_size: int
    max_model_len: int
    max_num_seqs: int = 1
    capabilities: frozenset[Capability] = frozenset()
    execution: ExecutionInfo | None = None


@dataclass(frozen=True)
class ModelFiles:
    """A model as seen by a backend that does not read our `Checkpoint`.

    Attributes:
        name: what the user called it.
        tokenizer: the vocabulary that prompts are written in.
        vocab_size: rows of the vocabulary, including those without a token.
        context: the model's context length in tokens; None if its files do not say.
        path: folder or GGUF file; without weights for a backend that does not read them.
        variant: the known model that it is.
        stop_ids: ids that end an answer, by the model's files.
        image: how a picture stands in prompts; None if the model reads text only.
    """

    name: str
    tokenizer: Tokenizer
    vocab_size: int
    context: int | None
    path: Path
    variant: Variant
    stop_ids: frozenset[int] = frozenset()
    image: ImageLayout | None = None

    @property
    def banned_ids(self) -> NDArray[np.int64]:
        """Rows of the vocabulary without a token, which must never be sampled."""
        return self.tokenizer.unnamed_ids(self.vocab_size)


def sample_seed(seed: int, sample_index: int) -> int:
    """A seed of 63 bits for one of a request's samples, for engines that know none. Two pairs give unrelated seeds."""
    digest = hashlib.blake2b(f"{seed % (1 << 64)}:{sample_index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Backend(Protocol):
    """Token ids in, token ids out."""

    @property
    def info(self) -> BackendInfo:
        """Limits and capabilities of this backend."""

    def add_request(self, request: GenerationRequest) -> None:
        """Queue a request without waiting. Raises InvalidRequestError for one that can never run."""

    def abort(self, request_id: str) -> None:
        """Stop a request and free its resources; unknown or finished ids are ignored. No more outputs follow."""

    def step(self) -> list[GenerationOutput]:
        """Advance by one step; returns outputs of the requests that made visible progress, perhaps none.

        A step computes for about as long as one forward pass takes. If it has nothing to compute and waits (for a
        server or a device), it returns within `STEP_WAIT` seconds, and at once when `wake` is called, so that aborts
        and new requests are not delayed.

        A failed request ends with an output that has `error`; the others continue. An exception from `step` ends all.
        """

    def wake(self) -> None:
        """Make the running or next `step` return without waiting. From any thread; a no-op if steps never wait."""

    def has_unfinished_requests(self) -> bool:
        """True while `step` has work to do."""

    def load_adapter(self, name: str, path: str) -> AdapterInfo:
        """Load an adapter (a folder in PEFT format) that requests can name. May be called from any thread.

        Raises:
            InvalidRequestError: the name is taken or unusable, there are too many, or this backend cannot load any.
            CheckpointError, OutOfMemoryError: it cannot be used, or does not fit.
        """

    def unload_adapter(self, name: str) -> None:
        """Refuse new requests that name it; queued and running ones finish. May be called from any thread.

        Raises:
            InvalidRequestError: there is no such adapter, or this backend cannot unload any.
        """

    def adapters(self) -> list[AdapterInfo]:
        """The adapters that requests may name, in load order. May be called from any thread."""

    def stats(self) -> EngineStats:
        """Current counters. Cheap; may be called from any thread."""

    def close(self) -> None:
        """Free memory and threads at once. Idempotent; not while a step runs.

        Later calls raise ModelClosedError, except those of `info`, `abort`, `wake` and `has_unfinished_requests`.
        """

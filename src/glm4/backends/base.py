"""The one seam in the middle: a backend takes token ids and gives token ids.

Everything above (llm, server, agent) works on messages and text; everything below works on ids. A backend is
synchronous and single-threaded: the caller adds requests and calls `step()` until nothing is left. What crosses the
seam with a request stands in `engine.protocol`; what a backend is, and what it can do, stands here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from glm4.engine.protocol import AdapterInfo, EngineStats, GenerationOutput, GenerationRequest
from glm4.tokenizer import Tokenizer

STEP_WAIT = 0.1
"""Seconds that `Backend.step` may wait for something outside this process."""


class Capability(Enum):
    """What a request may ask for and not every backend does. `requests.requirements` refuses what is missing."""

    ADAPTERS = "adapters"
    EMBEDDINGS = "embeddings"
    LOGIT_BIAS = "logit_bias"
    LOGPROBS = "logprobs"
    MEDIA = "media"
    """Knows the spans of a prompt: whose pages they are, and their positions."""
    MIN_TOKENS = "min_tokens"
    PROMPT_LOGPROBS = "prompt_logprobs"
    SEED = "seed"
    DECLARED_GRAMMARS = "declared_grammars"
    """Compiles the grammars itself: gets `GenerationRequest.structured_outputs`."""
    COMPILED_GRAMMARS = "compiled_grammars"
    """Follows a grammar that was compiled above the seam: gets `GenerationRequest.constraint`."""


@dataclass(frozen=True)
class ExecutionInfo:
    """How a model is computed in this process.

    Attributes:
        dtype: weight precision, a name of `model.precision`.
        kv_cache_dtype: "fp32", "fp16" or "int8".
        kv_cache_tokens: what the KV cache holds.
        weight_bytes: memory of the weights.
        isa: instruction set of the kernels.
        num_threads: processor threads.
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
        max_model_len: bounds prompt + output, in tokens.
        max_num_seqs: bounds what runs at once; more wait.
        capabilities: what requests may ask for.
        execution: None where another program computes.
    """

    name: str
    vocab_size: int
    max_model_len: int
    max_num_seqs: int = 1
    capabilities: frozenset[Capability] = frozenset()
    execution: ExecutionInfo | None = None


@dataclass(frozen=True)
class ModelFiles:
    """A model as a backend finds it that does not read our `Checkpoint`.

    Attributes:
        name: what the user called it.
        tokenizer: the vocabulary that prompts are written in.
        vocab_size: rows of the vocabulary, those without a token included.
        context: tokens the model was made for; None where its files do not say.
    """

    name: str
    tokenizer: Tokenizer
    vocab_size: int
    context: int | None


class Backend(Protocol):
    """Ids in, ids out."""

    @property
    def info(self) -> BackendInfo:
        """Limits and capabilities of this backend."""

    def add_request(self, request: GenerationRequest) -> None:
        """Queue a request, without waiting for anything. Raises InvalidRequestError for one that can never run."""

    def abort(self, request_id: str) -> None:
        """Stop a request and free what it holds; unknown or finished ids are ignored. No further output follows."""

    def step(self) -> list[GenerationOutput]:
        """Advance by one step; returns outputs of the requests that made progress a caller can see, perhaps none.

        A step computes for about as long as one forward pass takes. Where it has nothing to compute and waits (for a
        server, for a device), it returns after `STEP_WAIT` seconds at the latest, and at once when `wake` is called,
        so that no abort and no new request is held up.

        A request that fails ends with an output that has `error`; the others go on. What `step` raises ends them all.
        """

    def wake(self) -> None:
        """End the waiting of a `step` that runs, or of the next one. From any thread; nothing where none waits."""

    def has_unfinished_requests(self) -> bool:
        """True while `step` has something to do."""

    def load_adapter(self, name: str, path: str) -> AdapterInfo:
        """Load a LoRA adapter (a folder in PEFT's format) for requests to name. May be called from any thread.

        Raises:
            InvalidRequestError: the name is taken or unusable, there are too many, or none can be loaded here.
            CheckpointError, OutOfMemoryError: it cannot be used, or does not fit.
        """

    def unload_adapter(self, name: str) -> None:
        """Refuse requests that name it from now on; those queued or running finish. May be called from any thread.

        Raises:
            InvalidRequestError: there is no such adapter, or none can be unloaded here.
        """

    def adapters(self) -> list[AdapterInfo]:
        """The adapters that requests may name, in the order they were loaded. May be called from any thread."""

    def stats(self) -> EngineStats:
        """What is going on. Cheap; may be called from any thread."""

    def close(self) -> None:
        """Free memory and threads. Idempotent."""

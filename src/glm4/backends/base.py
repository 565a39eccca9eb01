"""The one seam in the middle: a backend takes token ids and gives token ids.

Everything above (llm, server, agent) works on messages and text; everything below works on ids. A backend is
synchronous and single-threaded: the caller adds requests and calls `step()` until nothing is left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from glm4.engine.protocol import AdapterInfo, EngineStats, GenerationOutput, GenerationRequest


@dataclass(frozen=True)
class BackendInfo:
    """What a backend can do: `max_model_len` bounds prompt + output, `max_num_seqs` what runs at once."""

    name: str
    vocab_size: int
    max_model_len: int
    max_num_seqs: int = 1
    details: dict[str, object] = field(default_factory=dict)


class Backend(Protocol):
    """Ids in, ids out."""

    @property
    def info(self) -> BackendInfo:
        """Limits of this backend."""

    def add_request(self, request: GenerationRequest) -> None:
        """Queue a request. Raises InvalidRequestError for one that can never run."""

    def abort(self, request_id: str) -> None:
        """Stop a request and free what it holds; unknown or finished ids are ignored. No further output follows."""

    def step(self) -> list[GenerationOutput]:
        """Advance by one step; returns one output per request that made progress a caller can see."""

    def has_unfinished_requests(self) -> bool:
        """True while `step` has something to do."""

    def load_adapter(self, name: str, path: str) -> AdapterInfo:
        """Load a LoRA adapter (a folder in PEFT's format) for requests to name. May be called from any thread.

        Raises:
            InvalidRequestError: the name is taken or unusable, or there are too many.
            CheckpointError, OutOfMemoryError: it cannot be used, or does not fit.
        """

    def unload_adapter(self, name: str) -> None:
        """Refuse requests that name it from now on; those queued or running finish. May be called from any thread.

        Raises:
            InvalidRequestError: there is no such adapter.
        """

    def adapters(self) -> list[AdapterInfo]:
        """The adapters that requests may name, in the order they were loaded. May be called from any thread."""

    def stats(self) -> EngineStats:
        """What is going on. Cheap; may be called from any thread."""

    def close(self) -> None:
        """Free memory and threads. Idempotent."""

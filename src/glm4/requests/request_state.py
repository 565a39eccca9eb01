"""`RequestState`: a request in flight, and how its samples' tokens become chunks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from glm4.engine.protocol import GenerationOutput
from glm4.errors import Glm4Error
from glm4.logprobs import TokenLogprobs
from glm4.outputs import RequestMetrics, RequestOutput, StreamChunk
from glm4.requests.output_processor import SampleProcessor


@dataclass
class RequestState:
    """A request in flight: the processor of each sample, keyed by the sample's id at the backend."""

    request_id: str
    prompt: str | None
    prompt_ids: list[int]
    samples: dict[str, SampleProcessor] = field(default_factory=dict)
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    embedding: NDArray[np.float32] | None = None
    error: Glm4Error | None = None
    num_added_ids: int = 0

    @property
    def finished(self) -> bool:
        """True once every sample has finished."""
        return all(sample.output is not None for sample in self.samples.values())

    def push(self, new: GenerationOutput) -> StreamChunk | None:
        """Run one backend output through its sample's processor; None once the sample has finished."""
        sample = self.samples[new.request_id]
        if sample.output is not None:
            return None
        if new.prompt_logprobs is not None:
            self.prompt_logprobs = list(new.prompt_logprobs)
        self.embedding = new.embedding
        before = sample.num_tokens
        events = sample.push(new)
        if new.error is not None:
            self.error = new.error
            for other in self.samples.values():
                other.end("error")
        # Tokens that follow a stop string in the same step do not count.
        used = sample.num_tokens - before
        self.metrics.mark_tokens(used, new.num_cached_tokens)
        if self.finished:
            self.metrics.mark_finished()
        return StreamChunk(
            request_id=self.request_id,
            index=sample.index,
            events=tuple(events),
            token_ids=new.token_ids[:used],
            logprobs=new.logprobs[:used],
            finish_reason=sample.output.finish_reason if sample.output is not None else None,
            output=self._output() if self.finished else None,
            prompt_logprobs=new.prompt_logprobs,
        )

    def _output(self) -> RequestOutput:
        outputs = [sample.output for sample in self.samples.values() if sample.output is not None]
        return RequestOutput(
            self.request_id,
            self.prompt,
            self.prompt_ids,
            outputs,
            self.prompt_logprobs,
            self.metrics,
            self.embedding,
            self.error,
            num_added_ids=self.num_added_ids,
        )

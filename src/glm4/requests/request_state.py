"""`RequestState`: a request in flight, and how its samples' tokens become chunks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from glm4.engine.protocol import GenerationOutput
from glm4.errors import Glm4Error, request_error
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
    adapter: str | None = None

    @property
    def finished(self) -> bool:
        """True once every sample has finished."""
        return all(sample.output is not None for sample in self.samples.values())

    def push(self, new: GenerationOutput) -> StreamChunk | None:
        """Run one backend output through its sample's processor; None once the sample has finished.

        Whatever goes wrong in there ends this request with an error.
        """
        try:
            return self._push(new)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a library in Rust is not an Exception
            return self.fail(request_error(error))

    def fail(self, error: Glm4Error) -> StreamChunk:
        """End all samples with an error; returns the request's last chunk."""
        self.error = self.error or error
        for sample in self.samples.values():
            sample.cut_off("error")
        self.metrics.mark_finished()
        return StreamChunk(self.request_id, 0, finish_reason="error", output=self._output())

    def _push(self, new: GenerationOutput) -> StreamChunk | None:
        sample = self.samples[new.request_id]
        if sample.output is not None:
            return None
        if new.prompt_logprobs is not None:
            self.prompt_logprobs = list(new.prompt_logprobs)
        self.embedding, self.error = new.embedding, new.error
        before = sample.num_tokens
        events = sample.push(new)
        if new.error is not None:
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
            stop_reason=sample.output.stop_reason if sample.output is not None else None,
        )

    def _output(self) -> RequestOutput:
        outputs = [sample.output for sample in self.samples.values() if sample.output is not None]
        for output in outputs:
            output.lora_request = self.adapter
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
            lora_request=self.adapter,
        )

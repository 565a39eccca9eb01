"""What callers get back: whole answers, streamed chunks and timings. Names follow vLLM's outputs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from glm4.chat.events import Event, TextDelta, merged
from glm4.chat.messages import Message, ToolCall
from glm4.errors import Glm4Error
from glm4.logprobs import TextToken, TokenLogprobs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass
class RequestMetrics:
    """Times are `time.monotonic()` seconds; None until the event has happened."""

    arrival_time: float = field(default_factory=time.monotonic)
    first_token_time: float | None = None
    finished_time: float | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0

    def mark_tokens(self, count: int, cached: int) -> None:
        """Record that `count` tokens arrived and that `cached` prompt tokens came from a cache."""
        if count and self.first_token_time is None:
            self.first_token_time = time.monotonic()
        self.num_generated_tokens += count
        self.num_cached_tokens = max(self.num_cached_tokens, cached)

    def mark_finished(self) -> None:
        """Record the end."""
        self.finished_time = time.monotonic()

    @property
    def ttft(self) -> float | None:
        """Seconds from arrival to the first token, including waiting for a slot in the batch."""
        return None if self.first_token_time is None else self.first_token_time - self.arrival_time

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Tokens after the first, per second; None for answers with fewer than two tokens."""
        if self.first_token_time is None or self.finished_time is None or self.num_generated_tokens < 2:
            return None
        elapsed = self.finished_time - self.first_token_time
        return (self.num_generated_tokens - 1) / elapsed if elapsed > 0 else None


@dataclass
class CompletionOutput:
    """One finished (or aborted) sample.

    Attributes:
        index: which of the `n` samples.
        text: the visible answer, without reasoning and tool calls.
        token_ids: everything generated, including a final stop id.
        finish_reason: "stop", "length", "tool_calls", "abort" or "error".
        stop_reason: the stop string or stop id that ended it; None for the model's own end of turn.
        reasoning: hidden reasoning, if the dialect has it.
        tool_calls: tool calls the model made.
        logprobs: one entry per token id, if requested.
        text_logprobs: of the tokens that wrote `text`, and nothing else; their bytes, joined, are the text.
        raw_text: the text before parsing; a dialect may mark boundaries in it with control characters.
        lora_request: name of the adapter that answered.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str
    stop_reason: int | str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: list[TokenLogprobs] | None = None
    text_logprobs: list[TextToken] | None = None
    raw_text: str = ""
    lora_request: str | None = None

    @property
    def cumulative_logprob(self) -> float | None:
        """Sum of the tokens' log-probabilities; None unless `logprobs` was requested."""
        return None if self.logprobs is None else sum(entry.logprob for entry in self.logprobs)

    def finished(self) -> bool:
        """True: samples are made when they end."""
        return True

    def as_message(self) -> Message:
        """The answer as an assistant message, ready to append to the conversation."""
        return Message("assistant", self.text, reasoning=self.reasoning, tool_calls=self.tool_calls)


@dataclass
class RequestOutput:
    """All samples of one request, ordered by index. The first `num_added_ids` of the prompt are the model's own prefix.

    An embedding request has its result in `embedding`, and one sample without text. A request that failed has its
    `error`, and its samples end where they were. `lora_request` is the name of its adapter.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[TokenLogprobs | None] | None
    metrics: RequestMetrics
    embedding: NDArray[np.float32] | None = None
    error: Glm4Error | None = None
    num_added_ids: int = 0
    lora_request: str | None = None

    @property
    def finished(self) -> bool:
        """True: outputs are made when their request ends."""
        return True

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that came from a cache."""
        return self.metrics.num_cached_tokens

    def as_embedding(self) -> EmbeddingOutput:
        """The requested embedding.

        Raises:
            Glm4Error: the request failed, or has none because it was not for one or its adapter's numbers overflowed.
        """
        if self.error is not None:
            raise self.error
        if self.embedding is None:
            raise Glm4Error("no embedding could be computed for this text")
        return EmbeddingOutput(self.embedding, len(self.prompt_token_ids))


@dataclass(frozen=True)
class EmbeddingOutput:
    """One embedded text.

    Attributes:
        embedding: float32 [hidden_size], of length 1: the mean over the text's positions of the model's last hidden
            states after the final norm, scaled. The models are not trained for it, so distances are rough.
        prompt_tokens: tokens of the text, including the model's usual prefix.
    """

    embedding: NDArray[np.float32]
    prompt_tokens: int

    @property
    def outputs(self) -> EmbeddingOutput:
        """Itself: vLLM's programs read `.outputs.embedding`."""
        return self


@dataclass(frozen=True)
class StreamChunk:
    """What one step produced for one sample.

    `finish_reason` is set in a sample's last chunk, with its `stop_reason` (see `CompletionOutput`); `output` in the
    request's last chunk; `prompt_logprobs` in a sample's first one, if requested.
    """

    request_id: str
    index: int
    events: tuple[Event, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: str | None = None
    output: RequestOutput | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    stop_reason: int | str | None = None

    def followed_by(self, later: StreamChunk) -> StreamChunk:
        """This chunk and a later one of the same sample, merged."""
        return StreamChunk(
            request_id=self.request_id,
            index=self.index,
            events=tuple(merged((*self.events, *later.events))),
            token_ids=self.token_ids + later.token_ids,
            logprobs=self.logprobs + later.logprobs,
            finish_reason=later.finish_reason,
            output=later.output,
            prompt_logprobs=self.prompt_logprobs or later.prompt_logprobs,
            stop_reason=later.stop_reason,
        )

    @property
    def text(self) -> str:
        """The visible text of this chunk."""
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

"""Writing streamed answers: `chat.completion.chunk` and streamed `text_completion` objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from glm4.api.openai.answers import chat_logprobs, envelope, new_id, prompt_text, text_logprobs, token_counts, usage
from glm4.api.openai.request import CompletionRequest, ResponseOptions, StreamOptions
from glm4.chat.events import EventVisitor, ReasoningDelta, TextDelta, ToolCallDelta
from glm4.outputs import RequestOutput, StreamChunk

if TYPE_CHECKING:
    from glm4.tokenizer import Tokenizer


class _Usage:
    """Running token counts of the requests of one response."""

    def __init__(self, stream: StreamOptions) -> None:
        self._stream = stream
        self._prompt: dict[int, int] = {}
        self._cached: dict[int, int] = {}
        self._completion = 0
        self._outputs: list[RequestOutput] = []

    def started(self, key: int, prompt_tokens: int) -> None:
        """Record the start of a request whose prompt has `prompt_tokens` tokens."""
        self._prompt[key] = prompt_tokens

    def add(self, chunk: StreamChunk) -> None:
        """Count a chunk's tokens."""
        self._completion += len(chunk.token_ids)
        if chunk.output is not None:
            self._outputs.append(chunk.output)

    def field(self) -> dict[str, Any]:
        """The usage field of a chunk with choices."""
        if self._stream.continuous_usage:
            return {"usage": token_counts(sum(self._prompt.values()), self._completion, 0)}
        return {"usage": None} if self._stream.include_usage else {}

    def last(self, begun: Mapping[str, Any], *, generate: bool = True) -> list[dict[str, Any]]:
        """The closing chunk with the total counts, if requested."""
        if not self._stream.include_usage:
            return []
        return [{**begun, "choices": [], "usage": usage(self._outputs, generate=generate)}]


class ChatChunks(EventVisitor[dict[str, Any]]):
    """The chunks of one streamed chat answer.

    Args:
        prompt_ids: the rendered prompt.
    """

    def __init__(
        self,
        model: str,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        stream: StreamOptions,
        options: ResponseOptions,
    ) -> None:
        self._tokenizer = tokenizer
        self._options = options
        self._prompt_ids = prompt_ids
        self._usage = _Usage(stream)
        self._usage.started(0, len(prompt_ids))
        self._begun = envelope("chat.completion.chunk", new_id("chatcmpl"), model, options)
        self._seen: set[int] = set()

    def first(self, samples: int) -> list[dict[str, Any]]:
        """The chunks that carry the role, one per sample: sent before the first token."""
        chunks = [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(samples)]
        if self._options.return_token_ids:
            for chunk in chunks:
                chunk["prompt_token_ids"] = list(self._prompt_ids)
        return chunks

    def push(self, chunk: StreamChunk) -> list[dict[str, Any]]:
        """The chunks for one step."""
        self._usage.add(chunk)
        deltas = [delta for event in chunk.events if (delta := event.accept(self))]
        extra: dict[str, Any] = {}
        if chunk.logprobs:
            extra["logprobs"] = chat_logprobs(chunk.logprobs, self._tokenizer, self._options)
        if self._options.return_token_ids and chunk.token_ids:
            extra["token_ids"] = list(chunk.token_ids)
        if extra and not deltas:
            deltas = [{}]  # the text of these tokens is still held back
        chunks = [self._chunk(chunk.index, delta) for delta in deltas]
        if extra:
            chunks[0]["choices"][0] |= extra
        if chunk.finish_reason is not None:
            last = self._chunk(chunk.index, {})
            last["choices"][0]["finish_reason"] = chunk.finish_reason
            chunks.append(last)
        return chunks

    def last(self) -> list[dict[str, Any]]:
        """The closing chunk, if usage was requested."""
        return self._usage.last(self._begun)

    def _chunk(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return {**self._begun, "choices": [choice], **self._usage.field()}

    def text(self, event: TextDelta) -> dict[str, Any]:
        """The `delta` of visible text."""
        return {"content": event.text}

    def reasoning(self, event: ReasoningDelta) -> dict[str, Any]:
        """The `delta` of hidden thinking; empty if the request excludes it."""
        return {"reasoning_content": event.text} if self._options.include_reasoning else {}

    def tool_call(self, event: ToolCallDelta) -> dict[str, Any]:
        """The `delta` of a tool call."""
        call: dict[str, Any] = {"index": event.index, "function": {"arguments": event.arguments}}
        if event.id is not None:  # the first of a call
            call = {
                "index": event.index,
                "id": event.id,
                "type": "function",
                "function": {"name": event.name, "arguments": event.arguments},
            }
        return {"tool_calls": [call]}


class TextChunks:
    """The chunks of one streamed text completion, which may answer several prompts."""

    def __init__(self, model: str, tokenizer: Tokenizer, request: CompletionRequest) -> None:
        self._tokenizer = tokenizer
        self._request = request
        self._usage = _Usage(request.stream or StreamOptions())
        self._begun = envelope("text_completion", new_id("cmpl"), model, request.response)
        self._prompts: dict[int, tuple[str | None, Sequence[int]]] = {}
        self._offsets: dict[int, int] = {}

    def started(self, position: int, prompt: str | None, prompt_ids: Sequence[int]) -> None:
        """Record that a prompt's request started.

        Args:
            position: which of the request's prompts.
        """
        self._prompts[position] = (prompt, prompt_ids)
        self._usage.started(position, len(prompt_ids))

    def push(self, position: int, chunk: StreamChunk) -> list[dict[str, Any]]:
        """The chunks for one step of a prompt."""
        request, index = self._request, position * self._request.params.n + chunk.index
        first = index not in self._offsets
        if not request.generate:
            chunk = replace(chunk, events=(), token_ids=(), logprobs=())
        self._usage.add(chunk)
        text = chunk.text
        choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": chunk.finish_reason}
        scores = list(chunk.logprobs)
        ids = [one.token_id for one in scores]
        prompt, prompt_ids = self._prompts[position]
        if first and request.echo:
            text = prompt_text(prompt, prompt_ids, self._tokenizer) + text
            known = chunk.prompt_logprobs or ()
            ids = [*prompt_ids[: len(known)], *ids]
            scores = [*known, *scores]  # type: ignore[list-item]
        offset = self._offsets.get(index, 0)
        if scores:
            choice["logprobs"] = text_logprobs(ids, scores, self._tokenizer, request.response, offset)
        if request.response.return_token_ids:
            choice["token_ids"] = list(chunk.token_ids)
            choice["prompt_token_ids"] = list(prompt_ids) if first else None
        self._offsets[index] = offset + len(text)
        if not (text or scores or chunk.finish_reason or request.response.return_token_ids):
            return []
        choice["text"] = text
        return [{**self._begun, "choices": [choice], **self._usage.field()}]

    def last(self) -> list[dict[str, Any]]:
        """The closing chunk, if usage was requested."""
        return self._usage.last(self._begun, generate=self._request.generate)

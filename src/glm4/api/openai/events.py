"""Writing streamed answers: `chat.completion.chunk` and streamed `text_completion` objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from glm4.api.openai.answers import chat_logprobs, echoed, envelope, new_id, prompt_text, token_counts, usage
from glm4.api.openai.request import CompletionRequest, ResponseOptions, StreamOptions
from glm4.api.openai.text_logprobs import ChoiceLogprobs
from glm4.chat.events import EventVisitor, ReasoningDelta, TextDelta, ToolCallDelta
from glm4.outputs import RequestOutput, StreamChunk

if TYPE_CHECKING:
    from glm4.tokenizer import Tokenizer


class StreamUsage:
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


_Delta = tuple[dict[str, Any], dict[str, Any] | None]
"""A choice's `delta` and `logprobs`."""


class ChatChunks(EventVisitor[_Delta]):
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
        self._usage = StreamUsage(stream)
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
        chunks = [self._chunk(chunk.index, *choice) for event in chunk.events if (choice := event.accept(self))[0]]
        if self._options.return_token_ids and chunk.token_ids:
            if not chunks:
                chunks = [self._chunk(chunk.index, {})]  # the text of these tokens is still held back
            chunks[0]["choices"][0]["token_ids"] = list(chunk.token_ids)
        if chunk.finish_reason is not None:
            last = self._chunk(chunk.index, {})
            last["choices"][0]["finish_reason"] = chunk.finish_reason
            chunks.append(last)
        return chunks

    def last(self) -> list[dict[str, Any]]:
        """The closing chunk, if usage was requested."""
        return self._usage.last(self._begun)

    def _chunk(self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        return {**self._begun, "choices": [choice], **self._usage.field()}

    def text(self, event: TextDelta) -> _Delta:
        """The `delta` of visible text."""
        return {"content": event.text}, chat_logprobs(event.tokens or None, self._tokenizer, self._options)

    def reasoning(self, event: ReasoningDelta) -> _Delta:
        """The `delta` of hidden thinking; empty if the request excludes it."""
        return ({"reasoning_content": event.text} if self._options.include_reasoning else {}), None

    def tool_call(self, event: ToolCallDelta) -> _Delta:
        """The `delta` of a tool call."""
        call: dict[str, Any] = {"index": event.index, "function": {"arguments": event.arguments}}
        if event.id is not None:  # the first of a call
            call = {
                "index": event.index,
                "id": event.id,
                "type": "function",
                "function": {"name": event.name, "arguments": event.arguments},
            }
        return {"tool_calls": [call]}, None


class TextChunks:
    """The chunks of one streamed text completion, which may answer several prompts."""

    def __init__(self, model: str, tokenizer: Tokenizer, request: CompletionRequest) -> None:
        self._tokenizer = tokenizer
        self._request = request
        self._usage = StreamUsage(request.stream or StreamOptions())
        self._begun = envelope("text_completion", new_id("cmpl"), model, request.response)
        self._prompts: dict[int, tuple[str, Sequence[int], int]] = {}
        self._choices: dict[int, _TextChoice] = {}

    def started(self, position: int, prompt: str | None, prompt_ids: Sequence[int], num_added: int = 0) -> None:
        """Record that a prompt's request started.

        Args:
            position: which of the request's prompts.
            num_added: ids at the beginning that are the model's prefix.
        """
        text = prompt_text(prompt, prompt_ids[num_added:], self._tokenizer) if self._request.echo else ""
        self._prompts[position] = (text, prompt_ids, num_added)
        self._usage.started(position, len(prompt_ids))

    def push(self, position: int, chunk: StreamChunk) -> list[dict[str, Any]]:
        """The chunks for one step of a prompt."""
        request, index = self._request, position * self._request.params.n + chunk.index
        echo, prompt_ids, num_added = self._prompts[position]
        first = index not in self._choices
        if not request.generate:
            chunk = replace(chunk, events=(), token_ids=(), logprobs=())
        self._usage.add(chunk)
        if first:
            skip = request.params.skip_special_tokens
            logprobs = ChoiceLogprobs(echo, self._tokenizer, request.response, skip_special_tokens=skip)
            self._choices[index] = _TextChoice(logprobs)
            if request.echo and chunk.prompt_logprobs is not None:
                logprobs.add_prompt(*echoed(prompt_ids, chunk.prompt_logprobs, num_added))
        text = (echo if first else "") + chunk.text
        scores, ids = self._choices[index].push(chunk, text)
        choice: dict[str, Any] = {"index": index, "logprobs": scores, "finish_reason": chunk.finish_reason}
        if request.response.return_token_ids:
            choice["token_ids"] = ids
            choice["prompt_token_ids"] = list(prompt_ids) if first else None
        if not (text or scores or chunk.finish_reason or request.response.return_token_ids):
            return []
        choice["text"] = text
        return [{**self._begun, "choices": [choice], **self._usage.field()}]

    def last(self) -> list[dict[str, Any]]:
        """The closing chunk, if usage was requested."""
        return self._usage.last(self._begun, generate=self._request.generate)


class _TextChoice:
    """One choice of a text completion: its tokens' ids go out with their log-probabilities, if there are any."""

    def __init__(self, logprobs: ChoiceLogprobs) -> None:
        self._logprobs = logprobs
        self._length = 0
        self._ids: list[int] = []

    def push(self, chunk: StreamChunk, text: str) -> tuple[dict[str, Any] | None, list[int]]:
        """`logprobs` and token ids to send with this text."""
        final = chunk.finish_reason is not None
        self._length += len(text)
        self._ids += chunk.token_ids
        self._logprobs.add(chunk.logprobs)
        scores = self._logprobs.take(self._length, final=final)
        count = max(0, len(self._ids) - self._logprobs.num_waiting)
        ids, self._ids = self._ids[:count], self._ids[count:]
        return (scores if scores["tokens"] else None), ids

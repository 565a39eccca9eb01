"""`MessageEvents`: an answer as Anthropic's stream events, and the message they add up to.

Whole answers are built from the same events as streamed ones, so the two cannot differ.
"""

from __future__ import annotations

import uuid
from typing import Any

from glm4.api.anthropic.request import MessageRequest
from glm4.api.arguments import arguments_object
from glm4.chat.events import EventVisitor, ReasoningDelta, TextDelta, ToolCallDelta
from glm4.outputs import RequestOutput, StreamChunk

SIGNATURE = "unsigned"
"""Signature of every thinking block: not checked when sent back, but clients drop blocks without one."""

PING: dict[str, Any] = {"type": "ping"}


class MessageEvents(EventVisitor[list[dict[str, Any]]]):
    """The events of one answer.

    Args:
        model: the name the response carries.
        prompt_tokens: tokens of the rendered prompt.
    """

    def __init__(self, model: str, request: MessageRequest, prompt_tokens: int) -> None:
        self._request = request
        self._prompt_tokens = prompt_tokens
        self._head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model}
        self._ending: dict[str, Any] = {"stop_reason": None, "stop_sequence": None}
        self._usage = self._counts(0, 0)
        self._blocks: list[tuple[dict[str, Any], list[str]]] = []
        self._open: str | None = None  # the type of the block being written
        self._space = ""  # leading whitespace, dropped if no text follows

    def first(self) -> list[dict[str, Any]]:
        """The events before the first token. How much of the prompt was cached is known only at the end."""
        return [{"type": "message_start", "message": self.message()}, PING]

    def push(self, chunk: StreamChunk) -> list[dict[str, Any]]:
        """The events for one chunk."""
        events: list[dict[str, Any]] = []
        if self._request.generate:
            for event in chunk.events:
                events += event.accept(self)
        return events if chunk.output is None else events + self._last(chunk.output)

    def message(self) -> dict[str, Any]:
        """The message so far; complete once the last chunk was pushed."""
        message = {
            **self._head,
            "content": [_content(block, "".join(pieces)) for block, pieces in self._blocks],
            **self._ending,
            "usage": self._usage,
        }
        if self._request.manages_context:
            message["context_management"] = {"applied_edits": []}
        if self._request.compares_cache:
            message["diagnostics"] = {"cache_miss_reason": {"type": "unavailable"}}
        return message

    def text(self, event: TextDelta) -> list[dict[str, Any]]:
        """The stream events of visible text."""
        text = event.text
        events: list[dict[str, Any]] = []
        if self._open != "text":
            text = self._space + text
            if not text.strip():  # line breaks between calls are not text
                self._space = text
                return []
            events = self._begin({"type": "text", "text": ""})
        return [*events, self._delta({"type": "text_delta", "text": text}, text)]

    def reasoning(self, event: ReasoningDelta) -> list[dict[str, Any]]:
        """The stream events of thinking."""
        if self._request.thinking == "hidden":
            return []
        events: list[dict[str, Any]] = []
        if self._open != "thinking":
            events = self._begin({"type": "thinking", "thinking": "", "signature": ""})
        if self._request.thinking == "omitted":
            return events
        return [*events, self._delta({"type": "thinking_delta", "thinking": event.text}, event.text)]

    def tool_call(self, event: ToolCallDelta) -> list[dict[str, Any]]:
        """The stream events of a tool call."""
        events: list[dict[str, Any]] = []
        if event.id is not None:  # the first of a call
            id_ = "toolu_" + event.id.removeprefix("call_")
            events = self._begin({"type": "tool_use", "id": id_, "name": event.name, "input": {}})
        return [*events, self._delta({"type": "input_json_delta", "partial_json": event.arguments}, event.arguments)]

    def _begin(self, block: dict[str, Any]) -> list[dict[str, Any]]:
        events = self._end()
        self._open, self._space = block["type"], ""
        self._blocks.append((block, []))
        return [*events, {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": block}]

    def _delta(self, delta: dict[str, Any], text: str = "") -> dict[str, Any]:
        self._blocks[-1][1].append(text)
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _end(self) -> list[dict[str, Any]]:
        if self._open is None:
            return []
        events = []
        if self._open == "thinking":
            events.append(self._delta({"type": "signature_delta", "signature": SIGNATURE}))
        self._open = None
        return [*events, {"type": "content_block_stop", "index": len(self._blocks) - 1}]

    def _last(self, output: RequestOutput) -> list[dict[str, Any]]:
        (sample,) = output.outputs
        tokens = len(sample.token_ids) if self._request.generate else 0
        self._usage = self._counts(output.metrics.num_cached_tokens, tokens)
        self._ending = self._stop(output)
        last: dict[str, Any] = {"type": "message_delta", "delta": self._ending, "usage": self._usage}
        if self._request.manages_context:
            last["context_management"] = {"applied_edits": []}
        return [*self._end(), last, {"type": "message_stop"}]

    def _stop(self, output: RequestOutput) -> dict[str, Any]:
        (sample,) = output.outputs
        if not self._request.generate:
            reason = "max_tokens"
        elif isinstance(sample.stop_reason, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": sample.stop_reason}
        elif sample.finish_reason == "length":
            full = len(sample.token_ids) < self._request.max_tokens
            reason = "model_context_window_exceeded" if full else "max_tokens"
        else:
            reason = "tool_use" if sample.tool_calls else "end_turn"
        return {"stop_reason": reason, "stop_sequence": None}

    def _counts(self, cached: int, generated: int) -> dict[str, Any]:
        """`usage`: Anthropic's input_tokens count only tokens that were not cached."""
        return {
            "input_tokens": self._prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": generated,
        }


def _content(block: dict[str, Any], text: str) -> dict[str, Any]:
    """A block with its text filled in."""
    if block["type"] == "text":
        return {**block, "text": text}
    if block["type"] == "thinking":
        return {**block, "thinking": text, "signature": SIGNATURE}
    return {**block, "input": arguments_object(text)}

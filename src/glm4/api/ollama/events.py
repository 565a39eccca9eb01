"""`AnswerLines`: an answer as the JSON lines of Ollama's stream, and the body they add up to.

Whole answers are joined from the same lines as streamed ones, so the two cannot differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from glm4.api.arguments import arguments_object
from glm4.api.ollama.request import OllamaRequest
from glm4.api.openai.answers import content_logprobs
from glm4.chat.events import EventVisitor, ReasoningDelta, TextDelta, ToolCallDelta
from glm4.outputs import RequestMetrics, RequestOutput, StreamChunk

if TYPE_CHECKING:
    from glm4.tokenizer import Tokenizer

_Lines = list[dict[str, Any]]


def now() -> str:
    """The time as Ollama writes it."""
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


def durations(metrics: RequestMetrics) -> dict[str, int]:
    """Counts, and times in nanoseconds, of a finished request. Reading the prompt includes waiting for a slot."""
    end = metrics.finished_time or metrics.arrival_time
    first = metrics.first_token_time or end
    return {
        "total_duration": round(1e9 * (end - metrics.arrival_time)),
        "load_duration": 0,
        "prompt_eval_count": metrics.num_prompt_tokens,
        "prompt_eval_duration": round(1e9 * (first - metrics.arrival_time)),
        "eval_count": metrics.num_generated_tokens,
        "eval_duration": round(1e9 * (end - first)),
    }


def opened(model: str, *, is_chat: bool, done_reason: str | None = None) -> dict[str, Any]:
    """A line that says nothing; with a reason, the last one."""
    empty: dict[str, Any] = {"message": {"role": "assistant", "content": ""}} if is_chat else {"response": ""}
    ending = {"done": False} if done_reason is None else {"done": True, "done_reason": done_reason}
    return {"model": model, "created_at": now(), **empty, **ending}


class AnswerLines(EventVisitor[_Lines]):
    """The lines of one answer.

    Args:
        model: the name the lines carry.
    """

    def __init__(self, wanted: OllamaRequest, model: str, tokenizer: Tokenizer) -> None:
        self._wanted = wanted
        self._model = model
        self._tokenizer = tokenizer
        self._call: dict[str, Any] | None = None  # the call being written; its arguments as text
        self._num_calls = 0

    def push(self, chunk: StreamChunk) -> _Lines:
        """The lines for one chunk."""
        lines = [line for event in chunk.events for line in event.accept(self)]
        return lines if chunk.output is None else [*lines, *self._ended_call(), self._last(chunk.output)]

    def silence(self) -> dict[str, Any]:
        """A line that keeps a connection open: lines of JSON have no comments."""
        return opened(self._model, is_chat=self._wanted.is_chat)

    def text(self, event: TextDelta) -> _Lines:
        """The line of visible text."""
        line = self._line(content=event.text)
        if event.tokens:
            line["logprobs"] = content_logprobs(event.tokens, self._tokenizer)
        return [*self._ended_call(), line]

    def reasoning(self, event: ReasoningDelta) -> _Lines:
        """The line of thinking; none if the request hides it."""
        return [*self._ended_call(), self._line(thinking=event.text)] if self._wanted.shows_thinking else []

    def tool_call(self, event: ToolCallDelta) -> _Lines:
        """The line of the call before this one: a call is sent whole."""
        lines: _Lines = []
        if event.id is not None:  # the first of a call
            lines = self._ended_call()
            self._call = {"id": event.id, "name": event.name, "arguments": ""}
        if self._call is not None:
            self._call["arguments"] += event.arguments
        return lines

    def _ended_call(self) -> _Lines:
        if self._call is None:
            return []
        call, self._call = self._call, None
        function = {"index": self._num_calls, "name": call["name"], "arguments": arguments_object(call["arguments"])}
        self._num_calls += 1
        return [self._line(tool_calls=[{"id": call["id"], "function": function}])]

    def _line(self, content: str = "", **more: Any) -> dict[str, Any]:
        line = opened(self._model, is_chat=self._wanted.is_chat)
        if self._wanted.is_chat:
            line["message"] |= {"content": content, **more}
        else:
            line |= {"response": content, **more}
        return line

    def _last(self, output: RequestOutput) -> dict[str, Any]:
        (sample,) = output.outputs
        reason = "length" if sample.finish_reason == "length" else "stop"
        return {
            **opened(self._model, is_chat=self._wanted.is_chat, done_reason=reason),
            **durations(output.metrics),
        }


def joined(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The whole answer that these lines, the last one included, add up to."""
    whole = dict(lines[-1])
    places = [line.get("message", line) for line in lines]
    said: dict[str, Any] = {}
    for key in ("content", "response", "thinking"):
        if text := "".join(place.get(key, "") for place in places):
            said[key] = text
    if calls := [call for place in places for call in place.get("tool_calls", ())]:
        said["tool_calls"] = calls
    if "message" in whole:
        whole["message"] = {**whole["message"], **said}
    else:
        whole |= said
    if logprobs := [entry for line in lines for entry in line.get("logprobs", ())]:
        whole["logprobs"] = logprobs
    return whole

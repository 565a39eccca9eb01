"""`ResponseWriter`: a model's output as a response's output items and as its stream events.

A whole response and a streamed one come from the same writer, so they cannot differ. The order of events:

    response.created, response.in_progress
    for each item: response.output_item.added
        message    content_part.added, output_text.delta …, output_text.done, content_part.done
        thinking   content_part.added, reasoning_text.delta …, reasoning_text.done, content_part.done
        call       function_call_arguments.delta …, function_call_arguments.done
      response.output_item.done
    response.completed | response.incomplete | error, response.failed
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from glm4.api.openai.answers import content_logprobs
from glm4.api.responses.answers import response_object, response_usage
from glm4.api.responses.items import Item, item_id
from glm4.api.responses.request import ResponsesRequest
from glm4.chat.events import EventVisitor, ReasoningDelta, TextDelta, ToolCallDelta
from glm4.outputs import RequestOutput, StreamChunk

if TYPE_CHECKING:
    from glm4.tokenizer import Tokenizer

Emit = Callable[..., None]


class _OpenItem(Protocol):
    """An output item being built."""

    key: tuple[str, int]

    def begin(self, emit: Emit) -> None:
        """Emit its first events."""

    def end(self, emit: Emit, status: str) -> Item:
        """Emit its last events; returns the finished item."""


class _Parted:
    """An item with one content part: a message or thinking.

    Args:
        place: `output_index` of its events.
    """

    def __init__(self, place: int, prefix: str, item: Mapping[str, Any], kind: str, extra: Mapping[str, Any]) -> None:
        self.key = (kind, 0)
        self.logprobs: list[dict[str, Any]] = []
        self._kind = kind
        self._item = {"id": item_id(prefix), **item}
        self._extra = extra
        self._place = {"output_index": place, "content_index": 0, "item_id": self._item["id"]}
        self._text: list[str] = []

    def begin(self, emit: Emit) -> None:
        item = {**self._item, "status": "in_progress", "content": []}
        emit("response.output_item.added", output_index=self._place["output_index"], item=item)
        emit("response.content_part.added", **self._place, part={"type": self._kind, "text": "", **self._extra})

    def delta(self, emit: Emit, text: str, logprobs: list[dict[str, Any]]) -> None:
        self._text.append(text)
        self.logprobs += logprobs
        extra = {"logprobs": logprobs} if self._extra else {}
        emit(f"response.{self._kind}.delta", **self._place, delta=text, **extra)

    def end(self, emit: Emit, status: str) -> Item:
        text = "".join(self._text)
        extra = {"logprobs": self.logprobs} if self._extra else {}
        part = {"type": self._kind, "text": text, **self._extra, **extra}
        item = {**self._item, "status": status, "content": [part]}
        emit(f"response.{self._kind}.done", **self._place, text=text, **extra)
        emit("response.content_part.done", **self._place, part=part)
        emit("response.output_item.done", output_index=self._place["output_index"], item=item)
        return item


def _message(place: int) -> _Parted:
    item = {"type": "message", "role": "assistant"}
    return _Parted(place, "msg", item, "output_text", {"annotations": [], "logprobs": []})


def _thinking(place: int) -> _Parted:
    return _Parted(place, "rs", {"type": "reasoning", "summary": []}, "reasoning_text", {})


class _Call:
    """A function call."""

    def __init__(self, place: int, first: ToolCallDelta) -> None:
        self.key = ("function_call", first.index)
        self._item = {"id": item_id("fc"), "type": "function_call", "call_id": first.id, "name": first.name}
        self._place = {"output_index": place, "item_id": self._item["id"]}
        self._arguments: list[str] = []

    def begin(self, emit: Emit) -> None:
        item = {**self._item, "status": "in_progress", "arguments": ""}
        emit("response.output_item.added", output_index=self._place["output_index"], item=item)

    def delta(self, emit: Emit, arguments: str) -> None:
        if arguments:
            self._arguments.append(arguments)
            emit("response.function_call_arguments.delta", **self._place, delta=arguments)

    def end(self, emit: Emit, status: str) -> Item:
        arguments = "".join(self._arguments)
        item = {**self._item, "status": status, "arguments": arguments}
        emit("response.function_call_arguments.done", **self._place, arguments=arguments)
        emit("response.output_item.done", output_index=self._place["output_index"], item=item)
        return item


class ResponseWriter(EventVisitor[None]):
    """Writes one response.

    Args:
        model: the name the response carries.
    """

    def __init__(self, request: ResponsesRequest, model: str, tokenizer: Tokenizer) -> None:
        self.id = item_id("resp")
        self.ended = False
        self._request = request
        self._tokenizer = tokenizer
        self._begun = {"id": self.id, "created_at": int(time.time()), "model": model, **request.echo}
        self._events: list[dict[str, Any]] = []
        self._sequence = 0
        self._done: list[Item] = []
        self._open: _OpenItem | None = None
        self.response = response_object(self._begun, "in_progress")

    def begin(self) -> list[dict[str, Any]]:
        """The events before the first token."""
        self._emit("response.created", response=self.response)
        self._emit("response.in_progress", response=self.response)
        return self._take()

    def push(self, chunk: StreamChunk) -> list[dict[str, Any]]:
        """The events for one chunk."""
        for event in chunk.events:
            event.accept(self)
        return self._take()

    def finish(self, output: RequestOutput) -> list[dict[str, Any]]:
        """End the items; `response` is then the complete response."""
        (sample,) = output.outputs
        cut = sample.finish_reason == "length"
        if not cut and not any(item["type"] != "reasoning" for item in self._done) and not self._answers():
            self._turn_to(("output_text", 0), lambda: _message(len(self._done)))  # an empty answer is still a message
        self._close("incomplete" if cut else "completed")
        status = "incomplete" if cut else "completed"
        self._end(
            status,
            usage=response_usage(output, self._tokenizer),
            reason="max_output_tokens" if cut else None,
            completed_at=None if cut else int(time.time()),
        )
        return self._take()

    def last(self) -> list[dict[str, Any]]:
        """The final event; send it after the response is stored."""
        self._emit(f"response.{self.response['status']}", response=self.response)
        return self._take()

    def fail(self, message: str, *, code: str | None, param: str | None) -> list[dict[str, Any]]:
        """End the response after an error in the middle."""
        self._close("incomplete")
        self._end("failed", error={"code": "server_error", "message": message})
        self._emit("error", code=code or "server_error", message=message, param=param)
        return self.last()

    def cancel(self) -> None:
        """End the response after the client disconnects: no events are sent, but the response may be stored."""
        self._close("incomplete")
        self._end("cancelled")

    def text(self, event: TextDelta) -> None:
        """Visible text: more of a message."""
        item = self._turn_to(("output_text", 0), lambda: _message(len(self._done)))
        wanted = event.tokens if self._request.logprobs else ()
        item.delta(self._emit, event.text, content_logprobs(wanted, self._tokenizer))

    def reasoning(self, event: ReasoningDelta) -> None:
        """Thinking: more of a reasoning item."""
        self._turn_to(("reasoning_text", 0), lambda: _thinking(len(self._done))).delta(self._emit, event.text, [])

    def tool_call(self, event: ToolCallDelta) -> None:
        """A tool call: more of a function call's arguments."""
        key = ("function_call", event.index)
        self._turn_to(key, lambda: _Call(len(self._done), event)).delta(self._emit, event.arguments)

    def _turn_to(self, key: tuple[str, int], make: Callable[[], Any]) -> Any:
        """The open item if it has this key; otherwise close it and begin a new one."""
        if self._open is None or self._open.key != key:
            self._close("completed")
            self._open = make()
            self._open.begin(self._emit)
        return self._open

    def _answers(self) -> bool:
        return self._open is not None and self._open.key[0] != "reasoning_text"

    def _close(self, status: str) -> None:
        if self._open is not None:
            self._done.append(self._open.end(self._emit, status))
            self._open = None

    def _end(self, status: str, **fields: Any) -> None:
        self.ended = True
        self.response = response_object(self._begun, status, self._done, **fields)

    def _emit(self, kind: str, **fields: Any) -> None:
        self._events.append({"type": kind, "sequence_number": self._sequence, **fields})
        self._sequence += 1

    def _take(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events

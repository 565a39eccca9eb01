"""`ItemWriter`: what writes the items of a response, and the events about them.

A whole response and a streamed one come from the same writer, so they cannot differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from glm4.api.responses.answers import response_object
from glm4.api.responses.items import Item, item_id
from glm4.api.responses.request import ResponsesRequest

Emit = Callable[..., None]


class OpenItem(Protocol):
    """An output item being built.

    Attributes:
        place: among the items of the response.
    """

    key: tuple[str, int]
    place: int

    def begin(self, emit: Emit) -> None:
        """Emit its first events."""

    def end(self, emit: Emit, status: str) -> Item:
        """Emit its last events; returns the finished item."""


class PartedItem:
    """An item with one content part: a message or thinking.

    Args:
        place: `output_index` of its events.
    """

    def __init__(self, place: int, prefix: str, item: Mapping[str, Any], kind: str, extra: Mapping[str, Any]) -> None:
        self.key = (kind, 0)
        self.place = place
        self.annotations: list[dict[str, Any]] = []
        self.logprobs: list[dict[str, Any]] = []
        self._kind = kind
        self._item = {"id": item_id(prefix), **item}
        self._extra = extra
        self._place = {"output_index": place, "content_index": 0, "item_id": self._item["id"]}
        self._text: list[str] = []

    @property
    def text(self) -> str:
        """So far."""
        return "".join(self._text)

    def begin(self, emit: Emit) -> None:
        """See `OpenItem`."""
        item = {**self._item, "status": "in_progress", "content": []}
        emit("response.output_item.added", output_index=self._place["output_index"], item=item)
        emit("response.content_part.added", **self._place, part={"type": self._kind, "text": "", **self._extra})

    def delta(self, emit: Emit, text: str, logprobs: list[dict[str, Any]]) -> None:
        """More text."""
        self._text.append(text)
        self.logprobs += logprobs
        extra = {"logprobs": logprobs} if self._extra else {}
        emit(f"response.{self._kind}.delta", **self._place, delta=text, **extra)

    def annotate(self, emit: Emit, annotation: dict[str, Any]) -> None:
        """Note a source."""
        self.annotations.append(annotation)
        at = len(self.annotations) - 1
        emit("response.output_text.annotation.added", **self._place, annotation_index=at, annotation=annotation)

    def end(self, emit: Emit, status: str) -> Item:
        """See `OpenItem`."""
        text = self.text
        extra = {"logprobs": self.logprobs} if self._extra else {}
        noted = {"annotations": self.annotations} if self._extra else {}
        part = {"type": self._kind, "text": text, **self._extra, **noted, **extra}
        item = {**self._item, "status": status, "content": [part]}
        emit(f"response.{self._kind}.done", **self._place, text=text, **extra)
        emit("response.content_part.done", **self._place, part=part)
        emit("response.output_item.done", output_index=self._place["output_index"], item=item)
        return item


def message_item(place: int) -> PartedItem:
    """A message of the assistant."""
    item = {"type": "message", "role": "assistant"}
    return PartedItem(place, "msg", item, "output_text", {"annotations": [], "logprobs": []})


def thinking_item(place: int) -> PartedItem:
    """Thinking."""
    return PartedItem(place, "rs", {"type": "reasoning", "summary": []}, "reasoning_text", {})


class CallItem:
    """A function call, which the client runs."""

    def __init__(self, place: int, index: int, call_id: str, name: str) -> None:
        self.key = ("function_call", index)
        self.place = place
        self._item = {"id": item_id("fc"), "type": "function_call", "call_id": call_id, "name": name}
        self._place = {"output_index": place, "item_id": self._item["id"]}
        self._arguments: list[str] = []

    def begin(self, emit: Emit) -> None:
        """See `OpenItem`."""
        item = {**self._item, "status": "in_progress", "arguments": ""}
        emit("response.output_item.added", output_index=self._place["output_index"], item=item)

    def delta(self, emit: Emit, arguments: str) -> None:
        """More of its arguments."""
        if arguments:
            self._arguments.append(arguments)
            emit("response.function_call_arguments.delta", **self._place, delta=arguments)

    def end(self, emit: Emit, status: str) -> Item:
        """See `OpenItem`."""
        arguments = "".join(self._arguments)
        item = {**self._item, "status": status, "arguments": arguments}
        emit("response.function_call_arguments.done", **self._place, arguments=arguments)
        emit("response.output_item.done", output_index=self._place["output_index"], item=item)
        return item


class ItemWriter:
    """What writers of responses share: items in the order in which they began, and numbered events.

    Args:
        model: the name the response carries.
    """

    def __init__(self, request: ResponsesRequest, model: str) -> None:
        self.id = item_id("resp")
        self.ended = False
        self._request = request
        self._begun = {"id": self.id, "created_at": int(time.time()), "model": model, **request.echo}
        self._events: list[dict[str, Any]] = []
        self._sequence = 0
        self._items: list[Item | None] = []  # None while it is open
        self._open: OpenItem | None = None
        self.response = response_object(self._begun, "in_progress")

    def begin(self) -> list[dict[str, Any]]:
        """The events before the first token."""
        self._emit("response.created", response=self.response)
        self._emit("response.in_progress", response=self.response)
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

    def _turn_to(self, key: tuple[str, int], make: Callable[[int], Any]) -> Any:
        """The open item if it has this key; otherwise close it and begin a new one.

        Args:
            make: place among the items → the item.
        """
        if self._open is None or self._open.key != key:
            self._close("completed")
            self._open = make(len(self._items))
            self._items.append(None)
            self._open.begin(self._emit)
        return self._open

    def _close(self, status: str) -> None:
        if self._open is not None:
            self._items[self._open.place] = self._open.end(self._emit, status)
            self._open = None

    def _end(self, status: str, **fields: Any) -> None:
        self.ended = True
        done = [item for item in self._items if item is not None]
        self.response = response_object(self._begun, status, done, **fields)

    def _answered(self) -> bool:
        """There is an item other than thinking."""
        is_open = self._open is not None and self._open.key[0] != "reasoning_text"
        return is_open or any(item is not None and item["type"] != "reasoning" for item in self._items)

    def _emit(self, kind: str, **fields: Any) -> None:
        self._events.append({"type": kind, "sequence_number": self._sequence, **fields})
        self._sequence += 1

    def _take(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events

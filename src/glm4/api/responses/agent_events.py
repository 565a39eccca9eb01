"""`AgentResponseWriter`: a turn of the assistant as a response: messages, thinking, calls that the server ran."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from glm4.agent.events import (
    AgentEvent,
    AgentEventVisitor,
    CallChanged,
    CitationAdded,
    ErrorRaised,
    FileAdded,
    OutputAdded,
    PartBegan,
    Progress,
    TextAdded,
    TurnEnded,
    UsageAdded,
)
from glm4.agent.files import StoredFile
from glm4.api.responses.builtin_items import BuiltinItem, Kind, listed_tools
from glm4.api.responses.item_writing import CallItem, ItemWriter, PartedItem, message_item, thinking_item
from glm4.api.responses.request import ResponsesRequest

if TYPE_CHECKING:
    from glm4.tokenizer import Tokenizer

HANDED_OVER = "handed_over"
"""The reason of a turn that ended because the model called a function of the client."""
_ANSWERED = ("rounds", "repeated_calls")
"""Limits behind which the model is asked once more, without tools."""


class AgentResponseWriter(ItemWriter, AgentEventVisitor[None]):
    """Writes one response.

    Args:
        kinds: function → what it is in this API. Calls of other names are not shown: the model is told that there is
            no such function, and goes on.
        listed: MCP servers and their functions, listed before everything else.
        file_ids: sha256 of a file → the id that the request named it by, for citations.
    """

    def __init__(
        self,
        request: ResponsesRequest,
        model: str,
        tokenizer: Tokenizer,
        kinds: Mapping[str, Kind],
        listed: Mapping[str, Sequence[Mapping[str, Any]]],
        file_ids: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(request, model)
        self._tokenizer = tokenizer
        self._kinds = kinds
        self._listed = listed
        self._file_ids = file_ids
        self._texts: dict[int, str] = {}
        self._parts: dict[int, str] = {}
        self._calls: dict[str, BuiltinItem] = {}
        self._usage = {"prompt": 0, "cached": 0, "completion": 0}
        self._thought: list[str] = []
        self._made: list[tuple[str, StoredFile]] = []  # by a code interpreter, and not told yet
        self._failure: ErrorRaised | None = None

    def begin(self) -> list[dict[str, Any]]:
        """See `ItemWriter.begin`."""
        events = super().begin()
        for label, functions in self._listed.items():
            item = listed_tools(label, functions)
            at = {"output_index": len(self._items), "item_id": item["id"]}
            self._emit("response.output_item.added", output_index=len(self._items), item={**item, "tools": []})
            self._emit("response.mcp_list_tools.in_progress", **at)
            self._emit("response.mcp_list_tools.completed", **at)
            self._emit("response.output_item.done", output_index=len(self._items), item=item)
            self._items.append(item)
        return events + self._take()

    def push(self, event: AgentEvent) -> list[dict[str, Any]]:
        """The events for one event; after `TurnEnded`, `response` is the complete response."""
        event.accept(self)
        return self._take()

    def cancel(self) -> None:
        """See `ItemWriter.cancel`."""
        self._end_calls("incomplete")
        super().cancel()

    def progress(self, event: Progress) -> None:
        """Not told in this API."""

    def part(self, event: PartBegan) -> None:
        """The next item begins with its first text."""
        self._parts[event.part] = event.kind

    def text(self, event: TextAdded) -> None:
        """More of a message, or of thinking."""
        self._parted(event.part).delta(self._emit, event.add, [])
        if self._parts[event.part] == "reasoning":
            self._thought.append(event.add)

    def _parted(self, part: int) -> PartedItem:
        thinks = self._parts[part] == "reasoning"
        kind = "reasoning_text" if thinks else "output_text"
        if self._open is not None and self._open.key[0] == kind and self._texts.get(part) != kind:
            self._close("completed")  # of an earlier part
        self._texts[part] = kind
        item: PartedItem = self._turn_to((kind, 0), thinking_item if thinks else message_item)
        return item

    def call(self, event: CallChanged) -> None:
        """A call is written, runs or has ended."""
        kind = self._kinds.get(event.tool)
        if kind is None:
            return
        if kind.kind == "function":
            if event.state == "writing":
                make = lambda place: CallItem(place, event.part, event.call, event.tool)  # noqa: E731
                self._turn_to(("function_call", event.part), make).delta(self._emit, event.add)
            return
        item = self._calls.get(event.call)
        if item is None:
            self._close("completed")
            item = self._calls[event.call] = BuiltinItem(len(self._items), kind, event.tool)
            self._items.append(None)
            item.begin(self._emit)
        if event.state == "writing":
            item.delta(self._emit, event.add)
        elif event.state == "running":
            item.run(self._emit)
        elif event.state in ("done", "error", "denied"):
            self._items[item.place] = item.end(self._emit, "completed", failed=event.state != "done")
            del self._calls[event.call]

    def output(self, event: OutputAdded) -> None:
        """What a code interpreter prints, or an MCP server says."""
        if event.call in self._calls and event.channel != "log":
            self._calls[event.call].output.append(event.add)

    def file(self, event: FileAdded) -> None:
        """A file of a call."""
        item = self._calls.get(event.call or "")
        if item is not None:
            item.files.append(event.file)
            if item.kind.container and not event.file.media_type.startswith("image/"):
                self._made.append((item.kind.container, event.file))

    def citation(self, event: CitationAdded) -> None:
        """A source of the message."""
        source, item = event.citation.source, self._parted(event.part)
        if source.url is not None:
            place = {"start_index": event.citation.start, "end_index": event.citation.end}
            item.annotate(self._emit, {"type": "url_citation", "url": source.url, "title": source.title, **place})
        else:
            name = self._file_ids.get(source.file or "", source.file or "")
            named = {"file_id": name, "filename": source.title}
            item.annotate(self._emit, {"type": "file_citation", **named, "index": event.citation.start})

    def usage(self, event: UsageAdded) -> None:
        """The sum over the rounds is the response's."""
        for name in self._usage:
            self._usage[name] += getattr(event, name)

    def error(self, event: ErrorRaised) -> None:
        """What the turn ends with, if it does."""
        if event.where != "tool":
            self._failure = event

    def end(self, event: TurnEnded) -> None:
        """End the items."""
        handed = event.reason == HANDED_OVER
        cut = event.reason in ("length", "tokens") and not handed
        ended = event.status == "completed" or event.reason in _ANSWERED
        failed = not (ended or cut or handed)
        self._end_calls("incomplete")
        if not failed and not handed:
            self._tell_files()
        if failed:
            self.fail(*self._why(event), param=None)
            return
        self._close("incomplete" if cut else "completed")
        self._end(
            "incomplete" if cut else "completed",
            usage=self._used(),
            reason="max_output_tokens" if cut else None,
            completed_at=None if cut else int(time.time()),
        )

    def _answered(self) -> bool:
        kinds = {item["type"] for item in self._items if item is not None}
        return bool(kinds & {"message", "function_call"}) or (self._open is not None and not self._thinks())

    def _thinks(self) -> bool:
        return self._open is not None and self._open.key[0] == "reasoning_text"

    def _tell_files(self) -> None:
        """Name the files that code has made in the message that ends the response."""
        if self._made or not self._answered():
            item: PartedItem = self._turn_to(("output_text", 0), message_item)
            for container, file in self._made:
                at = item.text.find(file.name)
                place = (len(item.text),) * 2 if at < 0 else (at, at + len(file.name))
                named = {"container_id": container, "file_id": file.sha256, "filename": file.name}
                span = {"start_index": place[0], "end_index": place[1]}
                item.annotate(self._emit, {"type": "container_file_citation", **named, **span})

    def fail(self, message: str, code: str | None = None, param: str | None = None) -> list[dict[str, Any]]:
        """See `ItemWriter.fail`."""
        self._end_calls("incomplete")
        return super().fail(message, code=code, param=param)

    def _why(self, event: TurnEnded) -> tuple[str, str]:
        if self._failure is not None:
            return self._failure.message, self._failure.code
        return f"the turn was ended by a limit: {event.reason}", event.reason

    def _end_calls(self, status: str) -> None:
        for item in self._calls.values():
            self._items[item.place] = item.end(self._emit, status)
        self._calls.clear()

    def _used(self) -> dict[str, Any]:
        prompt, completion = self._usage["prompt"], self._usage["completion"]
        thinking = min(completion, len(self._tokenizer.encode("".join(self._thought)))) if self._thought else 0
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": self._usage["cached"], "cache_write_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": thinking},
            "total_tokens": prompt + completion,
        }

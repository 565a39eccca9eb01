"""`Round`: one answer of the model within a turn, as events and as a message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from glm4.agent.answer_text import CitationFinder, Placeholders
from glm4.agent.events import AgentEvent, CallChanged, CitationAdded, PartBegan, PartKind, Progress, TextAdded
from glm4.agent.tool import Sources
from glm4.chat.answer import Answer
from glm4.chat.events import EventVisitor, ReasoningDelta, TextDelta, ToolCallDelta
from glm4.chat.messages import Message
from glm4.outputs import StreamChunk


class Round(EventVisitor[None]):
    """One answer, as far as it has arrived.

    Args:
        parts: numbers the parts of the turn.
        most_calls: the answer ends where a further call begins.

    Attributes:
        events: what happened, until somebody takes it.
        call_parts: id of each call → its part.
        begun: the model has written something.
        full: a call too many began; what follows is not wanted.
    """

    def __init__(self, parts: count[int], sources: Sources, placeholders: Placeholders, most_calls: int) -> None:
        self.events: list[AgentEvent] = [Progress("prefill")]
        self.call_parts: dict[str, int] = {}
        self.full = False
        self._parts = parts
        self._sources = sources
        self._placeholders = placeholders
        self._most_calls = most_calls
        self._answer = Answer()
        self._part: tuple[PartKind, int] | None = None  # the one that is being written
        self._space = ""  # at the head of a text, which may have nothing else
        self._calls: list[tuple[int, str, str]] = []  # part, id, name
        self.begun = False

    def add(self, chunk: StreamChunk) -> None:
        """Take what one step produced."""
        if chunk.token_ids and not self.begun:
            self.begun = True
            self.events.append(Progress("generate"))
        for event in chunk.events:
            if not self.full:
                event.accept(self)
        if chunk.finish_reason is not None:
            self.finish()

    def finish(self) -> None:
        """No more of the answer is wanted: show what was held back."""
        self._close_text()

    def message(self) -> Message:
        """The assistant's message so far."""
        message = self._answer.message()
        text = self._placeholders.whole(message.text)
        return replace(message, content=text if text.strip() else "")

    def text(self, event: TextDelta) -> None:
        """See `EventVisitor`."""
        self._answer.text(event)
        self._show_text(self._placeholders.push(event.text))

    def reasoning(self, event: ReasoningDelta) -> None:
        """See `EventVisitor`."""
        self._answer.reasoning(event)
        self.events.append(TextAdded(self._in_part("reasoning"), event.text))

    def tool_call(self, event: ToolCallDelta) -> None:
        """See `EventVisitor`."""
        if event.index >= self._most_calls:
            self.full = True
            return
        self._answer.tool_call(event)
        if event.index == len(self._calls):
            part = self._begin("tool")
            self._calls.append((part, event.id or "", event.name or ""))
            self.call_parts[event.id or ""] = part
        part, call, name = self._calls[event.index]
        self.events.append(CallChanged(part, call, name, "writing", add=event.arguments))

    def _show_text(self, text: str) -> None:
        if self._part is None or self._part[0] != "text":
            text = self._space + text
            self._space = ""
            if not text.strip():
                self._space = text
                return
        if not text:
            return
        part = self._in_part("text")
        self.events.append(TextAdded(part, text))
        self.events += [CitationAdded(part, citation) for citation in self._citations.push(text)]

    def _in_part(self, kind: PartKind) -> int:
        """The part of this kind that is being written; a new one if it is another."""
        if self._part is None or self._part[0] != kind:
            return self._begin(kind)
        return self._part[1]

    def _begin(self, kind: PartKind) -> int:
        if kind != "text":
            self._close_text()
        part = next(self._parts)
        self._part = (kind, part)
        self._citations = CitationFinder(self._sources)
        self.events.append(PartBegan(part, kind))
        return part

    def _close_text(self) -> None:
        self._show_text(self._placeholders.finish())
        self._space = ""

    def take(self) -> Sequence[AgentEvent]:
        """The events since the last time."""
        events, self.events = self.events, []
        return events

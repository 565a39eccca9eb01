"""`Answer`: what the events of one answer add up to. The only fold over events; all callers use it."""

from __future__ import annotations

from collections.abc import Iterable

from glm4.chat.events import Event, EventVisitor, ReasoningDelta, TextDelta, ToolCallDelta
from glm4.chat.messages import Message, ToolCall


class Answer(EventVisitor[None]):
    """An answer, as far as it has arrived."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, tuple[ToolCallDelta, list[str]]] = {}
        self.add(events)

    def add(self, events: Iterable[Event]) -> None:
        """Add more events."""
        for event in events:
            event.accept(self)

    def text(self, event: TextDelta) -> None:
        """See `EventVisitor`."""
        self._text.append(event.text)

    def reasoning(self, event: ReasoningDelta) -> None:
        """See `EventVisitor`."""
        self._reasoning.append(event.text)

    def tool_call(self, event: ToolCallDelta) -> None:
        """See `EventVisitor`."""
        self._calls.setdefault(event.index, (event, []))[1].append(event.arguments)

    def message(self) -> Message:
        """The assistant turn so far."""
        calls = (
            ToolCall(first.id or "", first.name or "", "".join(arguments))
            for _, (first, arguments) in sorted(self._calls.items())
        )
        return Message(
            "assistant", "".join(self._text), reasoning="".join(self._reasoning) or None, tool_calls=tuple(calls)
        )

"""The events that make up a model's answer as it streams.

A new kind of event is one class here and one method per visitor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from glm4.logprobs import TextToken

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)


class EventVisitor(ABC, Generic[_T_co]):
    """Has one method per kind of event; `event.accept(visitor)` calls the one for its kind."""

    @abstractmethod
    def text(self, event: TextDelta) -> _T_co:
        """More of the visible answer."""

    @abstractmethod
    def reasoning(self, event: ReasoningDelta) -> _T_co:
        """More of the hidden thinking."""

    @abstractmethod
    def tool_call(self, event: ToolCallDelta) -> _T_co:
        """More of a tool call."""


@dataclass(frozen=True)
class TextDelta:
    """More of the visible answer.

    Attributes:
        source: from a parser: where in its input the text stood, a place for each character.
        tokens: from `SampleProcessor`, if log-probabilities are requested: the tokens that wrote the text.
    """

    text: str
    source: tuple[range, ...] = field(default=(), compare=False, repr=False)
    tokens: tuple[TextToken, ...] = field(default=(), compare=False, repr=False)

    def accept(self, visitor: EventVisitor[_T]) -> _T:
        """Call the visitor's method for this kind."""
        return visitor.text(self)

    def without(self, count: int) -> TextDelta:
        """The text after its first characters."""
        places = [at for part in self.source for at in part]
        return TextDelta(self.text[count:], tuple(range(at, at + 1) for at in places[count:]))

    def joined(self, later: Event) -> Event | None:
        """This event and the next one merged; None if they cannot be merged."""
        if not isinstance(later, TextDelta):
            return None
        return TextDelta(self.text + later.text, self.source + later.source, self.tokens + later.tokens)


@dataclass(frozen=True)
class ReasoningDelta:
    """More of the hidden thinking."""

    text: str

    def accept(self, visitor: EventVisitor[_T]) -> _T:
        """See `TextDelta.accept`."""
        return visitor.reasoning(self)

    def joined(self, later: Event) -> Event | None:
        """See `TextDelta.joined`."""
        return ReasoningDelta(self.text + later.text) if isinstance(later, ReasoningDelta) else None


@dataclass(frozen=True)
class ToolCallDelta:
    """More of a tool call: the first delta of an index carries id and name, later ones only argument text."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""

    def accept(self, visitor: EventVisitor[_T]) -> _T:
        """See `TextDelta.accept`."""
        return visitor.tool_call(self)

    def joined(self, later: Event) -> Event | None:
        """See `TextDelta.joined`."""
        same = isinstance(later, ToolCallDelta) and later.index == self.index
        return replace(self, arguments=self.arguments + later.arguments) if same else None  # type: ignore[union-attr]


Event = TextDelta | ReasoningDelta | ToolCallDelta


def merged(events: Iterable[Event]) -> list[Event]:
    """Merge adjacent events of the same kind, so one push yields few events."""
    result: list[Event] = []
    for event in events:
        joined = result[-1].joined(event) if result else None
        if joined is None:
            result.append(event)
        else:
            result[-1] = joined
    return result

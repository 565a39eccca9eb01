"""From the text of an answer to events, as it arrives.

Parsers hold text back only while its meaning is undecided, and decide by the text alone: how it was split into
pieces makes no difference to the result.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from glm4.chat.events import (
    Event,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
)


class StreamParser(Protocol):
    """Parses one answer.

    Visible text says where in the input it stood (`TextDelta.source`). A line break that the input does not have there
    takes the place of the character before it.
    """

    def push(self, text: str) -> list[Event]:
        """Take more text (never a partial character); returns the events that are now certain."""

    def finish(self, stop_token_id: int | None = None) -> list[Event]:
        """End of the answer: returns what was held back. `stop_token_id` is the token that ended it, if one did."""


def new_call_id() -> str:
    """A new id for a tool call, in OpenAI's style."""
    return f"call_{secrets.token_hex(12)}"


def overlap(text: str, marker: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `marker`."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0


def moved(events: list[Event], offset: int) -> list[Event]:
    """Events of a parser whose input began at `offset` of another text, with their places in that."""

    def shifted(source: tuple[range, ...]) -> tuple[range, ...]:
        return tuple(range(part.start + offset, part.stop + offset) for part in source)

    return [replace(e, source=shifted(e.source)) if isinstance(e, TextDelta) and offset else e for e in events]


class CallWriter:
    """Numbers the tool calls of one answer and creates their events.

    Args:
        call_id: creates the id of each call.
    """

    def __init__(self, call_id: Callable[[], str]) -> None:
        self._call_id = call_id
        self._index = -1

    def begin(self, name: str, arguments: str = "") -> ToolCallDelta:
        """The first event of a new call."""
        self._index += 1
        return ToolCallDelta(self._index, self._call_id(), name, arguments)

    def more(self, arguments: str) -> ToolCallDelta:
        """More argument text of the latest call."""
        return ToolCallDelta(self._index, arguments=arguments)


class ReasoningParser:
    """An answer that begins with thinking: `thinking</think>answer`; the opening tag is part of the prompt.

    Whitespace around both parts is dropped, as is an opening tag that the model writes anyway.

    Args:
        answer: parses what follows the closing tag.
    """

    def __init__(self, answer: StreamParser, opening: str = "<think>", closing: str = "</think>") -> None:
        self._answer = answer
        self._opening = opening
        self._closing = closing
        self._buffer = ""
        self._pushed = 0  # characters
        self._answer_start = 0
        self._step = self._opening_step

    def push(self, text: str) -> list[Event]:
        """See `StreamParser`."""
        self._buffer += text
        self._pushed += len(text)
        return self._run(final=False)

    def finish(self, stop_token_id: int | None = None) -> list[Event]:
        """See `StreamParser`."""
        return self._run(final=True) + moved(self._answer.finish(stop_token_id), self._answer_start)

    def _run(self, *, final: bool) -> list[Event]:
        events: list[Event] = []
        step = None
        while step != self._step:
            step = self._step
            events += step(final)
        return events

    def _opening_step(self, final: bool) -> list[Event]:
        text = self._buffer.lstrip()
        if text.startswith(self._opening):
            self._buffer = text[len(self._opening) :]
            self._step = self._gap_step
        elif final or not self._opening.startswith(text):
            self._step = self._gap_step
        return []

    def _gap_step(self, final: bool) -> list[Event]:
        self._buffer = self._buffer.lstrip()
        if self._buffer:
            self._step = self._thinking_step
        return []

    def _thinking_step(self, final: bool) -> list[Event]:
        at = self._buffer.find(self._closing)
        if at >= 0:
            shown, self._buffer = self._buffer[:at].rstrip(), self._buffer[at + len(self._closing) :].lstrip()
            self._step = self._answer_step
        else:
            keep = 0 if final else overlap(self._buffer, self._closing)
            shown = self._buffer[: len(self._buffer) - keep].rstrip()
            self._buffer = "" if final else self._buffer[len(shown) :]
        return [ReasoningDelta(shown)] if shown else []

    def _answer_step(self, final: bool) -> list[Event]:
        text, self._buffer = self._buffer, ""
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
            self._answer_start = self._pushed - len(text)
        return moved(self._answer.push(text), self._answer_start) if text else []

    _begun = False


class PlainParser:
    """Everything is visible text; for raw completion."""

    def __init__(self) -> None:
        self._pushed = 0

    def push(self, text: str) -> list[Event]:
        """Pass text on."""
        start, self._pushed = self._pushed, self._pushed + len(text)
        return [TextDelta(text, (range(start, self._pushed),))] if text else []

    def finish(self, stop_token_id: int | None = None) -> list[Event]:
        """Nothing is held back, so there is nothing to return."""
        return []

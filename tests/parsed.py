"""Whole answers out of parsers, for tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from glm4.chat.answer import Answer
from glm4.chat.events import Event
from glm4.chat.messages import ToolCall
from glm4.chat.parsers.base import StreamParser


class ParsedAnswer(NamedTuple):
    """What an answer says, thinks and calls."""

    text: str
    reasoning: str | None
    tool_calls: tuple[ToolCall, ...]


def collect(events: Iterable[Event]) -> ParsedAnswer:
    """The answer that events add up to."""
    message = Answer(events).message()
    return ParsedAnswer(message.text, message.reasoning, message.tool_calls)


def parse_complete(parser: StreamParser, text: str, stop_token_id: int | None = None) -> ParsedAnswer:
    """Read a whole answer at once, with the same parser that reads streams."""
    return collect([*parser.push(text), *parser.finish(stop_token_id)])

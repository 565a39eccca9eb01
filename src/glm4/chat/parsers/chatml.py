"""Parses ChatML answers: text, tagged calls, and calls written as bare or fenced JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from glm4.chat.events import Event, TextDelta, merged
from glm4.chat.parsers.base import CallWriter, new_call_id, overlap

OPENING, CLOSING = "<tool_call>", "</tool_call>"
_FENCE = "```"
_FENCE_WORDS = ("json", "tool_call")
_MAX_SPACE = 256  # whitespace held back before what may be a call; more than a line's indentation
_LINE_OPENER = re.compile(r"(?:(?<=\n)|\A)[ \t]{0,64}(?:\{|```)")
_UNFINISHED_FENCE = re.compile(r"(?:(?<=\n)|\A)[ \t]{0,64}`{1,2}\Z")
_SPACE = re.compile(r"[ \t\r\n]*")
_WORD = re.compile(r"[A-Za-z_]*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_MAX_NAME = 256
_MAX_HEAD = 4096  # characters from the opener to the arguments


class _More(Exception):  # noqa: N818 (control flow, not an error)
    """The text may still become a call."""


class _No(Exception):  # noqa: N818
    """The text is not a call."""


class ChatMLParser:
    """See `StreamParser`. Without tools, everything is text.

    Whitespace between text and a call, and between calls, is dropped (at most 256 characters before a call).
    Argument text is passed on as the model wrote it, unless the call has an unusual form (arguments before the name,
    arguments as a JSON string), which is read as a whole.

    Args:
        functions: names of the offered tools. Tagged calls may name others: the model clearly intended a call.
    """

    def __init__(self, functions: frozenset[str], call_id: Callable[[], str] = new_call_id) -> None:
        self._functions = functions
        self._calls = CallWriter(call_id)
        self._buffer = ""
        self._pushed = 0  # characters
        self._line_start = True
        self._after_call = False
        self._text_before = False
        self._after_text_and_call = False  # following text starts on a new line
        self._held = ""  # whitespace before what may be a call
        self._opener = ""  # of the call being read: tag, fence or brace
        self._braces = 0  # closing braces still expected after the arguments
        self._json = _JsonEnd()
        self._state: Callable[[list[Event], bool], bool] = self._text

    def push(self, text: str) -> list[Event]:
        """See `StreamParser`."""
        self._pushed += len(text)
        if not self._functions:
            return [TextDelta(text, (range(self._pushed - len(text), self._pushed),))] if text else []
        self._buffer += text
        return self._run(final=False)

    def finish(self, stop_token_id: int | None = None) -> list[Event]:
        """See `StreamParser`."""
        return self._run(final=True)

    def _run(self, *, final: bool) -> list[Event]:
        events: list[Event] = []
        while self._state(events, final):
            pass
        return merged(events)

    # States. Each consumes what it can from the buffer and returns whether to continue.

    def _text(self, events: list[Event], final: bool) -> bool:
        if self._after_call:
            self._buffer = self._buffer.lstrip()
            self._after_call = not self._buffer
        at = self._find_opener()
        if at is not None:
            end = _before_space(self._buffer, at)
            self._show(events, self._buffer[:end])
            self._held = self._buffer[end:at]
            self._buffer = self._buffer[at:]
            self._state = self._head
            return True
        end = len(self._buffer)
        if not final:
            end -= overlap(self._buffer, OPENING)
            fence = _UNFINISHED_FENCE.search(self._buffer)
            if fence is not None and (fence.start() > 0 or self._line_start):
                end = min(end, fence.start())
            end = _before_space(self._buffer, end)
        self._show(events, self._buffer[:end])
        self._buffer = self._buffer[end:]
        return False

    def _find_opener(self) -> int | None:
        """Index where the first possible call begins."""
        tag = self._buffer.find(OPENING)
        for match in _LINE_OPENER.finditer(self._buffer):
            if match.start() > 0 or self._line_start:
                at = match.end() - (len(_FENCE) if match.group().endswith(_FENCE) else 1)
                return at if tag < 0 else min(at, tag)
        return tag if tag >= 0 else None

    def _head(self, events: list[Event], final: bool) -> bool:
        """From the opener to the name and the start of the arguments."""
        text = self._buffer
        self._opener = next(o for o in (OPENING, _FENCE, "{") if text.startswith(o))
        try:
            name, arguments, rest = self._read_head(text)
        except _More:
            if not final:
                return False
            return self._not_a_call(events)
        except _No:
            return self._not_a_call(events)
        events.append(self._calls.begin(name, arguments or ""))
        self._leave_head(self._arguments if arguments is None else self._tail, rest)
        return True

    def _not_a_call(self, events: list[Event]) -> bool:
        self._show(events, self._held + self._opener)
        self._leave_head(self._text, self._buffer[len(self._opener) :])
        return True

    def _leave_head(self, state: Callable[[list[Event], bool], bool], rest: str) -> None:
        self._state, self._buffer = state, rest
        self._held, self._json = "", _JsonEnd()

    def _arguments(self, events: list[Event], final: bool) -> bool:
        end = self._json.next(self._buffer)
        shown = self._buffer if end is None else self._buffer[:end]
        if shown:
            events.append(self._calls.more(shown))
        self._buffer = self._buffer[len(shown) :]
        if end is not None:
            self._state = self._tail
        return end is not None

    def _tail(self, events: list[Event], final: bool) -> bool:
        """After the arguments: closing braces and what closes the opener, any of which may be missing."""
        closing = {OPENING: CLOSING, _FENCE: _FENCE}.get(self._opener, "")
        while True:
            self._buffer = self._buffer.lstrip()
            expected = "}" if self._braces else closing
            if expected and not final and expected.startswith(self._buffer) and self._buffer != expected:
                return False
            if self._braces and self._buffer.startswith("}"):
                self._buffer = self._buffer[1:]
                self._braces -= 1
            elif self._braces:
                self._braces = 0
            else:
                break
        self._buffer = self._buffer.removeprefix(closing)
        self._json = _JsonEnd()
        self._line_start = self._after_call = True
        self._after_text_and_call = self._text_before
        self._state = self._text
        return True

    def _show(self, events: list[Event], text: str) -> None:
        """Show `_held` and the beginning of the buffer."""
        if text:
            stop = self._pushed - len(self._buffer) - len(self._held) + len(text)
            text = "\n" + text if self._after_text_and_call else text
            events.append(TextDelta(text, (range(stop - len(text), stop),)))
            self._after_text_and_call = False
            self._text_before = True
            self._line_start = text.endswith("\n")

    # The start of a call

    def _read_head(self, text: str) -> tuple[str, str | None, str]:
        """Name, arguments if they were read as a whole, and the text after what was read.

        Raises:
            _More, _No: undecided, or not a call.
        """
        cursor = _Cursor(text)
        if self._opener != "{":
            cursor.literal(self._opener)
        if self._opener == _FENCE:
            cursor.word(_FENCE_WORDS)
        start = cursor.literal("{")
        self._braces = 1
        if cursor.peek() == "{":  # doubled braces
            start = cursor.literal("{")
            self._braces = 2
        if cursor.one_of(('"name"', '"arguments"', '"parameters"')) != '"name"':
            return self._read_whole(text, start)
        cursor.literal(":")
        name = cursor.string(None if self._opener == OPENING else self._functions)
        if cursor.peek() == "}":
            return name, "{}", text[cursor.at :]
        cursor.literal(",")
        cursor.one_of(('"arguments"', '"parameters"'))
        cursor.literal(":")
        if cursor.peek() != "{":
            return self._read_whole(text, start)
        return name, None, text[cursor.at :]

    def _read_whole(self, text: str, start: int) -> tuple[str, str, str]:
        # The scanner keeps its position between pushes, so a long object is not rescanned from the start every time.
        end = self._json.find(text, start)
        if end is None:
            raise _More
        try:
            value = json.loads(text[start:end])
        except (ValueError, RecursionError):
            raise _No from None
        name = value.get("name")
        if not isinstance(name, str) or (self._opener != OPENING and name not in self._functions):
            raise _No
        arguments = value.get("arguments", value.get("parameters", {}))
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        self._braces -= 1
        return name, arguments, text[end:]


def _before_space(text: str, end: int) -> int:
    """Index where the whitespace before `end` begins, at most `_MAX_SPACE` characters back."""
    start = max(0, end - _MAX_SPACE)
    return start + len(text[start:end].rstrip())


class _Cursor:
    """Reads JSON-like text that may end anywhere. Leading whitespace is skipped everywhere."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.at = 0

    def peek(self) -> str:
        """The next character."""
        self.at = _SPACE.match(self._text, self.at).end()  # type: ignore[union-attr]
        if self.at > _MAX_HEAD:
            raise _No
        if self.at == len(self._text):
            raise _More
        return self._text[self.at]

    def literal(self, expected: str) -> int:
        """Read exactly this; returns the index where it began."""
        self.one_of((expected,))
        return self.at - len(expected)

    def one_of(self, options: tuple[str, ...]) -> str:
        """Read one of several texts, none of which is a prefix of another."""
        self.peek()
        for option in options:
            if self._text.startswith(option, self.at):
                self.at += len(option)
                return option
        rest = self._text[self.at :]
        raise _More if any(option.startswith(rest) for option in options) else _No

    def word(self, options: tuple[str, ...]) -> None:
        """Read one of these words right here, if there is one."""
        found = _WORD.match(self._text, self.at).group()  # type: ignore[union-attr]
        if self.at + len(found) == len(self._text) and any(option.startswith(found) for option in options):
            raise _More
        if found and found not in options:
            raise _No
        self.at += len(found)

    def string(self, allowed: frozenset[str] | None) -> str:
        """Read a JSON string; `allowed` lists its possible values."""
        self.peek()
        match = _STRING.match(self._text, self.at)
        if match is None:
            rest = self._text[self.at :]
            if not rest.startswith('"') or len(rest) > _MAX_NAME:
                raise _No
            written = (json.dumps(name, ensure_ascii=False) for name in allowed or ())
            if allowed is not None and "\\" not in rest and not any(name.startswith(rest) for name in written):
                raise _No
            raise _More
        try:
            value = json.loads(match.group())
        except ValueError:
            raise _No from None
        if allowed is not None and value not in allowed:
            raise _No
        self.at = match.end()
        return str(value)


class _JsonEnd:
    """Finds where a JSON object or array ends in growing text."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._seen = 0  # characters of the object already scanned

    def find(self, text: str, start: int = 0) -> int | None:
        """Index after the closing bracket of the object that begins at `start`, or None if it is unfinished."""
        for at in range(start + self._seen, len(text)):
            self._seen += 1
            if self._ends_with(text[at]):
                return at + 1
        return None

    def next(self, text: str) -> int | None:
        """The same for the next piece of the object."""
        self._seen = 0
        return self.find(text)

    def _ends_with(self, character: str) -> bool:
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            return self._depth <= 0
        return False

"""GLM-4 (June 2024): `<|role|>{metadata}\\n{content}`, no end-of-turn token; the next role tag ends a turn.

The model answers `\\n` and text, or `{tool}\\n{arguments}`; a call ends with `<|observation|>`. Text and a call in one
answer are separated by `<|assistant|>`. Source: the checkpoint's chat template, THUDM/GLM-4.

GLM-4V: a picture stands before the text of its message, wherever the message has it. Its code for prompts writes tools
without a heading (our template `glm4v`); a checkpoint's own template has precedence. Source: glm-4v-9b's tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from glm4.chat.call_grammar import (
    ANY,
    LINES,
    MAX_CALLS,
    CallableTool,
    Opening,
    free_text_rules,
    json_rule,
    literal,
    marker,
)
from glm4.chat.dialects.base import PICTURES, TURN, Rendering, TemplateDialect, Tools, function_names
from glm4.chat.events import Event, TextDelta, merged
from glm4.chat.messages import Message
from glm4.chat.parsers.base import CallWriter, StreamParser, new_call_id
from glm4.chat.parts import ImagePart
from glm4.tokenizer import Tokenizer

USER, ASSISTANT, OBSERVATION, END_OF_TEXT = "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"

# What the detokenizer shows for <|assistant|>: ASCII "record separator", which no ordinary answer contains, so an
# answer that spells the tag in plain characters is not split in two.
SEGMENT = "\x1e"

_SPACE = r"\s\x1c-\x1f"  # in a class of an expression: whitespace as `str.strip` knows it
_BLANK = rf"/[{_SPACE}&&[^\n\x1e]]*/"

RAW_TOOLS = ("python", "simple_browser", "cogview")  # their arguments are code or text, not JSON


class GLM4Dialect(TemplateDialect):
    """glm-4-9b-chat and everything trained on its prompt format."""

    name = "glm4"
    template_name = "glm4"
    stop_names = (END_OF_TEXT, USER, OBSERVATION)
    markers: Mapping[str, str] = MappingProxyType({ASSISTANT: SEGMENT})
    builtin_tools: tuple[str, ...] = RAW_TOOLS
    answer_opening = "\n"
    call_ending = OBSERVATION
    media: frozenset[str] = frozenset({"image"})
    picture_marks = ("<|begin_of_image|>", END_OF_TEXT, "<|end_of_image|>")
    picture_template_name = "glm4v"
    name_ending = "\n"  # between a call's name and its arguments

    def prepare(self, messages: Sequence[Message], tools: Tools) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Tools are attached to the first system message (an empty one is added if there is none)."""
        prepared = glm_messages(messages)
        if tools:
            place = next((m for m in prepared if m["role"] == "system"), None)
            if place is None:
                place = {"role": "system", "content": ""}
                prepared.insert(0, place)
            place["tools"] = [*place.get("tools", ()), *map(dict, tools)]
        return prepared, []

    def segments(self, rendering: Rendering) -> list[tuple[str, int | None]]:
        """The model's: from after `<|assistant|>` to the role tag that follows; at the end, the one that would."""
        full = rendering.whole
        segments: list[tuple[str, int | None]] = []
        at = 0
        for index, start, end in rendering.assistant_turns():
            segments.append((full[at:start], None))
            closing = next((tag for tag in (USER, OBSERVATION, ASSISTANT) if full.startswith(tag, end)), "")
            at = end + len(closing)
            if end == len(full):
                closing = OBSERVATION if rendering.messages[index].get("metadata") else USER
            if not closing:
                at = end  # a system message follows, which the model should not write
            segments.append((full[start:end] + closing, rendering.turns[index]))
        if at < len(full):
            segments.append((full[at:], None))
        return segments

    def parser(
        self, tools: Tools = (), tokenizer: Tokenizer | None = None, *, call_id: Callable[[], str] = new_call_id
    ) -> StreamParser:
        """See `TemplateDialect.parser`."""
        raw = [str(tool["type"]) for tool in tools if tool.get("type") in self.builtin_tools]
        observation = None if tokenizer is None else tokenizer.added_tokens.get(OBSERVATION)
        return GLM4Parser(function_names(tools), raw, observation.id if observation else None, call_id)

    def call_rules(self, tools: Sequence[CallableTool], tokenizer: Tokenizer, *, parallel: bool) -> str:
        """`name\\n{json}`, several of them separated by `<|assistant|>`, and `<|observation|>` at the end."""
        more = f"({marker(ASSISTANT, tokenizer)} call){{0,{MAX_CALLS - 1}}}" if parallel else ""
        names = " | ".join(f"call_{index}" for index in range(len(tools)))
        rules = [f"calls: call {more} {marker(OBSERVATION, tokenizer)}", f"call: {names}"]
        for index, tool in enumerate(tools):
            arguments = "/(.|\\n)+/" if tool.schema is None else json_rule(tool.schema)
            rules.append(f"call_{index}: {literal(tool.name + self.name_ending)} arguments_{index}")
            rules.append(f"arguments_{index}: {arguments}")
        return "\n".join(rules)

    def free_rules(self, tools: Sequence[CallableTool], tokenizer: Tokenizer) -> str:
        """Segments of text or a call. A call is opened by a line that is a function's name, wherever the line is.

        What a built-in tool is asked stays free; its name opens a call only where a segment begins.
        """
        functions = [(tool, tool.schema) for tool in tools if tool.schema is not None]
        raw = " | ".join(literal(tool.name) for tool in tools if tool.schema is None)
        kinds = " | ".join(["called"] * bool(functions) + ["raw"] * bool(raw))
        rules = [
            f"answer: (segment {marker(ASSISTANT, tokenizer)})* (text | ended{' | raw' * bool(raw)})",
            f"segment: text | {kinds}",
            f"ended: ({kinds}) {marker(OBSERVATION, tokenizer)}",
        ]
        if raw:
            rules += ["raw: raw_name RAW", "raw_name[lazy]: RAW_NAME"]
            rules += [f'RAW_NAME: {_BLANK} ({raw}) {_BLANK} "\\n"', f"RAW: {ANY}"]
        if not functions:
            return "\n".join([*rules, f"text: {ANY}"])
        openings = []
        for index, (tool, schema) in enumerate(functions):
            opening = f'{LINES} {_BLANK} {literal(tool.name)} {_BLANK} "\\n"'
            openings.append((opening, f"SPACE arguments_{index}"))
            rules.append(f"arguments_{index}: {json_rule(schema)}")
        rules.append(f"SPACE: /[{_SPACE}&&[^\\x1e]]*/")
        return "\n".join([*rules, free_text_rules([Opening(openings, "", 'SPACE "{"')])])


def glm_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages in GLM's roles: tool becomes observation, and every tool call becomes its own assistant message."""
    prepared: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        text = message.text
        role = "observation" if message.role == "tool" else message.role
        entry: dict[str, Any] = {"role": role, "content": text, TURN: index}
        if pictures := sum(isinstance(part, ImagePart) for part in message.content):
            entry[PICTURES] = pictures
        if message.metadata:
            entry["metadata"] = message.metadata
        if message.tools:
            entry["tools"] = [dict(tool) for tool in message.tools]
        parts = [entry] if not message.tool_calls or text else []
        for call in message.tool_calls:
            # Templates omit empty messages; a call without arguments must not disappear.
            arguments = call.arguments.strip() or "{}"
            parts.append({"role": "assistant", "metadata": call.name, "content": arguments, TURN: index})
        if message.reasoning:
            parts[0]["reasoning_content"] = message.reasoning
        prepared += parts
    return prepared


class GLM4Parser:
    """Parses `\\n` text, `name\\n{json}` calls, and answers that mix them.

    A call is a line that is exactly the name of an offered function, followed by `{`. Names of built-in tools count
    only as the first line of a segment; their arguments are raw text. A call extends to the end of its segment.

    Args:
        functions: names of the offered functions.
        raw_tools: offered built-in tools.
        observation_id: the stop token that means a call was made.
    """

    def __init__(
        self,
        functions: frozenset[str],
        raw_tools: Sequence[str] = (),
        observation_id: int | None = None,
        call_id: Callable[[], str] = new_call_id,
    ) -> None:
        self._functions = functions
        self._raw = frozenset(raw_tools)
        self._observation_id = observation_id
        self._calls = CallWriter(call_id)
        self._buffer = ""
        self._after = 0  # characters of the input after the buffer's; without them, it ends where the buffer does
        self._pushed = 0
        self._called = False  # the answer was ended by <|observation|>
        self._text_before = False
        self._begin_segment()

    def _begin_segment(self) -> None:
        self._state = self._line
        self._first = True  # nothing of this segment has been read yet
        self._name = ""
        self._held = ""  # the line with the name, until its arguments begin
        self._break = self._text_before

    def push(self, text: str) -> list[Event]:
        """See `StreamParser`."""
        self._buffer += text
        self._pushed += len(text)
        return self._run(final=False)

    def finish(self, stop_token_id: int | None = None) -> list[Event]:
        """See `StreamParser`."""
        self._called = stop_token_id is not None and stop_token_id == self._observation_id
        return self._run(final=True)

    def _run(self, *, final: bool) -> list[Event]:
        events: list[Event] = []
        while True:
            segment, mark, rest = self._buffer.partition(SEGMENT)
            self._buffer, self._after = segment, len(mark + rest)
            while self._state(events, bool(mark) or final):
                pass
            if not mark:
                return merged(events)
            self._buffer = rest
            self._begin_segment()

    # States. Each consumes what it can from the buffer and returns whether to continue; `ended`: segment complete.

    def _line(self, events: list[Event], ended: bool) -> bool:
        """At the start of a line, which may turn out to be a tool's name."""
        line, newline, rest = self._buffer.partition("\n")
        name = line.strip()
        if not newline and not ended:
            names = self._functions | self._raw if self._first else self._functions
            if self._buffer and not any(known.startswith(name) for known in names):
                self._state = self._text
                return True
            return False
        if self._first and newline and not line:
            self._buffer, self._first = rest, False  # the line break that means "text follows"
        elif name in self._raw and self._first and (newline or self._called):
            events.append(self._calls.begin(name))
            self._buffer, self._state = rest, self._arguments
        elif name in self._functions and (newline or self._called):
            self._name, self._held, self._buffer = name, line + newline, rest
            self._state = self._named
        else:
            self._state = self._text
        return bool(newline or self._buffer or self._state != self._text)

    def _text(self, events: list[Event], ended: bool) -> bool:
        """Inside a line of text."""
        line, newline, self._buffer = self._buffer.partition("\n")
        self._show(events, line + newline)
        self._first = False
        if newline:
            self._state = self._line
        return bool(newline)

    def _named(self, events: list[Event], ended: bool) -> bool:
        """After a function's name, before its arguments."""
        rest = self._buffer.lstrip()
        if rest.startswith("{"):
            events.append(self._calls.begin(self._name))
            self._buffer, self._state = rest, self._arguments
            return True
        if not rest and not ended:
            return False
        if not rest and self._called:
            events.append(self._calls.begin(self._name, "{}"))
            self._buffer, self._state = "", self._arguments
            return False
        self._show(events, self._held)
        self._first, self._state = False, self._line
        return bool(self._buffer)

    def _arguments(self, events: list[Event], ended: bool) -> bool:
        """Inside a call; trailing whitespace is dropped."""
        shown = self._buffer.rstrip()
        self._buffer = "" if ended else self._buffer[len(shown) :]
        if shown:
            events.append(self._calls.more(shown))
        return False

    def _show(self, events: list[Event], text: str) -> None:
        """Show the text before the buffer's."""
        if text:
            stop = self._pushed - self._after - len(self._buffer)
            text = "\n" + text if self._break else text
            events.append(TextDelta(text, (range(stop - len(text), stop),)))
            self._break, self._text_before = False, True

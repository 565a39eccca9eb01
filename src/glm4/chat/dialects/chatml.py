"""ChatML with Hermes-style tools (Qwen2.5, SmolLM2): `<|im_start|>role\\n{content}<|im_end|>\\n`.

Tools are listed in the system message; a call is `<tool_call>\\n{"name": …, "arguments": …}\\n</tool_call>`. Small
models often omit the tags, so JSON on its own line or in a ``` fence also counts as a call if it names an offered
tool.
"""

from __future__ import annotations

import json
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
    takes_nothing,
)
from glm4.chat.dialects.base import TURN, Rendering, TemplateDialect, Tools, function_names
from glm4.chat.messages import Message
from glm4.chat.parsers.base import StreamParser, new_call_id
from glm4.chat.parsers.chatml import CLOSING, OPENING, ChatMLParser
from glm4.errors import InvalidRequestError
from glm4.tokenizer import Tokenizer

END_OF_TURN, END_OF_TEXT = "<|im_end|>", "<|endoftext|>"

_SPACE = r"/[ \t\r\n]*/"
_UNTAGGED = (
    rf"""{LINES} /[ \t]{{0,64}}(```(json|tool_call)?)?/ SPACE "{{" SPACE ("{{" SPACE)? /"name"/ SPACE ":" SPACE "\"" """
)


class ChatMLDialect(TemplateDialect):
    """The starter models."""

    name = "chatml"
    template_name = "chatml"
    stop_names = (END_OF_TURN, END_OF_TEXT)
    markers: Mapping[str, str] = MappingProxyType({OPENING: OPENING, CLOSING: CLOSING})

    def prepare(self, messages: Sequence[Message], tools: Tools) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Roles as OpenAI names them; arguments as objects, which the templates write as JSON themselves."""
        attached = [tool for message in messages for tool in message.tools]
        return [_entry(m, index) for index, m in enumerate(messages)], [*map(dict, attached), *map(dict, tools)]

    def segments(self, rendering: Rendering) -> list[tuple[str, int | None]]:
        """The model's: from after the generation prompt to `<|im_end|>`; the line break after it is the template's."""
        full = rendering.whole
        segments: list[tuple[str, int | None]] = []
        at = 0
        for index, start, end in rendering.assistant_turns():
            stop = full.rfind(END_OF_TURN, start, end)
            if stop < 0:
                raise InvalidRequestError(
                    f"message {index} cannot be trained on: the chat template does not end it with {END_OF_TURN}",
                    param="messages",
                )
            segments += [(full[at:start], None), (full[start : stop + len(END_OF_TURN)], rendering.turns[index])]
            at = stop + len(END_OF_TURN)
        return [*segments, (full[at:], None)]

    def parser(
        self, tools: Tools = (), tokenizer: Tokenizer | None = None, *, call_id: Callable[[], str] = new_call_id
    ) -> StreamParser:
        """See `TemplateDialect.parser`."""
        return ChatMLParser(function_names(tools), call_id)

    def call_rules(self, tools: Sequence[CallableTool], tokenizer: Tokenizer, *, parallel: bool) -> str:
        """Tagged calls, each on its own lines."""
        opening, closing = marker(OPENING, tokenizer), marker(CLOSING, tokenizer)
        names = " | ".join(f"call_{index}" for index in range(len(tools)))
        more = f'("\\n" call){{0,{MAX_CALLS - 1}}}' if parallel else ""
        rules = [f"calls: call {more}", f"call: {names}"]
        for index, tool in enumerate(tools):
            head = f'\n{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "arguments": '
            rules.append(
                f"call_{index}: {opening} {literal(head)} arguments_{index} {literal('}' + chr(10))} {closing}"
            )
            rules.append(f"arguments_{index}: {json_rule(tool.schema or {'type': 'object'})}")
        return "\n".join(rules)

    def free_rules(self, tools: Sequence[CallableTool], tokenizer: Tokenizer) -> str:
        """Text and calls in turn: tagged ones, and JSON at the start of a line that names an offered tool.

        Not covered: JSON without a tag whose arguments precede the name, or which spells the name with unusual escapes.
        """
        tag, closing = marker(OPENING, tokenizer), marker(CLOSING, tokenizer)
        # Models forget the opening tag, too; where the tags are tokens, free text has none of them.
        closings, stray = (f"{closing} | {literal(CLOSING)}", f" | text {closing}")
        if closing == literal(CLOSING):
            closings, stray = closing, ""
        each = range(len(tools))
        rules = [
            f"answer: (called | text {tag} {literal(chr(10))} object {literal(chr(10))} {closing}{stray})* text",
            f"tagged: SPACE object SPACE ({closings})",
            "object: " + " | ".join(f"object_{i}" for i in each),
            "untagged: " + " | ".join(f"untagged_{i}" for i in each),
            f"SPACE: {_SPACE}",
            'END: SPACE "}"',
        ]
        for i, tool in enumerate(tools):
            schema, name = tool.schema or {"type": "object"}, json.dumps(tool.name, ensure_ascii=False)
            head = '{"name": ' + name + ', "arguments": '
            spellings = dict.fromkeys((name, json.dumps(tool.name)))
            rest = "(" + " | ".join(literal(spelling[1:]) for spelling in spellings) + ")"
            rules += [
                f"object_{i}: {literal(head)} arguments_{i} {literal('}')}",
                f"untagged_{i}: CALL_{i} SPACE arguments_{i} END" + f" | BARE_{i}" * takes_nothing(schema),
                f"arguments_{i}: {json_rule(schema)}",
                f'CALL_{i}: {rest} SPACE "," SPACE /"(arguments|parameters)"/ SPACE ":"',
                f"BARE_{i}: {rest} END",
            ]
        tagged = Opening([(f"{ANY} {literal(OPENING)}", "tagged")], "", 'SPACE "{"')
        named = " | ".join(f"CALL_{i} | BARE_{i}" for i in each)
        untagged = Opening([(_UNTAGGED, "untagged")], r"/[^\n\x1e]*\n/", f"({named})")
        return "\n".join([*rules, free_text_rules([tagged, untagged])])


def _entry(message: Message, index: int) -> dict[str, Any]:
    role = "tool" if message.role == "observation" else message.role
    entry: dict[str, Any] = {"role": role, "content": message.text, TURN: index}
    if message.reasoning:
        entry["reasoning_content"] = message.reasoning
    if message.tool_call_id:
        entry["tool_call_id"] = message.tool_call_id
    calls = [(call.id, call.name, call.arguments) for call in message.tool_calls]
    if message.role == "assistant" and message.metadata:  # a call in GLM's format
        calls.append(("", message.metadata, message.text))
        entry["content"] = ""
    if calls:
        entry["tool_calls"] = [
            {"type": "function", "id": id_, "function": {"name": name, "arguments": _arguments(arguments)}}
            for id_, name, arguments in calls
        ]
    return entry


def _arguments(text: str) -> Any:
    """Arguments as the templates expect them: an object; text that is not JSON stays text."""
    try:
        return json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        return text

"""ChatML answers as they stream: text, tagged calls, and calls written as bare or fenced JSON."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm4.chat.events import Event, TextDelta, ToolCallDelta
from glm4.chat.parsers.chatml import ChatMLParser
from parsed import ParsedAnswer, collect, parse_complete

FUNCTIONS = frozenset({"get_weather", "add", "数"})
CALL = '{"name": "get_weather", "arguments": {"city": "Paris", "unit": "}"}}'
ARGUMENTS = '{"city": "Paris", "unit": "}"}'


def new_parser(functions: frozenset[str] = FUNCTIONS) -> ChatMLParser:
    numbers = itertools.count()
    return ChatMLParser(functions, lambda: f"call_{next(numbers)}")


def parsed(text: str, functions: frozenset[str] = FUNCTIONS) -> ParsedAnswer:
    return parse_complete(new_parser(functions), text)


def calls(text: str) -> tuple[str, list[tuple[str, str]]]:
    answer = parsed(text)
    return answer.text, [(call.name, call.arguments) for call in answer.tool_calls]


ONE = [("get_weather", ARGUMENTS)]


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>\n{CALL}\n</tool_call>",
        f"<tool_call>{CALL}</tool_call>",
        f"\n<tool_call>\n{CALL}\n</tool_call>\n",
        f"<tool_call>\n{{{CALL}}}\n</tool_call>",
        f"<tool_call>\n{CALL}",
        f"<tool_call>\n{CALL[:-1]}\n</tool_call>",
        CALL,
        f"\n{CALL}\n",
        f"  {CALL}",
        f"```json\n{CALL}\n```",
        f"```\n{CALL}\n```",
        f"```json\n{CALL}",
        CALL.replace(": ", ":").replace('{"city":"Paris", "unit":"}"}', ARGUMENTS),
        CALL.replace("arguments", "parameters"),
        '{ "name" : "get_weather" ,\n "arguments" : ' + ARGUMENTS + "\n}",
    ],
)
def test_one_call(text: str) -> None:
    assert calls(text) == ("", ONE)


def test_unusual_forms_are_read_as_a_whole() -> None:
    reverse = '{"arguments": ' + ARGUMENTS + ', "name": "get_weather"}'
    assert calls(reverse) == ("", ONE)
    assert calls(f"<tool_call>{reverse}</tool_call>") == ("", ONE)
    text = json.dumps({"name": "get_weather", "arguments": ARGUMENTS})
    assert calls(text) == ("", ONE)
    assert calls('{"name": "add", "arguments": null}') == ("", [("add", "null")])
    assert calls('{"name": "add"}') == ("", [("add", "{}")])
    assert calls('{"name": "\\u6570", "arguments": {}}') == ("", [("数", "{}")])


def test_unusual_forms_after_a_call() -> None:
    reverse = '{"arguments": {"x": 1}, "name": "add"}'
    assert calls(f"{CALL}\n{reverse}\n{reverse}") == ("", [*ONE, ("add", '{"x": 1}'), ("add", '{"x": 1}')])


def test_text_and_calls() -> None:
    tagged = f"<tool_call>\n{CALL}\n</tool_call>"
    assert calls(f"I look.\n{tagged}") == ("I look.", ONE)
    assert calls(f"I look. {tagged}\nDone.\n") == ("I look.\nDone.\n", ONE)
    assert calls(f"{tagged}\n{tagged}") == ("", ONE * 2)
    assert calls(f"{tagged}Done.") == ("Done.", ONE)
    assert calls(f"I call:\n```json\n{CALL}\n```\nDone.") == ("I call:\nDone.", ONE)
    assert calls(f"I call:\n{CALL}\n{CALL}") == ("I call:", ONE * 2)
    assert [call.id for call in parsed(tagged * 2).tool_calls] == ["call_0", "call_1"]


def test_tagged_calls_may_name_any_tool() -> None:
    assert calls('<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>') == ("", [("other", "{}")])


@pytest.mark.parametrize(
    "text",
    [
        "plain text",
        "a < b and {c}",
        '{"name": "other", "arguments": {}}',
        '{"names": "get_weather"}',
        '{"city": "Paris"}',
        "{",
        "{}",
        '{"name": "get_weather", "args": {}}',
        '{"name": "get_weath',
        'The call {"name": "get_weather", "arguments": {}} is inside a line.',
        "```python\nprint({'name': 'get_weather'})\n```\n",
        "```json\n[1, 2]\n```",
        "```",
        "``",
        "<tool_call>",
        "<tool_call>\nno JSON\n</tool_call>",
        "<tool_call",
        '{"arguments": {}, "name": "other"}',
        '{"arguments": {"a": [}]}, "name": "add"}',
        '{"name": 7}',
        "x  \n\n",
        '{"name": "' + "a" * 300,
        "{" + " " * 5000 + '"name": "add"}',
    ],
)
def test_text_that_is_no_call(text: str) -> None:
    assert calls(text) == (text, [])


def test_without_tools_nothing_is_a_call() -> None:
    for text in (CALL, f"<tool_call>\n{CALL}\n</tool_call>"):
        assert parsed(text, frozenset()) == ParsedAnswer(text, None, ())


def test_cut_off_in_the_middle_of_a_call() -> None:
    assert calls('<tool_call>\n{"name": "add", "arguments": {"a": 1') == ("", [("add", '{"a": 1')])


def stream(*pieces: str) -> list[list[Event]]:
    parser = new_parser()
    return [*(parser.push(piece) for piece in pieces), parser.finish()]


def test_text_streams_at_once() -> None:
    assert stream("He", "llo", " wor", "ld <b>", "\n", "x") == [
        [TextDelta("He")], [TextDelta("llo")], [TextDelta(" wor")], [TextDelta("ld <b>")], [], [TextDelta("\nx")], [],
    ]  # fmt: skip


def test_a_call_streams() -> None:
    pieces = ["<tool", "_call>", '\n{"name": "ad', 'd", "argum', 'ents": {"a"', ": 1", "}}", "\n</tool_", "call>"]
    assert stream(*pieces) == [
        [], [], [], [], [ToolCallDelta(0, "call_0", "add", '{"a"')], [ToolCallDelta(0, arguments=": 1")],
        [ToolCallDelta(0, arguments="}")], [], [], [],
    ]  # fmt: skip


def test_json_is_held_back_only_while_it_may_be_a_call() -> None:
    assert stream('{"', "na", 'me": "x', '"}') == [[], [], [TextDelta('{"name": "x')], [TextDelta('"}')], []]
    assert stream("``", "`", "py", "thon") == [[], [], [TextDelta("```py")], [TextDelta("thon")], []]


TAGS = ["<tool_call>", "</tool_call>", "<tool", "_call>", "```", "`", "json"]
KEYS = ['"name"', ":", '"get_weather"', '"add"', ",", '"arguments"', '"parameters"', "null", '"', "\\"]
BODIES = ["{", "}", "{{", '{"a": 1}', "[1]", " ", "\n", "\n\n", "text", "你"]
BEGINNINGS = ['{"name": "add", "arguments": ', '{"arguments": {"x": "}"}, "name": "add"}', '{"name": "add"']
WHOLE = [CALL, f"<tool_call>\n{CALL}\n</tool_call>", f"```json\n{CALL}\n```"]
PIECES = st.sampled_from([*TAGS, *KEYS, *BODIES, *BEGINNINGS, *WHOLE])


@settings(max_examples=800, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join), st.data())
def test_any_cut_gives_the_same_answer(text: str, data: st.DataObject) -> None:
    whole = parsed(text)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    for borders in (cuts, range(1, len(text))):
        parser = new_parser()
        events: list[Event] = []
        for start, end in zip([0, *borders], [*borders, len(text)], strict=True):
            events += parser.push(text[start:end])
        assert collect([*events, *parser.finish()]) == whole


VALUES = st.one_of(st.text(max_size=9), st.integers(), st.lists(st.booleans()))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4))
def test_any_arguments(arguments: dict[str, Any]) -> None:
    for ascii_only in (True, False):
        written = json.dumps(arguments, ensure_ascii=ascii_only)
        text = f'<tool_call>\n{{"name": "add", "arguments": {written}}}\n</tool_call>'
        assert calls(text) == ("", [("add", written)])


@pytest.mark.parametrize("start", ['{"arguments": {"x": "', "{", '<tool_call>{"arguments": ["', "x\n"])
def test_endless_answers_stay_cheap(start: str) -> None:
    """A model that goes on and on, a token at a time."""
    parser = new_parser()
    parser.push(start)
    begin = time.monotonic()
    for _ in range(20_000):
        parser.push("a  " if '"' in start else "  ")
    parser.finish()
    assert time.monotonic() - begin < 20

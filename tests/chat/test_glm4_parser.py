"""GLM-4 answers as they stream: text, calls, and both; also GLM-Z1's thinking."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm4.chat.dialects.glm4 import SEGMENT, GLM4Parser
from glm4.chat.dialects.table import DIALECTS
from glm4.chat.events import (
    Event,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
)
from glm4.chat.parsers.base import ReasoningParser, StreamParser
from parsed import ParsedAnswer, collect, parse_complete

OBSERVATION, USER = 151338, 151336
FUNCTIONS = frozenset({"get_weather", "get_time", "get"})


def new_parser(functions: frozenset[str] = FUNCTIONS, raw: tuple[str, ...] = ("python",)) -> GLM4Parser:
    numbers = itertools.count()
    return GLM4Parser(functions, raw, OBSERVATION, lambda: f"call_{next(numbers)}")


def parsed(text: str, stop: int | None = USER, **options: Any) -> ParsedAnswer:
    return parse_complete(new_parser(**options), text, stop)


def calls(answer: ParsedAnswer) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in answer.tool_calls]


def test_text() -> None:
    assert parsed("\n你好\n\n世界\n").text == "你好\n\n世界\n"
    assert parsed("你好").text == "你好", "a model that forgets the line break"
    assert parsed("\n\nx").text == "\nx", "only the first line break is the format's"
    assert parsed("").text == ""


def test_call() -> None:
    answer = parsed('get_weather\n{"city": "北京"}', OBSERVATION)
    assert answer.text == ""
    assert calls(answer) == [("get_weather", '{"city": "北京"}')]
    assert answer.tool_calls[0].id == "call_0"


@pytest.mark.parametrize(
    "text",
    ['get_weather\n{"a": 1}', 'get_weather \n {"a": 1}\n', '\nget_weather\n{"a": 1}', ' get_weather\n\n{"a": 1} \n'],
)
def test_whitespace_around_a_call(text: str) -> None:
    assert calls(parsed(text, OBSERVATION)) == [("get_weather", '{"a": 1}')]
    assert parsed(text, OBSERVATION).text.strip() == ""


def test_arguments_may_have_many_lines() -> None:
    arguments = '{\n  "a": "get_time\\n{",\n  "b": [\n1]\n}'
    assert calls(parsed(f"get_time\n{arguments}\n", OBSERVATION)) == [("get_time", arguments)]


def test_prose_then_call() -> None:
    for between in (SEGMENT, "\n"):
        answer = parsed(f'\nI look it up.{between}get_weather\n{{"a": 1}}', OBSERVATION)
        assert answer.text.rstrip("\n") == "I look it up."
        assert calls(answer) == [("get_weather", '{"a": 1}')]


def test_several_calls_and_texts() -> None:
    text = f'\nA{SEGMENT}get\n{{"a": 1}}{SEGMENT}get_time\n{{}}{SEGMENT}\nB{SEGMENT}\nC'
    answer = parsed(text)
    assert answer.text == "A\nB\nC"
    assert calls(answer) == [("get", '{"a": 1}'), ("get_time", "{}")]
    assert [call.id for call in answer.tool_calls] == ["call_0", "call_1"]


@pytest.mark.parametrize(
    "text",
    [
        'unknown_tool\n{"a": 1}',
        "get_weather\nis a function",
        "get_weather is a function\n{",
        "get_weather",
        "get_weather\n",
        "\nUse get_weather\n{}",
        "\npython\nprint(1)",
    ],
)
def test_text_that_looks_like_a_call(text: str) -> None:
    answer = parsed(text)
    assert answer.tool_calls == ()
    assert answer.text == text.removeprefix("\n")


def test_without_tools_nothing_is_a_call() -> None:
    answer = parsed('get_weather\n{"a": 1}', functions=frozenset(), raw=())
    assert answer.text == 'get_weather\n{"a": 1}'
    assert answer.tool_calls == ()


def test_a_call_without_arguments_is_known_by_its_stop_token() -> None:
    assert calls(parsed("get_weather", OBSERVATION)) == [("get_weather", "{}")]
    assert calls(parsed("get_weather\n", OBSERVATION)) == [("get_weather", "{}")]


def test_raw_arguments() -> None:
    code = "import math\n\nprint({'a': math.pi})"
    assert calls(parsed(f"python\n{code}\n", OBSERVATION)) == [("python", code)]
    assert calls(parsed(f"\nI compute.{SEGMENT}python\n{code}", OBSERVATION)) == [("python", code)]


def test_cut_off_in_the_middle_of_a_call() -> None:
    assert calls(parsed('get_weather\n{"city": "Bei', None)) == [("get_weather", '{"city": "Bei')]


def stream(parser: StreamParser, *pieces: str) -> list[list[Event]]:
    return [parser.push(piece) for piece in pieces]


def test_text_streams_at_once() -> None:
    assert stream(new_parser(), "\n", "He", "llo\nwor", "ld") == [
        [], [TextDelta("He")], [TextDelta("llo\nwor")], [TextDelta("ld")],
    ]  # fmt: skip


def test_text_is_held_back_only_while_it_may_be_a_name() -> None:
    pieces = stream(new_parser(), "\n", "get", "_", "x y")
    assert pieces == [[], [], [], [TextDelta("get_x y")]]


def test_a_call_streams() -> None:
    assert stream(new_parser(), "get_", "weather", "\n", '{"ci', 'ty": ', '"B"}') == [
        [], [], [], [ToolCallDelta(0, "call_0", "get_weather", '{"ci')], [ToolCallDelta(0, arguments='ty":')],
        [ToolCallDelta(0, arguments=' "B"}')],
    ]  # fmt: skip


def test_call_ids_are_openai_like() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    answer = parse_complete(DIALECTS["glm4"].parser([tool]), "f\n{}", None)
    prefix, _, digits = answer.tool_calls[0].id.partition("_")
    assert prefix == "call"
    assert len(bytes.fromhex(digits)) == 12


NAMES = ["get_weather", "get_time", "get", "g", "python"]
MARKS = [SEGMENT, "<think>", "</think>", "<", "/think>", "<th"]
PIECES = st.sampled_from([*NAMES, *MARKS, "\n", "\n\n", " ", "{", "}", '{"a": 1}', "text", "你", '"'])
TEXTS = st.lists(PIECES, max_size=14)


@settings(max_examples=500, deadline=None)
@given(TEXTS, st.sampled_from([None, USER, OBSERVATION]), st.data())
def test_any_cut_gives_the_same_answer(pieces: list[str], stop: int | None, data: st.DataObject) -> None:
    text = "".join(pieces)
    check_cuts(new_parser, text, stop, data)
    check_cuts(lambda: ReasoningParser(new_parser()), text, stop, data)


def check_cuts(make: Any, text: str, stop: int | None, data: st.DataObject) -> None:
    whole = parse_complete(make(), text, stop)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    parser = make()
    events: list[Event] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        events += parser.push(text[start:end])
    assert collect([*events, *parser.finish(stop)]) == whole
    letters: list[Event] = []
    parser = make()
    for letter in text:
        letters += parser.push(letter)
    assert collect([*letters, *parser.finish(stop)]) == whole


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40))
def test_without_tools_all_text_comes_back(text: str) -> None:
    answer = parsed(text, functions=frozenset(), raw=())
    if SEGMENT not in text:
        assert answer.text == text.removeprefix("\n")


def z1(text: str, stop: int | None = USER) -> ParsedAnswer:
    return parse_complete(ReasoningParser(new_parser()), text, stop)


def test_thinking() -> None:
    answer = z1("\nFirst\n\nthen \n</think>\n\nThe answer.\n")
    assert answer.reasoning == "First\n\nthen"
    assert answer.text == "The answer.\n"


def test_thinking_that_opens_itself() -> None:
    assert z1("\n<think>\na</think>b") == ParsedAnswer("b", "a", ())
    assert z1("<thin") == ParsedAnswer("", "<thin", ())


def test_thinking_then_call() -> None:
    answer = z1('hm</think>\nget_weather\n{"a": 1}', OBSERVATION)
    assert answer.reasoning == "hm"
    assert calls(answer) == [("get_weather", '{"a": 1}')]


def test_thinking_without_end_or_content() -> None:
    assert z1("hm ").reasoning == "hm"
    assert z1("</think>x") == ParsedAnswer("x", None, ())
    assert z1("") == ParsedAnswer("", None, ())


def test_thinking_streams() -> None:
    parser = DIALECTS["glm_z1"].parser()
    assert stream(parser, "\n", "a ", "<b", "</thi", "nk>", "\n\n", "c") == [
        [], [ReasoningDelta("a")], [ReasoningDelta(" <b")], [], [], [], [TextDelta("c")],
    ]  # fmt: skip

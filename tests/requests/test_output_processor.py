"""Stop strings across token borders, and the way from tokens to a finished sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm4.chat.events import Event, TextDelta, ToolCallDelta
from glm4.chat.parsers.base import PlainParser
from glm4.engine.protocol import GenerationOutput
from glm4.requests.output_processor import SampleProcessor
from glm4.requests.stop_strings import StopStringMatcher
from glm4.sampling_params import SamplingParams
from glm4.tokenizer.detokenizer import Detokenizer

TEXT = st.text("ab ", max_size=30)
STOPS = st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3)


def first_match(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    found = [(text.find(s), -len(s), s) for s in stops if s in text]
    return (min(found)[0], min(found)[2]) if found else None


@given(TEXT, STOPS, st.booleans())
def test_character_by_character_equals_searching_the_whole_text(text: str, stops: list[str], include: bool) -> None:
    matcher = StopStringMatcher(stops, include)
    shown = ""
    for character in text:
        shown += matcher.push(character)
        if matcher.matched is not None:
            break
    shown += matcher.flush()
    if matcher.matched is None:
        assert shown == text
        assert first_match(text, stops) is None
        return
    # Text arrives a character at a time, so the match that is complete first wins, not the one that begins first.
    end = min(text.find(s) + len(s) for s in stops if s in text)
    assert len(shown) == (end if include else end - len(matcher.matched))
    assert text.startswith(shown)
    assert text[:end].endswith(matcher.matched)


@given(TEXT, STOPS)
def test_nothing_shown_is_ever_taken_back(text: str, stops: list[str]) -> None:
    matcher = StopStringMatcher(stops, include_stop=False)
    shown = "".join(matcher.push(character) for character in text)
    for stop in stops:
        assert stop not in shown


@given(st.lists(st.text("ab ", max_size=6), max_size=12), STOPS, st.booleans())
def test_pieces_equal_searching_in_what_has_come(pieces: list[str], stops: list[str], include: bool) -> None:
    matcher, shown, text = StopStringMatcher(stops, include), "", ""
    for piece in pieces:
        shown, text = shown + matcher.push(piece), text + piece
        found = first_match(text, stops)
        if found is not None:
            at, stop = found
            assert matcher.matched == stop
            assert shown == text[: at + len(stop) if include else at]
            return
        held = max((n for s in stops for n in range(len(s)) if text.endswith(s[:n])), default=0)
        assert shown == text[: len(text) - held], "exactly what may still become a stop string is held back"
    assert matcher.matched is None
    assert shown + matcher.flush() == text


def test_the_work_grows_with_the_text_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop strings that nearly match: every lookup of the automaton is counted."""
    lookups = 0

    class Counting(dict[str, int]):
        def get(self, *arguments: Any) -> Any:
            nonlocal lookups
            lookups += 1
            return super().get(*arguments)

    stops = [" " * 3000 + f"x{i}" for i in range(2)] + [" " * 2000 + "y"]
    matcher = StopStringMatcher(stops, include_stop=False)
    assert matcher._automaton is not None
    table = matcher._automaton._next
    monkeypatch.setattr(matcher._automaton, "_next", [Counting(edges) for edges in table])
    text = " " * 20_000 + ("  z" + " " * 2500) * 8
    for start in range(0, len(text), 4):
        matcher.push(text[start : start + 4])
    assert matcher.matched is None
    assert lookups <= 2 * len(text)


class Letters(Detokenizer):
    """A detokenizer whose token n is the n-th letter; "é" takes two tokens, 100 and 101."""

    def __init__(self) -> None:
        self._half = False

    def push(self, token_id: int) -> str:
        if token_id == 100:
            self._half = True
            return ""
        if token_id == 101:
            self._half = False
            return "é"
        return chr(ord("a") + token_id)

    def flush(self) -> str:
        return "\ufffd" if self._half else ""


def feed(params: SamplingParams, outputs: list[GenerationOutput]) -> tuple[SampleProcessor, list[Event], list[str]]:
    aborted: list[str] = []
    processor = SampleProcessor(0, params, Letters(), PlainParser(), lambda: aborted.append("stop"))
    events: list[Event] = []
    for output in outputs:
        events += processor.push(output)
        if processor.output is not None:
            break
    return processor, events, aborted


def tokens(ids: Sequence[int], reason: str | None = "length", stop: int | None = None) -> list[GenerationOutput]:
    steps = [GenerationOutput("r", (token,)) for token in ids[:-1]]
    return [*steps, GenerationOutput("r", (ids[-1],), reason, stop)]


def test_text_streams_and_ends_by_length() -> None:
    processor, events, aborted = feed(SamplingParams(), tokens([0, 1, 2]))
    assert events == [TextDelta("a"), TextDelta("b"), TextDelta("c")]
    assert processor.output is not None
    assert (processor.output.text, processor.output.finish_reason) == ("abc", "length")
    assert not aborted


def test_a_stop_string_over_two_tokens_stops_the_backend() -> None:
    processor, events, aborted = feed(SamplingParams(stop="bc"), tokens([0, 1, 2, 3]))
    assert processor.output is not None
    assert processor.output.text == "a"
    assert processor.output.token_ids == [0, 1, 2]
    assert (processor.output.finish_reason, processor.output.stop_reason) == ("stop", "bc")
    assert aborted == ["stop"]
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "a"


def test_a_stop_string_may_be_kept() -> None:
    processor, _, _ = feed(SamplingParams(stop="bc", include_stop_str_in_output=True), tokens([0, 1, 2, 3]))
    assert processor.output is not None
    assert processor.output.text == "abc"


def test_held_back_text_comes_at_the_end() -> None:
    processor, _, _ = feed(SamplingParams(stop="bcd"), tokens([0, 1, 2]))
    assert processor.output is not None
    assert processor.output.text == "abc"


def test_no_stop_string_before_min_tokens() -> None:
    processor, _, _ = feed(SamplingParams(stop="b", min_tokens=3), tokens([0, 1, 2, 1, 3]))
    assert processor.output is not None
    assert processor.output.text == "abc"


@pytest.mark.parametrize(("by_caller", "expected"), [((7,), 7), ((), None)])
def test_the_stop_token_is_no_text(by_caller: tuple[int, ...], expected: int | None) -> None:
    processor, _, _ = feed(SamplingParams(stop_token_ids=by_caller), tokens([0, 7], "stop", 7))
    assert processor.output is not None
    assert processor.output.text == "a"
    assert processor.output.token_ids == [0, 7]
    assert (processor.output.finish_reason, processor.output.stop_reason) == ("stop", expected)


def test_half_a_character_is_never_shown_but_marked_at_the_end() -> None:
    _, events, _ = feed(SamplingParams(), tokens([100, 101]))
    assert events == [TextDelta("é")]
    processor, _, _ = feed(SamplingParams(), tokens([0, 100]))
    assert processor.output is not None
    assert processor.output.text == "a\ufffd"


def test_abort_shows_what_was_held_back() -> None:
    processor, _, _ = feed(SamplingParams(stop="bcd"), [GenerationOutput("r", (0,)), GenerationOutput("r", (1,))])
    assert not processor.output
    assert processor.end("abort") == [TextDelta("b")]
    assert processor.output is not None
    assert (processor.output.text, processor.output.finish_reason) == ("ab", "abort")
    assert processor.end("abort") == []


class OneCall(PlainParser):
    def push(self, text: str) -> list[Event]:
        return [ToolCallDelta(0, "call_1", "f") if text == "a" else ToolCallDelta(0, arguments=text)]


def test_tool_calls_are_put_together_and_name_the_finish_reason() -> None:
    processor = SampleProcessor(0, SamplingParams(), Letters(), OneCall(), lambda: None)
    for output in tokens([0, 1, 2, 9], "stop", 9):
        processor.push(output)
    assert processor.output is not None
    assert processor.output.finish_reason == "tool_calls"
    (call,) = processor.output.tool_calls
    assert (call.id, call.name, call.arguments) == ("call_1", "f", "bc")
    assert processor.output.text == ""

"""Tool results answer the calls whose id they have, in whatever order they arrive, in every API and dialect."""

from __future__ import annotations

from typing import Any

import pytest

from glm4.api.anthropic import parse_message
from glm4.api.openai import parse_chat
from glm4.api.responses.request import parse_responses
from glm4.chat.chat_request import ChatRequest
from glm4.chat.dialects.table import DIALECTS
from glm4.chat.messages import Message, ToolCall
from glm4.errors import InvalidRequestError
from glm4.sampling_params import SamplingParams
from glm4.tokenizer import Tokenizer
from rendering import render_text
from vocabularies import tiny_chatml

ASK = {"role": "user", "content": "Oslo and Cairo?"}
OSLO, CAIRO = "-5 C, snow", "35 C, sunny"


def call(call_id: str | None, city: str, name: str = "get_weather") -> dict[str, Any]:
    given = {} if call_id is None else {"id": call_id}
    return {**given, "type": "function", "function": {"name": name, "arguments": f'{{"city": "{city}"}}'}}


def calls(*made: dict[str, Any], content: str | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(made)}


def result(call_id: str | None, content: str, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": call_id, **more}


GLM_CALL = {"role": "assistant", "metadata": "f", "content": "{}"}
BOTH = calls(call("A", "Oslo"), call("B", "Cairo"))
OUT_OF_ORDER = [ASK, BOTH, result("B", CAIRO), result("A", OSLO)]


def texts(messages: list[Any]) -> list[str]:
    """The results as the model reads them; other messages by their role."""
    turns = ChatRequest.of(messages).messages
    return [turn.text if turn.role in ("tool", "observation") else turn.role for turn in turns]


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_results_are_written_in_the_order_of_the_calls(name: str, glm4: Tokenizer) -> None:
    tokenizer = tiny_chatml() if name == "chatml" else glm4
    text = render_text(DIALECTS[name], OUT_OF_ORDER, tokenizer=tokenizer)
    assert text.index("Oslo") < text.index('"Cairo') < text.index(OSLO) < text.index(CAIRO)


def test_every_api_matches_by_id() -> None:
    params = SamplingParams()
    chat = parse_chat({"messages": OUT_OF_ORDER}, params).request.messages

    def used(id_: str, city: str) -> dict[str, Any]:
        return {"type": "tool_use", "id": id_, "name": "get_weather", "input": {"city": city}}

    blocks = [{"type": "tool_result", "tool_use_id": "B", "content": CAIRO}, {"type": "text", "text": "Well?"}]
    blocks += [{"type": "tool_result", "tool_use_id": "A", "content": OSLO}]
    turns = [ASK, {"role": "assistant", "content": [used("A", "Oslo"), used("B", "Cairo")]}]
    messages = parse_message(
        {"max_tokens": 9, "messages": [*turns, {"role": "user", "content": blocks}]}, params
    ).chat.messages
    assert chat == (*messages[:3], messages[4])
    assert messages[3] == Message("user", "Well?")

    def made(id_: str, city: str) -> dict[str, Any]:
        return {"type": "function_call", "call_id": id_, "name": "get_weather", "arguments": f'{{"city": "{city}"}}'}

    outputs = [{"type": "function_call_output", "call_id": id_, "output": text} for id_, text in
               (("B", CAIRO), ("A", OSLO))]  # fmt: skip
    items = [ASK, made("A", "Oslo"), made("B", "Cairo"), *outputs]
    request = parse_responses({"input": items}, params, thinks=False)
    assert request.chat([], request.items).messages == chat
    assert request.chat(request.items[:3], request.items[3:]).messages == chat  # continued with previous_response_id


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (OUT_OF_ORDER, ["user", "assistant", OSLO, CAIRO]),
        # What others say between calls and results stays where it is.
        ([ASK, BOTH, result("B", "b"), ASK, result("A", "a")], ["user", "assistant", "a", "user", "b"]),
        ([BOTH, ASK, result("A", "a"), result("B", "b")], ["assistant", "user", "a", "b"]),
        ([BOTH, result("B", "b"), {"role": "assistant", "content": "One is missing."}, result("A", "a")],
         ["assistant", "a", "assistant", "b"]),
        # Parallel calls written as messages of their own, and text after a call.
        ([calls(call("A", "x")), calls(call("B", "y")), result("B", "b"), result("A", "a")],
         ["assistant", "assistant", "a", "b"]),
        ([calls(call("A", "x")), {"role": "assistant", "content": "I look."}, result("A", "a")],
         ["assistant", "assistant", "a"]),
        # Clients that number the calls of every turn anew.
        ([calls(call("0", "x")), result("0", "a"), calls(call("0", "y")), result("0", "b")],
         ["assistant", "a", "assistant", "b"]),
        ([ASK, calls(call("0", "x")), ASK, calls(call("0", "y")), result("0", "b")],
         ["user", "assistant", "user", "assistant", "b"]),
        # Without ids: by position, or by name.
        ([calls(call(None, "x"), call(None, "y")), result(None, "a"), result("", "b")], ["assistant", "a", "b"]),
        ([calls(call(None, "x", "f"), call(None, "y", "g")), result(None, "g", name="g"), result(None, "f", name="f")],
         ["assistant", "f", "g"]),
        ([calls(call("A", "x"), call("B", "y")), result(None, "b"), result("A", "a")], None),
        ([calls(call(None, "x")), result("A", "a")], ["assistant", "a"]),
        ([{"role": "assistant", "content": None, "function_call": call(None, "x")["function"]},
          {"role": "function", "name": "get_weather", "content": "a"}], ["assistant", "a"]),
        # GLM-4's own form; its browser returns several observations.
        ([GLM_CALL, GLM_CALL | {"metadata": "g"}, {"role": "observation", "content": "f"},
          {"role": "observation", "content": "g"}],
         ["assistant", "assistant", "f", "g"]),
        ([GLM_CALL, {"role": "observation", "content": "1"},
          {"role": "observation", "content": "2"}, ASK], ["assistant", "1", "2", "user"]),
        # Histories whose beginning was cut off, and tools that were never run.
        ([result("A", "a"), result("B", "b"), ASK], ["a", "b", "user"]),
        ([{"role": "system", "content": "s"}, result("A", "a"), ASK], ["system", "a", "user"]),
        ([ASK, BOTH, ASK], ["user", "assistant", "user"]),
        ([ASK, BOTH], ["user", "assistant"]),
    ],
    ids=str,
)  # fmt: skip
def test_what_belongs_together(messages: list[Any], expected: list[str] | None) -> None:
    if expected is None:  # the result without an id takes the first call, so the one with its id has none left
        with pytest.raises(InvalidRequestError, match="two tool results have the id 'A'"):
            texts(messages)
    else:
        assert texts(messages) == expected
        assert texts(list(ChatRequest.of(messages).messages)) == expected  # doing it again changes nothing


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([ASK, BOTH, result("A", "a"), result("C", "c")], "id 'C', but no call in the turn before it .*'A', 'B'"),
        (
            [calls(call("A", "x")), ASK, calls(call("B", "y")), result("A", "a"), result("B", "b")],
            "id 'A', but no call in the turn before it .*'B'",
        ),
        ([ASK, result("A", "a")], "id 'A', but no call before it has"),
        ([ASK, result("A", "a"), BOTH], "id 'A', but no call before it has"),
        ([ASK, BOTH, result("A", "a"), result("A", "b")], "two tool results have the id 'A'"),
        ([ASK, BOTH, result("A", "a"), result("B", "b"), ASK, result("B", "c")], "two tool results have the id 'B'"),
        (
            [calls(call("0", "x")), ASK, calls(call("0", "y")), result("0", "b"), result("0", "a")],
            "two tool results have the id '0'",
        ),
        ([ASK, calls(call("A", "x"), call("A", "y"))], "two calls of one turn have the id 'A'"),
        ([ASK, BOTH, result("A", "a")], "call of 'get_weather' with the id 'B' has no result"),
        ([ASK, BOTH, result("B", "b"), ASK], "call of 'get_weather' with the id 'A' has no result"),
        ([ASK, calls(call(None, "x"), call(None, "y")), result(None, "a")], "call of 'get_weather' has no result"),
        ([ASK, calls(call(None, "x"), call(None, "y")), result("A", "a")], "id 'A', but no call before it has"),
        ([ASK, calls(call("A", "x")), result("A", "a"), result(None, "b")], "more tool results than calls"),
        ([ASK, calls(call("A", "x")), result(None, "a", name="other")], "is named 'other', but .*'get_weather'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_belongs_to_no_call_is_refused(messages: list[Any], problem: str) -> None:
    with pytest.raises(InvalidRequestError, match=problem) as caught:
        ChatRequest.of(messages)
    assert caught.value.param == "messages"


@pytest.mark.thorough
def test_a_long_history_takes_linear_time() -> None:
    """A hundred thousand calls and results, answered backwards; a quadratic search would take hours."""
    made = tuple(ToolCall(str(number), "f", "{}") for number in range(100_000))
    answers = [Message("tool", one.id, tool_call_id=one.id) for one in reversed(made)]
    turns = ChatRequest.of([Message("assistant", tool_calls=made), *answers]).messages
    assert [turn.text for turn in turns[1:]] == [one.id for one in made]
    unnamed = tuple(ToolCall("", "f", "{}") for _ in range(100_000))
    ChatRequest.of([Message("assistant", tool_calls=unnamed), *[Message("tool", "x", name="f")] * 100_000])
    ChatRequest.of([Message("assistant", tool_calls=(one,)) for one in made])

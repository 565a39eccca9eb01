"""Messages as clients send them back: null is "not given", what means nothing passes, the rest is honored or named."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from openai.types.chat import ChatCompletionMessage, ParsedChatCompletionMessage

from glm4.api.schemas import schemas
from glm4.chat import messages
from glm4.chat.chat_request import ChatRequest
from glm4.chat.messages import Message, ToolCall
from glm4.chat.parts import TextPart
from glm4.errors import InvalidRequestError

CALL = {"id": "A", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def answer(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "hi", **fields}


def read(message: dict[str, Any]) -> Message:
    return ChatRequest.of([message]).messages[0]


@pytest.mark.parametrize("kind", [ChatCompletionMessage, ParsedChatCompletionMessage])
def test_openais_answers_are_taken_as_they_are_dumped(kind: Any) -> None:
    assert read(kind.model_validate(answer()).model_dump()) == Message("assistant", "hi")
    called = kind.model_validate(answer(content=None, tool_calls=[CALL])).model_dump()
    assert read(called) == Message("assistant", tool_calls=(ToolCall("A", "f", '{"a": 1}'),))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # Of vLLM, litellm and others: they mean nothing in a prompt.
        ({"reasoning_content": None, "reasoning": None, "refusal": None, "annotations": [], "audio": None}, {}),
        ({"annotations": [{"type": "url_citation", "url_citation": {"url": "u"}}]}, {}),
        ({"provider_specific_fields": {"citations": None}, "thinking_blocks": [{"type": "thinking"}]}, {}),
        ({"cache_control": {"type": "ephemeral"}, "parsed": {"a": 1}, "images": [], "function_call": {}}, {}),
        ({"type": "message", "id": "msg_1", "status": "completed", "object": "x", "name": "helper"}, {}),
        ({"anything": None, "tool_calls": [], "tools": []}, {}),
        # What means something is honored.
        ({"reasoning": "hm"}, {"reasoning": "hm"}),
        ({"reasoning_content": "hm", "reasoning": "hm"}, {"reasoning": "hm"}),
        ({"content": None, "refusal": "No."}, {"content": "No."}),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, {"content": "No."}),
        ({"content": [{"type": "output_text", "text": "a", "annotations": []}]}, {"content": "a"}),
        ({"content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]}, {"content": "a"}),
        ({"content": [{"type": "thinking", "thinking": "hm", "signature": "s"},
                      {"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "a"}]},
         {"content": "a", "reasoning": "hm"}),
        ({"content": None, "function_call": {"name": "f", "arguments": "{}"}},
         {"content": "", "tool_calls": (ToolCall("", "f", "{}"),)}),
        ({"tool_calls": [CALL | {"index": 0, "provider_specific_fields": None}]},
         {"tool_calls": (ToolCall("A", "f", '{"a": 1}'),)}),
        ({"tool_calls": [{"function": {"name": "f", "arguments": {"ä": 1}}}]},
         {"tool_calls": (ToolCall("", "f", '{"ä": 1}'),)}),
        ({"tool_calls": [{"id": None, "type": None, "function": {"name": "f", "arguments": None}}]},
         {"tool_calls": (ToolCall("", "f", "{}"),)}),
    ],
    ids=str,
)  # fmt: skip
def test_what_answers_carry(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    whole: dict[str, Any] = {"role": "assistant", "content": "hi", **expected}
    assert read(answer(**fields)) == Message(**whole)


def test_a_type_beside_the_role() -> None:
    assert read({"role": "user", "content": "hi", "type": "text"}) == Message("user", "hi")


def test_names_of_results() -> None:
    assert read({"role": "function", "name": "f", "content": "a"}) == Message("tool", "a", name="f")
    assert read({"role": "user", "name": "Li", "content": "a"}) == Message("user", [TextPart("a")])


def test_nulls_of_tools_are_not_in_the_prompt() -> None:
    function: dict[str, Any] = {"name": "f", "parameters": {"type": "object", "default": None}}
    with_nulls = {"type": None, "strict": None, "function": {**function, "description": None, "strict": None}}
    for request in (
        ChatRequest.of([{"role": "user", "content": "a"}], tools=[with_nulls]),
        ChatRequest.of([{"role": "system", "content": "a", "tools": [with_nulls]}]),
    ):
        assert request.offered_tools == [{"function": function}]


@pytest.mark.parametrize(
    ("message", "param", "problem"),
    [
        (answer(audio={"id": "a", "data": "AAAA", "transcript": "t"}), ".audio", "send audio.transcript as content"),
        (answer(images=[{"type": "image_url"}]), ".images", "image_url parts"),
        (answer(prefix=True), ".prefix", "continue_final_message"),
        (answer(mood="good"), ".mood", "unknown message field 'mood'"),
        (answer(tool_calls=5), ".tool_calls", "must be a list"),
        (answer(tool_calls="f"), ".tool_calls", "must be a list"),
        (answer(tool_calls={"a": 1}), ".tool_calls", "must be a list"),
        (answer(tool_calls=[5]), ".tool_calls[0]", "must be an object"),
        (answer(tool_calls=[{"type": "custom", "custom": {}}]), ".tool_calls[0]", "type function"),
        (answer(tool_calls=[{"id": 5, "function": {"name": "f"}}]), ".tool_calls[0].id", "must be a string"),
        (answer(tool_calls=[{"function": {"name": 5}}]), ".tool_calls[0].function.name", "must be a string"),
        (answer(tool_calls=[{"function": {"name": "f", "arguments": 5}}]), ".tool_calls[0].function.arguments",
         "must be a string"),
        (answer(tool_calls=[{"function": {"name": "f", "arguments": {"a": {1}}}}]),
         ".tool_calls[0].function.arguments", "is not JSON"),
        (answer(function_call=5), ".function_call", "must be an object"),
        (answer(tool_calls=[CALL], function_call={"name": "f"}), ".function_call", "older form of tool_calls"),
        ({"role": "user", "content": "a", "tool_calls": [CALL]}, ".tool_calls", "only messages of the assistant"),
        (answer(tools=5), ".tools", "must be a list"),
        (answer(content=5), ".content", "a string or a list of parts"),
        (answer(content={"type": "text", "text": "a"}), ".content", "a string or a list of parts"),
        (answer(content=[{"type": "thinking", "thinking": 5}]), ".content[0].thinking", "must be a string"),
        (answer(content=[{"type": "refusal"}]), ".content[0].refusal", "must be a string"),
        ({"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}, ".content[0]", "'thinking' are not"),
        (answer(refusal=5), ".refusal", "must be a string"),
        (answer(reasoning_content=[]), ".reasoning_content", "must be a string"),
        ({"role": ["user"], "content": "a"}, ".role", "role must be one of"),
        ({"content": "a"}, ".role", "role must be one of"),
        ({"role": "user", "content": "a", 5: 1}, ".5", "unknown message field '5'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_not_honored_is_named(message: dict[str, Any], param: str, problem: str) -> None:
    with pytest.raises(InvalidRequestError, match=problem) as caught:
        ChatRequest.of([{"role": "user", "content": "a"}, message])
    assert caught.value.param == f"messages[1]{param}"


def test_the_schema_of_messages_has_every_field() -> None:
    schema = schemas("openai")["messages"]["items"]
    every = {*messages._KNOWN, *messages._WITHOUT_MEANING, *messages._REFUSED}
    assert set(schema["properties"]) == every
    for kind in (ChatCompletionMessage, ParsedChatCompletionMessage):
        jsonschema.validate(kind.model_validate(answer(tool_calls=[CALL])).model_dump(), schema)

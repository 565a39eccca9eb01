"""Anthropic bodies: every parameter of the official client is honoured or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import jsonschema
import pytest
from anthropic.types import (
    ContentBlockParam,
    MessageCountTokensParams,
    TextBlockParam,
    ToolParam,
    ToolResultBlockParam,
    ToolUnionParam,
    ToolUseBlockParam,
    message_create_params,
    tool_result_block_param,
)
from anthropic.types.beta import message_count_tokens_params as beta_count
from anthropic.types.beta import message_create_params as beta_create
from typing_extensions import get_type_hints  # Python 3.10's own leaves `Required` where it is

from glm4.api.anthropic import MessageRequest, parse_count, parse_message
from glm4.api.anthropic.fields import COUNT_FIELDS, MESSAGE_FIELDS, REFUSED, REFUSED_HEADERS
from glm4.api.fields import body_schema
from glm4.chat.messages import Message, ToolCall
from glm4.chat.parts import ImagePart, TextPart
from glm4.chat.tool_choice import ToolChoice
from glm4.errors import InvalidRequestError
from glm4.sampling_params import SamplingParams

DEFAULTS = SamplingParams(temperature=0.7)
HI = [{"role": "user", "content": "hi"}]
TOOL = {"name": "f", "description": "Does f.", "input_schema": {"type": "object", "properties": {}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
HEADERS = {"user_profile_id": "anthropic-user-profile-id", "workspace_id": "anthropic-workspace-id"}


def parse(**fields: Any) -> MessageRequest:
    return parse_message({"model": "m", "max_tokens": 9, "messages": HI, **fields}, DEFAULTS)


def conversation(*messages: dict[str, Any], **fields: Any) -> list[Message]:
    return list(parse(messages=list(messages), **fields).chat.messages)


# Field -> a value, and what a `MessageRequest` that honours it says.
HONOURED: dict[str, tuple[Any, Callable[[Any], object]]] = {
    "model": ("x", lambda r: r == parse()),  # found by `ServerState.target`
    "messages": (HI, lambda r: r.chat.messages == (Message("user", "hi"),)),
    "system": ("Be brief.", lambda r: r.chat.messages[0] == Message("system", "Be brief.")),
    "tools": ([TOOL], lambda r: r.chat.tools[0]["function"]["parameters"] == TOOL["input_schema"]),
    "tool_choice": ({"type": "none"}, lambda r: r.chat.tool_choice == ToolChoice("none")),
    "max_tokens": (5, lambda r: r.chat.params.max_tokens == r.max_tokens == 5),
    "stop_sequences": (["a", "b"], lambda r: r.chat.params.stop_strings == ("a", "b")),
    "temperature": (0, lambda r: r.chat.params.temperature == 0),
    "top_p": (0.5, lambda r: r.chat.params.top_p == 0.5),
    "top_k": (3, lambda r: r.chat.params.top_k == 3),
    "stream": (True, lambda r: r.stream),
    "thinking": ({"type": "disabled"}, lambda r: r.thinking == "hidden"),
    "output_config": (
        {"effort": "high", "format": {"type": "json_schema", "schema": SCHEMA}},
        lambda r: r.chat.params.structured_outputs.json == SCHEMA,
    ),
    "context_management": (
        {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        lambda r: r.manages_context,
    ),
    "diagnostics": ({"previous_message_id": "msg_1"}, lambda r: r.compares_cache),
    # Hints, labels and the only value there is: taken, and nothing else is changed by them.
    "cache_control": ({"type": "ephemeral", "ttl": "1h"}, lambda r: r == parse()),
    "metadata": ({"user_id": "u"}, lambda r: r == parse()),
    "service_tier": ("auto", lambda r: r == parse()),
    "speed": ("standard", lambda r: r == parse()),
}
PARAMETERS = {
    *message_create_params.MessageCreateParamsBase.__annotations__,
    *message_create_params.MessageCreateParamsStreaming.__annotations__,
    *beta_create.MessageCreateParamsBase.__annotations__,
} - {"betas"}  # the name of a header the server does not look at


@pytest.mark.parametrize("name", sorted(PARAMETERS | set(MESSAGE_FIELDS) | set(REFUSED)))
def test_every_parameter_is_honoured_or_refused(name: str) -> None:
    if name in HEADERS:
        assert name in REFUSED_HEADERS[HEADERS[name]]  # test_messages.py sends them
    elif name in MESSAGE_FIELDS:
        value, honoured = HONOURED[name]
        assert honoured(parse(**{name: value}))
        if name not in ("max_tokens", "messages", "model"):
            assert parse(**{name: None}) == parse()
    else:
        with pytest.raises(InvalidRequestError, match=name) as caught:
            parse(**{name: {}})
        assert caught.value.param == name
        parse(**{name: None})


def test_every_parameter_of_counting_is_honoured_or_refused() -> None:
    names = {*MessageCountTokensParams.__annotations__, *beta_count.MessageCountTokensParams.__annotations__}
    for name in names - {"betas"} - set(HEADERS):
        body = {"messages": HI}
        if name in COUNT_FIELDS:
            parse_count(body | {name: HONOURED[name][0]}, DEFAULTS)
        else:
            with pytest.raises(InvalidRequestError, match=name):
                parse_count(body | {name: {}}, DEFAULTS)
    assert set(body_schema(COUNT_FIELDS, ["messages"])["properties"]) == set(COUNT_FIELDS)


def literal(params: Any, name: str = "type") -> str:
    return str(get_args(get_type_hints(params)[name])[0])


@pytest.mark.parametrize("block", get_args(ContentBlockParam), ids=literal)
def test_every_block_is_read_or_refused(block: Any) -> None:
    """Each in the turn it belongs to."""
    kind = literal(block)
    given: dict[str, dict[str, Any]] = {
        "text": {"text": "t"},
        "thinking": {"thinking": "t", "signature": "s"},
        "redacted_thinking": {"data": "d"},
        "tool_use": {"id": "i", "name": "f", "input": {}},
        "tool_result": {"tool_use_id": "i", "content": "t"},
        "document": {"source": {"type": "text", "media_type": "text/plain", "data": "t"}},
        "search_result": {"source": "s", "title": "h", "content": [{"type": "text", "text": "t"}]},
        "image": {"source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
    }
    role = "assistant" if kind in ("thinking", "redacted_thinking", "tool_use") else "user"
    messages = [{"role": role, "content": [{"type": kind, **given.get(kind, {})}]}, *HI]
    if kind in given:
        assert parse(messages=messages).chat.messages[-1].text.endswith("hi")
    else:
        with pytest.raises(InvalidRequestError) as caught:
            parse(messages=messages)
        assert caught.value.param == "messages.0.content.0.type"


@pytest.mark.parametrize(
    ("params", "place", "refused"),
    [
        (TextBlockParam, [{"type": "text", "text": "t"}], {}),
        (ToolUseBlockParam, [{"type": "tool_use", "id": "i", "name": "f", "input": {}}], {"toolset_name": "x"}),
        (ToolResultBlockParam, [{"type": "tool_result", "tool_use_id": "i"}], {"toolset_name": "x"}),
    ],
)
def test_every_member_of_a_block_is_read_or_refused(params: Any, place: Any, refused: dict[str, Any]) -> None:
    values = {"cache_control": {"type": "ephemeral"}, "citations": [], "caller": {"type": "direct"}} | refused
    values |= {"content": "t", "is_error": True}
    role = "assistant" if place[0]["type"] == "tool_use" else "user"
    for name in params.__annotations__:
        messages = [{"role": role, "content": [{name: values.get(name), **place[0]}]}, *HI]
        if name in refused:
            with pytest.raises(InvalidRequestError, match=name):
                parse(messages=messages)
        else:
            parse(messages=messages)


@pytest.mark.parametrize("tool", get_args(ToolUnionParam), ids=lambda tool: tool.__name__)
def test_tools_of_anthropics_own_are_refused_by_name(tool: Any) -> None:
    if tool is ToolParam:
        taken = {"cache_control": {"type": "ephemeral"}, "allowed_callers": ["direct"], "defer_loading": False}
        taken |= {"eager_input_streaming": True, "input_examples": [{"a": 1}], "strict": True, "type": "custom"}
        assert set(ToolParam.__annotations__) == {*TOOL, *taken}
        function = parse(tools=[TOOL | taken]).chat.tools[0]["function"]
        assert function["strict"] is True
        assert function["description"] == 'Does f.\nExample of an input: {"a": 1}'
        return
    kind = literal(tool)
    with pytest.raises(InvalidRequestError, match=kind) as caught:
        parse(tools=[TOOL, {"type": kind, "name": "g"}])
    assert caught.value.param == "tools.1.type"


PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


def test_pictures_are_read_where_people_and_tools_show_them() -> None:
    shown = [{"type": "text", "text": "see"}, PICTURE]
    failed = {"type": "tool_result", "tool_use_id": "i", "is_error": True, "content": [PICTURE]}
    link = {"type": "image", "source": {"type": "url", "url": "http://e.com/a"}, "cache_control": {"type": "ephemeral"}}
    turns = [
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "i", "content": shown}, failed]},
        {"role": "user", "content": [*shown, link]},
    ]
    jsonschema.validate(turns, MESSAGE_FIELDS["messages"].schema)
    picture = ImagePart(b"\0\0\0")
    result, error, user = conversation(*turns)
    assert result.content == (TextPart("see"), picture)
    assert error.content == (TextPart("Error: "), picture)
    assert user.content == (TextPart("see"), picture, ImagePart(url="http://e.com/a"))
    assert [getattr(part, "where", "") for part in user.content] == ["", "messages.1.content.1", "messages.1.content.2"]
    assert getattr(result.content[1], "where", "") == "messages.0.content.0.content.1"


@pytest.mark.parametrize(
    ("source", "place"),
    [
        (None, ".source"),
        ({"type": "file", "file_id": "f"}, ".source.type"),
        ({"type": "base64", "data": "AAAA"}, ".source.media_type"),
        ({"type": "base64", "media_type": "text/plain", "data": "AAAA"}, ""),
        ({"type": "base64", "media_type": "image/png", "data": "?"}, ""),
        ({"type": "url", "url": "ftp://e.com"}, ""),
    ],
)
def test_malformed_pictures_are_named(source: Any, place: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        conversation({"role": "user", "content": [{"type": "image", "source": source}]})
    assert caught.value.param == f"messages.0.content.0{place}"


def test_what_tools_return_is_read_or_refused() -> None:
    for part in get_args(tool_result_block_param.Content):
        kind = literal(part)
        block = {"type": "tool_result", "tool_use_id": "i", "content": [{"type": kind, "text": "t"}]}
        if kind == "text":
            assert conversation({"role": "user", "content": [block]}) == [Message("tool", "t", tool_call_id="i")]
        else:
            with pytest.raises(InvalidRequestError, match=r"messages\.0\.content\.0\.content\.0"):
                conversation({"role": "user", "content": [block]})


def test_a_conversation_with_everything() -> None:
    messages = conversation(
        {"role": "user", "content": "one"},
        {"role": "user", "content": [{"type": "text", "text": "two"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "i", "name": "f", "input": {"ä": 1}},
                {"type": "tool_use", "id": "j", "name": "f", "input": {"INVALID_JSON": "{oh"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "i", "content": [{"type": "text", "text": "r"}]},
                {"type": "tool_result", "tool_use_id": "j", "is_error": True, "content": "bad"},
                {"type": "text", "text": "three"},
            ],
        },
        {"role": "system", "content": "Now in French."},
        {"role": "user", "content": "four"},
        system=[{"type": "text", "text": "x-anthropic-billing-header: cch=1;"}, {"type": "text", "text": "S"}],
    )
    assert messages == [
        Message("system", "S"),
        Message("user", [TextPart("one"), TextPart("two")]),
        Message(
            "assistant",
            "I look.",
            reasoning="hm",
            tool_calls=(ToolCall("i", "f", '{"ä": 1}'), ToolCall("j", "f", "{oh")),
        ),
        Message("tool", "r", tool_call_id="i"),
        Message("tool", "Error: bad", tool_call_id="j"),
        Message("user", "three"),
        Message("system", "Now in French."),
        Message("user", "four"),
    ]


@pytest.mark.parametrize(
    ("value", "choice", "parallel"),
    [
        ({"type": "auto"}, "auto", True),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}, True),
        ({"type": "none"}, "none", True),
    ],
)
def test_tool_choice(value: Any, choice: Any, parallel: bool) -> None:
    chat = parse(tools=[TOOL], tool_choice=value).chat
    assert (chat.tool_choice, chat.parallel_tool_calls) == (ToolChoice.read(choice), parallel)


def test_thinking() -> None:
    assert parse().thinking == "shown"
    assert parse(thinking={"type": "enabled", "budget_tokens": 1024}).thinking == "shown"
    assert parse(thinking={"type": "adaptive", "display": "omitted"}).thinking == "omitted"


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("max_tokens", {"max_tokens": None}),
        ("max_tokens", {"max_tokens": -1}),
        ("max_tokens", {"max_tokens": True}),
        ("max_tokens", {"max_tokens": 0, "stream": True}),
        ("messages", {"messages": None}),
        ("messages", {"messages": []}),
        ("messages", {"messages": "hi"}),
        ("messages", {"messages": [{"role": "user", "content": []}]}),
        ("messages.0", {"messages": [1]}),
        ("messages.0.content", {"messages": [{"role": "user"}]}),
        ("messages.0.content", {"messages": [{"role": "user", "content": 1}]}),
        ("messages.0.name", {"messages": [{"role": "user", "content": "hi", "name": "x"}]}),
        ("messages.0.role", {"messages": [{"role": "tool", "content": "hi"}]}),
        ("messages.0.role", {"messages": [{"role": ["user"], "content": "hi"}]}),
        ("messages.0.content.0", {"messages": [{"role": "user", "content": ["hi"]}]}),
        ("messages.0.content.0.type", {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}),
        ("messages.0.content.0.text", {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}),
        ("system.0.type", {"system": [{"type": "image"}]}),
        ("stop_sequences", {"stop_sequences": "x"}),
        ("stop_sequences", {"stop_sequences": [""]}),
        ("stop_sequences", {"stop_sequences": ["x"] * 17}),
        ("temperature", {"temperature": "hot"}),
        ("top_k", {"top_k": -1}),
        ("tools", {"tools": {}}),
        ("tools.0.name", {"tools": [TOOL | {"name": "a b"}]}),
        ("tools.0.input_schema", {"tools": [{"name": "f"}]}),
        ("tools.0.defer_loading", {"tools": [TOOL | {"defer_loading": True}]}),
        ("tools.0.colour", {"tools": [TOOL | {"colour": "red"}]}),
        ("tools.1.name", {"tools": [TOOL, TOOL]}),
        ("tool_choice.type", {"tool_choice": {"type": "required"}}),
        ("tool_choice", {"tool_choice": {"type": "any"}}),
        ("tool_choice", {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}),
        ("tool_choice.name", {"tools": [TOOL], "tool_choice": {"type": "any", "name": "f"}}),
        ("thinking.type", {"thinking": {"type": "always"}}),
        ("thinking.budget_tokens", {"thinking": {"type": "enabled"}}),
        ("thinking.budget_tokens", {"thinking": {"type": "enabled", "budget_tokens": "many"}}),
        ("output_config.effort", {"output_config": {"effort": "heroic"}}),
        ("output_config.task_budget", {"output_config": {"task_budget": {}}}),
        ("output_config.format.schema", {"output_config": {"format": {"type": "json_schema", "schema": []}}}),
        ("context_management.edits.0.type", {"context_management": {"edits": [{"type": "compact_20260112"}]}}),
        ("metadata.name", {"metadata": {"name": "x"}}),
        ("cache_control.type", {"cache_control": {"type": "eternal"}}),
        ("speed", {"speed": "fast"}),
        ("max_token", {"max_token": 1}),
    ],
)
def test_impossible_values_are_refused_by_name(param: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(**fields)
    assert caught.value.param == param


def test_the_beginning_of_an_answer() -> None:
    begun = parse(messages=[*HI, {"role": "assistant", "content": "The sun is"}])
    assert begun.chat.messages == (Message("user", "hi"), Message("assistant", "The sun is"))
    assert begun.chat.continue_final_message
    assert parse(messages=[*HI, {"role": "assistant", "content": ""}]) == parse()
    call = {"type": "tool_use", "id": "i", "name": "f", "input": {}}
    for messages, fields in (
        ([*HI, {"role": "assistant", "content": [call]}], {}),
        ([{"role": "assistant", "content": "alone"}], {}),
        ([*HI, {"role": "assistant", "content": "{"}], {"tools": [TOOL], "tool_choice": {"type": "any"}}),
        ([*HI, {"role": "assistant", "content": "{"}], {"output_config": HONOURED["output_config"][0]}),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            parse(messages=messages, **fields)
        assert caught.value.param == "messages"

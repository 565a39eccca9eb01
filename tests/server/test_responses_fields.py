"""The field walk: every field of OpenAI's Responses API is honoured, a label, or refused with a 400 that names it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from openai.types.responses import input_token_count_params, response_create_params
from pydantic import BaseModel, ConfigDict

from glm4.api.fields import LABELS
from glm4.api.responses.request import (
    INPUT_TOKENS_FIELDS,
    REFUSED,
    RESPONSES_FIELDS,
    parse_input_tokens,
    parse_responses,
)
from glm4.chat.parts import AudioPart, ImagePart, TextPart
from glm4.errors import InvalidRequestError
from glm4.sampling_params import SamplingParams
from glm4.server.config import ModelSpec, ServerConfig
from live import LiveServer, serve
from tiny import write_folder

DEFAULTS = SamplingParams(temperature=0.7, repetition_penalty=1.1)
BODY = {"input": "hi"}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Paris"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
CREATE = frozenset(
    {
        *response_create_params.ResponseCreateParamsNonStreaming.__annotations__,
        *response_create_params.ResponseCreateParamsStreaming.__annotations__,
    }
)
COUNT = frozenset(input_token_count_params.InputTokenCountParams.__annotations__)

# Field → a value that makes another request of it, and what else the field needs.
TELLING: dict[str, tuple[Any, dict[str, Any]]] = {
    "input": ([{"role": "user", "content": "ho"}], {}),
    "instructions": ("be brief", {}),
    "previous_response_id": ("resp_1", {}),
    "tools": ([WEATHER], {}),
    "tool_choice": ("none", {"tools": [WEATHER]}),
    "parallel_tool_calls": (False, {}),
    "text": ({"format": {"type": "json_object"}}, {}),
    "reasoning": ({"effort": "medium"}, {}),
    "include": (["message.output_text.logprobs"], {}),
    "max_output_tokens": (9, {}),
    "max_tool_calls": (3, {}),
    "top_logprobs": (3, {}),
    "metadata": ({"a": "b"}, {}),
    "store": (False, {}),
    "stream": (True, {}),
    "chat_template_kwargs": ({"enable_thinking": False}, {}),
    "temperature": (0, {}),
    "top_p": (0.5, {}),
    "top_k": (7, {}),
    "min_p": (0.1, {}),
    "min_tokens": (2, {}),
    "seed": (1, {}),
    "presence_penalty": (0.5, {}),
    "frequency_penalty": (-0.5, {}),
    "repetition_penalty": (1.3, {}),
    "stop": ("x", {}),
    "stop_token_ids": ([5], {}),
    "ignore_eos": (True, {}),
    "include_stop_str_in_output": (True, {}),
    "skip_special_tokens": (False, {}),
    "logit_bias": ({"12": -5}, {}),
}
# Fields of which only what happens anyway is done.
ONE_VALUE: dict[str, tuple[Any, Any]] = {
    "truncation": ("disabled", "auto"),
    "background": (False, True),
    "service_tier": ("auto", "priority"),
}


def parse(body: dict[str, Any], *, thinks: bool = False) -> Any:
    return parse_responses(body, DEFAULTS, thinks=thinks)


def named(body: dict[str, Any], *, thinks: bool = False) -> str | None:
    """The field that the error names."""
    with pytest.raises(InvalidRequestError) as caught:
        parse(body, thinks=thinks)
    return caught.value.param


def test_every_field_of_openai_is_decided() -> None:
    assert len(CREATE) > 30
    assert CREATE - set(RESPONSES_FIELDS) - set(REFUSED) == set()
    assert COUNT - set(INPUT_TOKENS_FIELDS) - set(REFUSED) == set()
    assert not set(REFUSED) & set(RESPONSES_FIELDS)
    for name in REFUSED:
        with pytest.raises(InvalidRequestError, match=name) as caught:
            parse(BODY | {name: "x"})
        assert caught.value.param == name
        assert REFUSED[name] in str(caught.value)
    for name in COUNT - set(INPUT_TOKENS_FIELDS):
        with pytest.raises(InvalidRequestError) as caught:
            parse_input_tokens(BODY | {name: "x"}, DEFAULTS, thinks=False)
        assert caught.value.param == name


# `cache_salt` is read with the key, before the rest; see test_keys.
@pytest.mark.parametrize("name", sorted(set(RESPONSES_FIELDS) - {"cache_salt"}))
def test_every_field_changes_the_request_or_is_a_label(name: str) -> None:
    plain = parse(BODY)
    if name not in BODY:
        assert same(parse(BODY | {name: None}), plain)
    if name in LABELS:
        changed = parse(BODY | {name: "someone"})
        assert changed.echo == plain.echo | {name: "someone"}
    elif name in ONE_VALUE:
        done, other = ONE_VALUE[name]
        assert same(parse(BODY | {name: done}), plain)
        assert named(BODY | {name: other}) == name
    elif name == "stream_options":
        assert same(
            parse(BODY | {"stream": True, name: {"include_obfuscation": False}}), parse(BODY | {"stream": True})
        )
        assert named(BODY | {"stream": True, name: {"include_obfuscation": True}}) == f"{name}.include_obfuscation"
        assert named(BODY | {name: {"include_obfuscation": False}}) == name
    elif name != "model":  # which the server reads
        value, needs = TELLING[name]
        assert not same(parse(BODY | needs | {name: value}), parse(BODY | needs))
        wrong = named(BODY | {name: [[1]]})
        assert wrong is not None
        assert wrong.startswith(name)


def same(one: Any, other: Any) -> bool:
    """Whether two requests are alike, but for the ids that their input gets."""

    def comparable(request: Any) -> Any:
        items = [{key: value for key, value in item.items() if key != "id"} for item in request.items]
        return {**vars(request), "items": items}

    return bool(comparable(one) == comparable(other))


CODE_CALL = {"type": "code_interpreter_call", "container_id": "c", "code": "1"}
IMAGE = {"type": "input_image", "image_url": "https://example.com/a.png"}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}}


def test_pictures_and_sounds_reach_the_request() -> None:
    """They are stored as they came; what they hold is read when the conversation is put together."""
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    said = {"role": "user", "content": [{"type": "input_text", "text": "see"}, IMAGE, AUDIO]}
    output = {"type": "function_call_output", "call_id": "c", "output": [IMAGE]}
    request = parse_responses({"input": [said, call, output]}, DEFAULTS, thinks=False)
    assert request.items[0]["content"][1:] == [IMAGE | {"detail": "auto"}, AUDIO]
    user, _, tool = request.chat([], request.items).messages
    picture = ImagePart(url="https://example.com/a.png")
    assert user.content == (TextPart("see"), picture, AudioPart(b"\0\0\0"))
    assert tool.content == (picture,)
    again = parse_responses({"input": [said]}, DEFAULTS, thinks=False)
    messages = again.chat(request.items, again.items).messages
    assert messages[-1] == user
    assert [[getattr(part, "where", "") for part in messages[at].content][1] for at in (0, -1)] == [
        "previous_response_id",
        "input[0].content[1]",
    ]
    for part in (IMAGE | {"image_url": "data:image/png;base64,?"}, {"type": "input_audio", "input_audio": "x"}):
        broken = parse_responses({"input": [{"role": "user", "content": [part]}]}, DEFAULTS, thinks=False)
        with pytest.raises(InvalidRequestError, match=r"input\[0\]\.content\[0\]"):
            broken.chat([], broken.items)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": 5}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": "x", "name": "y"}]}, "input[0].name"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].image_url"),
        ({"input": [{"role": "user", "content": [IMAGE | {"detail": "huge"}]}]}, "input[0].content[0].detail"),
        ({"input": [{"role": "user", "content": [IMAGE | {"file_id": "f"}]}]}, "input[0].content[0].file_id"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "assistant", "content": [IMAGE]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"role": "user", "content": "x", "status": "done"}]}, "input[0].status"),
        ({"input": [{"role": "user", "content": "x", "id": 4}]}, "input[0].id"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f\ng", "arguments": ""}]}, "input[0].name"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": 5}]}, "input[0].output"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "reasoning", "summary": [{"type": "x"}]}]}, "input[0].summary[0]"),
        ({"input": [{"type": "item_reference"}]}, "input[0].id"),
        ({"input": [{"type": "code_interpreter_call"}]}, "input[0].container_id"),
        ({"input": [CODE_CALL | {"outputs": [{"type": "logs"}]}]}, "input[0].outputs[0]"),
        ({"input": [CODE_CALL | {"code": 5}]}, "input[0].code"),
        ({"input": [CODE_CALL | {"id": 5}]}, "input[0].id"),
        ({"input": [CODE_CALL | {"status": "done"}]}, "input[0].status"),
        ({"input": [{"type": "web_search_call", "action": 5}]}, "input[0].action"),
        ({"input": [{"type": "file_search_call", "queries": [5]}]}, "input[0].queries"),
        ({"input": [{"type": "mcp_call", "server_label": "x", "name": "y"}]}, "input[0].arguments"),
        ({"input": [{"type": "mcp_list_tools", "server_label": "x", "tools": [{}]}]}, "input[0].tools"),
        ({"input": [{"role": "user", "content": "a", "id": "m"}, {"id": "m"}]}, "input[1].id"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": True}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"temperature": -1}, "temperature"),
        ({"reasoning": {"effort": "heroic"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"reasoning": {"context": "all_turns"}}, "reasoning.context"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"text": {"format": {"type": "text", "name": "x"}}}, "text.format.name"),
        ({"tools": [{"type": "image_generation"}]}, "tools[0].type"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0].require_approval"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].function"),
        ({"tools": [WEATHER | {"defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "other"}, "tools": [WEATHER]}, "tool_choice"),
        ({"tool_choice": {"type": "function"}, "tools": [WEATHER]}, "tool_choice.name"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "none", "tools": [WEATHER]}}, "tool_choice.mode"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice.tools"),
        ({"no_such_field": 1}, "no_such_field"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named(body: dict[str, Any], param: str) -> None:
    assert named((BODY if body else {}) | body) == param


def test_tools_and_choices_in_the_form_of_chat_completions() -> None:
    other = {"type": "function", "name": "other", "description": None, "parameters": None, "strict": True}
    body = BODY | {"tools": [WEATHER, other, {"type": "python"}]}
    function = {key: WEATHER[key] for key in ("name", "parameters")}
    chat = [
        {"type": "function", "function": function},
        {"type": "function", "function": {"name": "other", "strict": True}},
    ]
    assert list(parse(body).options["tools"] or ()) == [*chat, {"type": "python"}]
    named_one = parse(body | {"tool_choice": {"type": "function", "name": "other"}})
    assert named_one.options["tool_choice"] == {"type": "function", "function": {"name": "other"}}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "other"}]}
    some = parse(body | {"tool_choice": allowed})
    assert (list(some.options["tools"]), some.options["tool_choice"], some.echo["tool_choice"]) == (
        [chat[1]],
        "required",
        allowed,
    )


# A real model with random weights: what it says is forced, or it would be noise.


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = write_folder(tmp_path_factory.mktemp("model") / "m", chat_template=None)
    spec = ModelSpec(str(folder), ("tiny",), {"max_model_len": 2048, "max_num_seqs": 4, "dtype": "fp32"})
    with serve(ServerConfig((spec,))) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_a_text_model_refuses_pictures_by_their_place(client: openai.OpenAI) -> None:
    said: Any = {"role": "user", "content": [{"type": "input_text", "text": "see"}, IMAGE]}
    jsonschema.validate([said], RESPONSES_FIELDS["input"].schema)
    with pytest.raises(openai.BadRequestError, match="cannot use a content part of type 'input_image'") as caught:
        client.responses.create(model="tiny", input=[said])
    assert caught.value.param == "input[0].content[1]"


class Forecast(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sunny: bool
    degrees: int


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "get_weather"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]},
    ],
    ids=["required", "function", "allowed"],
)
def test_a_forced_call_fits_its_schema(client: openai.OpenAI, choice: Any, stream: bool) -> None:
    for seed in range(3):
        body = {"model": "tiny", "input": "x", "tools": [WEATHER], "tool_choice": choice, "max_output_tokens": 200}
        body |= {"parallel_tool_calls": False, "extra_body": {"seed": seed}}
        if stream:
            *_, last = client.responses.create(**body, stream=True)
            response = last.response
        else:
            response = client.responses.create(**body)
        (call,) = response.output
        assert (call.type, call.name, response.status) == ("function_call", "get_weather", "completed")
        jsonschema.validate(json.loads(call.arguments), WEATHER["parameters"])


def test_parsed_answers(client: openai.OpenAI) -> None:
    response = client.responses.parse(model="tiny", input="x", text_format=Forecast, max_output_tokens=200)
    assert isinstance(response.output_parsed, Forecast)
    with client.responses.stream(model="tiny", input="x", text_format=Forecast, max_output_tokens=200) as events:
        for event in events:
            if event.type == "response.output_text.done":
                assert isinstance(event.parsed, Forecast)
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": {"const": "foooooo"}}}
    made = client.responses.create(model="tiny", input="x", text=form, max_output_tokens=50)
    assert json.loads(made.output_text) == "foooooo"
    assert made.text is not None
    assert made.text.format is not None
    assert made.text.format.to_dict() == form["format"]


@pytest.mark.parametrize(
    ("body", "param", "word"),
    [
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}}, "text.format", "not"),
        ({"input": "x" * 4000}, "input", "4"),
        ({"input": [], "previous_response_id": None}, "input", "empty"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input", "empty"),
        ({"input": [{"id": "msg_none"}]}, "input", "msg_none"),
        ({"model": "other"}, "model", "other"),
        ({"stop_token_ids": [100000]}, "stop_token_ids", ""),
        ({"tool_choice": "required", "tools": [WEATHER | {"parameters": {"not": {}}}]}, "tools[0].parameters", "not"),
    ],
)
def test_what_the_server_refuses_later_is_named_too(
    server: LiveServer, body: dict[str, Any], param: str, word: str
) -> None:
    with server.client() as http:
        for path in ("/v1/responses", "/v1/responses/input_tokens"):
            if path.endswith("tokens") and not set(body) <= set(INPUT_TOKENS_FIELDS):
                continue
            response = http.post(path, json=BODY | body)
            assert response.status_code in (400, 404), response.text
            error = response.json()["error"]
            assert error["param"] == param
            assert word in error["message"]

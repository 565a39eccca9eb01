"""/v1/messages: errors as the official client raises them, thinking, the prompt cache, what Claude Code sends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import jsonschema
import pytest
from anthropic.types.beta import BetaMessage, BetaMessageTokensCount, BetaRawMessageStreamEvent
from messages_client import TOOL, ask, client_of, events_of, only_known, streamed
from pydantic import BaseModel

from glm4.api.anthropic.fields import REFUSED_HEADERS
from live import LiveServer, config, serve
from scripted_llm import scripted_llm
from tiny import write_folder


def answer(prompt: str) -> str:
    return "\n" + "word " * 200 if prompt.endswith("#long") else "\nFine."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    llm = scripted_llm(tmp_path_factory.mktemp("m"), answer, max_model_len=400_000, dialect="glm4")
    keyed = config("tiny", "claude-sonnet-4-5", api_keys=("right-key",), max_body_bytes=1 << 20)
    with serve(keyed, llm) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[anthropic.Anthropic]:
    with client_of(server, api_key="right-key") as made:
        yield made


IMAGE = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}


@pytest.mark.parametrize(
    ("changes", "raised", "kind", "text"),
    [
        ({"model": "other"}, anthropic.NotFoundError, "not_found_error", "other"),
        ({"messages": []}, anthropic.BadRequestError, "invalid_request_error", "messages: at least one"),
        ({"max_tokens": -1}, anthropic.BadRequestError, "invalid_request_error", "max_tokens"),
        ({"container": "c"}, anthropic.BadRequestError, "invalid_request_error", "container"),
        ({"user_profile_id": "u"}, anthropic.BadRequestError, "invalid_request_error", "user_profile_id"),
        ({"workspace_id": "w"}, anthropic.BadRequestError, "invalid_request_error", "workspace_id"),
        ({"system": "x" * 500_000}, anthropic.BadRequestError, "invalid_request_error",
         r"prompt is too long: 500\d\d\d tokens > 399999 maximum"),
        ({"system": "x" * 2_000_000}, anthropic.ContentTooLargeError, "request_too_large", "1 MB"),
        ({"messages": [*ask("x")["messages"], {"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]}]},
         anthropic.BadRequestError, "invalid_request_error",
         r"messages\.1\.content\.1: this model takes text only; cannot use a content part of type 'image'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_errors(
    client: anthropic.Anthropic, changes: dict[str, Any], raised: Any, kind: str, text: str, stream: bool
) -> None:
    with pytest.raises(raised, match=text) as caught:
        client.messages.create(**ask("x") | changes, stream=stream)
    assert type(caught.value) is raised
    assert caught.value.type == kind
    assert caught.value.request_id
    assert set(caught.value.body) == {"type", "error"}


def test_keys(server: LiveServer) -> None:
    with client_of(server, api_key="wrong-key") as client, pytest.raises(anthropic.AuthenticationError) as caught:
        client.messages.create(**ask("x"))
    assert caught.value.type == "authentication_error"
    with client_of(server, api_key=None, auth_token="right-key") as client:
        assert client.messages.create(**ask("x")).stop_reason == "end_turn"


def test_other_paths_and_bodies_have_anthropics_errors(server: LiveServer) -> None:
    with server.client(headers={"x-api-key": "right-key"}) as http:
        for method, path, body, status in (
            ("GET", "/v1/messages", b"", 405),
            ("POST", "/v1/messages/batches", b"{}", 404),
            ("POST", "/v1/messages", b"{", 400),
            ("POST", "/v1/messages/count_tokens", b"[]", 400),
            ("POST", "/v1/messages/count_tokens", b'{"messages": [], "max_tokens": 1}', 400),
        ):
            response = http.request(method, path, content=body)
            assert response.status_code == status
            assert response.json()["type"] == "error"
            assert set(response.json()["error"]) == {"type", "message"}


def test_headers_that_name_other_accounts_are_refused_when_counting(client: anthropic.Anthropic) -> None:
    for header in REFUSED_HEADERS:
        with pytest.raises(anthropic.BadRequestError):
            client.messages.count_tokens(model="tiny", messages=ask("x")["messages"], extra_headers={header: "x"})


def test_a_full_queue(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path, answer, max_num_seqs=1, delay=0.05)
    with (
        serve(config("tiny", max_queue=0), llm) as running,
        client_of(running) as client,
        client.messages.create(**ask("long") | {"max_tokens": 1000}, stream=True) as stream,
    ):
        assert next(iter(stream)).type == "message_start"
        with pytest.raises(anthropic.RateLimitError) as busy:
            client.messages.create(**ask("x"))
        assert busy.value.type == "rate_limit_error"
        assert busy.value.response.headers["retry-after"]


def test_an_error_in_the_middle_of_a_stream(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path, answer, delay=0.05)
    with serve(config("tiny", request_timeout=1), llm) as running, client_of(running) as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            list(client.messages.create(**ask("long") | {"max_tokens": 1000}, stream=True))
        assert caught.value.type == "timeout_error"


@pytest.mark.parametrize(
    ("thinking", "expected"),
    [
        (None, [("thinking", "Let me see."), ("text", "Done.")]),
        ({"type": "enabled", "budget_tokens": 1024}, [("thinking", "Let me see."), ("text", "Done.")]),
        ({"type": "adaptive", "display": "omitted"}, [("thinking", ""), ("text", "Done.")]),
        ({"type": "disabled"}, [("text", "Done.")]),
    ],
)
def test_thinking(tmp_path: Path, thinking: dict[str, Any] | None, expected: list[tuple[str, str]]) -> None:
    llm = scripted_llm(tmp_path, lambda prompt: "\nLet me see.\n</think>\n\nDone.", dialect="glm_z1")
    fields = {} if thinking is None else {"thinking": thinking}
    with serve(config("tiny"), llm) as running, client_of(running) as client:
        whole = client.messages.create(**ask("x", **fields))
        assert [(block.type, getattr(block, block.type)) for block in whole.content] == expected
        with client.messages.stream(**ask("x", **fields)) as stream:
            final = stream.get_final_message()
        assert [(block.type, getattr(block, block.type)) for block in final.content] == expected
        if expected[0][0] == "thinking":
            thoughts: list[Any] = [whole.content[0], final.content[0]]
            assert thoughts[0].signature == thoughts[1].signature != ""
        # and back again
        messages = [*ask("x")["messages"], {"role": "assistant", "content": whole.content}, *ask("y")["messages"]]
        assert client.messages.create(model="tiny", max_tokens=9, messages=messages).usage.output_tokens == 9
        with pytest.raises(anthropic.BadRequestError, match="thinks first"):
            client.messages.create(**ask("x") | {"messages": [*messages[:1], {"role": "assistant", "content": "So"}]})
        events = streamed(running, ask("x", **fields))
        kinds = [event.delta.type for event in events if event.type == "content_block_delta"]
        assert ("thinking_delta" in kinds) == (expected[0] == ("thinking", "Let me see."))


def test_silence_is_filled_with_pings(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path, answer, delay=0.05)
    with serve(config("tiny", keep_alive=0.01), llm) as running, running.client() as http:
        text = http.post("/v1/messages", json=ask("x", stream=True)).text
    assert text.count("event: ping\n") > 3
    assert "keep-alive" not in text


def test_cached_tokens_are_not_input_tokens(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    body = ask("x" * 300, temperature=0) | {"max_tokens": 4}
    with serve(config("tiny", source=str(folder))) as running, running.client() as http:
        first, second = (http.post("/v1/messages", json=body).json() for _ in range(2))
        delta = streamed(running, body)[-2].usage
    assert first["usage"]["cache_read_input_tokens"] == 0
    cached = second["usage"]["cache_read_input_tokens"]
    assert 200 < cached == delta.cache_read_input_tokens
    assert second["usage"]["input_tokens"] + cached == first["usage"]["input_tokens"]
    assert delta.input_tokens == second["usage"]["input_tokens"]
    assert second["content"] == first["content"]


def test_a_context_that_is_full(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path, answer, max_model_len=100)
    with serve(config("tiny"), llm) as running, client_of(running) as client:
        message = client.messages.create(**ask("long") | {"max_tokens": 1000})
    assert message.stop_reason == "model_context_window_exceeded"
    assert message.usage.input_tokens + message.usage.output_tokens <= 100


def claude_code_body() -> dict[str, Any]:
    """In the shape of Claude Code's requests: its fields, with texts of our own."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "file_path": {"type": "string", "description": "The absolute path"},
            "offset": {"type": "number"},
            "edits": {"type": "array", "items": {"type": "object", "additionalProperties": False}},
        },
        "required": ["file_path"],
        "additionalProperties": False,
    }
    names = ("Task", "Bash", "Glob", "Grep", "Read", "Edit", "Write", "WebFetch", "TodoWrite", "mcp__server__look-up")
    cached = {"type": "ephemeral"}
    reminder = {"type": "text", "text": "<system-reminder>\nAs you answer, mind the date.\n</system-reminder>"}
    call = {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"file_path": "README.md"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "1→# glm4", "is_error": False}
    return {
        "model": "claude-sonnet-4-5",
        "messages": [
            {"role": "user", "content": [reminder, {"type": "text", "text": "What is this?", "cache_control": cached}]},
            {"role": "system", "content": "The following skills are available: none."},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "I read.", "signature": "s"}, call]},
            {"role": "user", "content": [{**result, "cache_control": {**cached, "ttl": "1h"}}]},
        ],
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.0; cch=abc;"},
            {"type": "text", "text": "You are a command line tool for programmers.", "cache_control": cached},
            {"type": "text", "text": "Instructions.\n" * 500, "cache_control": {**cached, "scope": "global"}},
        ],
        "tools": [{"name": name, "description": f"{name}.\n" * 20, "input_schema": schema} for name in names],
        "metadata": {"user_id": json.dumps({"device_id": "d", "account_uuid": "", "session_id": "s"})},
        "max_tokens": 64000,
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "medium"},
        "temperature": 1,
        "stream": True,
    }


def test_what_claude_code_sends_is_answered(server: LiveServer) -> None:
    headers = {
        "x-api-key": "right-key",
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,context-management-2025-06-27,mid-conversation-system-2026-04-07",
        "anthropic-dangerous-direct-browser-access": "true",
        "x-app": "cli",
    }
    body = claude_code_body()
    with server.client(headers=headers, params={"beta": "true"}) as http:
        events = events_of(http.post("/v1/messages", json=body), BetaRawMessageStreamEvent)
        whole = http.post("/v1/messages", json=body | {"stream": False})
        counting = {name: body[name] for name in ("model", "messages", "system", "tools", "thinking")}
        counted = http.post("/v1/messages/count_tokens", json=counting)
    message = BetaMessage.model_validate(whole.json())
    only_known(message)
    assert (message.model, message.stop_reason) == ("claude-sonnet-4-5", "end_turn")
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "Fine."}]
    assert message.context_management is not None
    assert [event.type for event in events[:2]] == ["message_start", "content_block_start"]
    assert events[-2].delta.stop_reason == "end_turn"
    assert BetaMessageTokensCount.model_validate(counted.json()).input_tokens == message.usage.input_tokens


def test_the_billing_header_does_not_change_the_prompt(server: LiveServer, client: anthropic.Anthropic) -> None:
    body = claude_code_body()
    system, messages = body["system"], body["messages"]
    with_it = client.messages.count_tokens(model="tiny", system=system, messages=messages)
    without = client.messages.count_tokens(model="tiny", system=system[1:], messages=messages)
    assert with_it == without


def test_diagnostics(server: LiveServer, client: anthropic.Anthropic) -> None:
    message = client.messages.create(**ask("x", diagnostics={"previous_message_id": "msg_1"}))
    assert message.diagnostics is not None
    assert message.diagnostics.cache_miss_reason is not None
    assert message.diagnostics.cache_miss_reason.type == "unavailable"
    assert client.messages.create(**ask("x", diagnostics={"previous_message_id": None})).diagnostics is None


def test_the_beta_client(client: anthropic.Anthropic) -> None:
    """What `client.beta.messages` sends: ?beta=true, an anthropic-beta header, context_management."""
    edits: Any = {"edits": [{"type": "clear_thinking_20251015"}]}
    body = ask("x", tools=[TOOL], betas=["context-management-2025-06-27"], context_management=edits)
    with client.beta.messages.stream(**body) as stream:
        final: Any = stream.get_final_message()
    assert final.content[0].text == "Fine."
    counted = client.beta.messages.count_tokens(**{key: value for key, value in body.items() if key != "max_tokens"})
    assert counted.context_management is not None
    assert counted.context_management.original_input_tokens == counted.input_tokens == final.usage.input_tokens


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A real engine whose model writes noise: whatever form its answers have, the grammar gave it."""
    folder = write_folder(tmp_path_factory.mktemp("m") / "model", chat_template=None)
    with serve(config("tiny", source=str(folder))) as running:
        yield running


@pytest.mark.parametrize(
    "choice", [{"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "pick"}]
)
def test_forced_calls_fit_their_schema(random_model: LiveServer, choice: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "deep": {"type": "boolean"}},
        "required": ["colour", "deep"],
        "additionalProperties": False,
    }
    body = ask("x", tools=[{"name": "pick", "input_schema": schema}], tool_choice=choice)
    with client_of(random_model) as client:
        whole = client.messages.create(**body)
        with client.messages.stream(**body) as stream:
            final = stream.get_final_message()
    for message in (whole, final):
        calls: list[Any] = list(message.content)
        (call,) = calls
        assert message.stop_reason == "tool_use"
        assert call.name == "pick"
        jsonschema.validate(call.input, schema)


class Pick(BaseModel):
    colour: Literal["red", "green"]
    deep: bool


def test_parsed_answers(random_model: LiveServer) -> None:
    with client_of(random_model) as client:
        parsed = client.messages.parse(**ask("x", output_format=Pick, output_config={"effort": "low"}))
        assert isinstance(parsed.parsed_output, Pick)
        with client.messages.stream(**ask("x", output_format=Pick)) as stream:
            assert isinstance(stream.get_final_message().parsed_output, Pick)
        bad = {"format": {"type": "json_schema", "schema": {"not": {"type": "string"}}}}
        with pytest.raises(anthropic.BadRequestError, match="not"):
            client.messages.create(**ask("x", output_config=bad))


def test_no_tool_is_called_where_none_may_be(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path, lambda prompt: "get_weather\n{}", dialect="glm4")
    with serve(config("tiny"), llm) as running, client_of(running) as client:
        body = ask("x", tools=[TOOL], tool_choice={"type": "none"})
        message = client.messages.create(**body)
        assert [block.type for block in message.content] == ["text"]
        body.pop("max_tokens")
        assert client.messages.count_tokens(**body).input_tokens == message.usage.input_tokens

"""/v1/messages through the official client library: whole, streamed, with tools; every event has the official type."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, ToolUseBlock
from messages_client import TOOL, ask, client_of, only_known, streamed

from live import LiveServer, config, serve
from scripted_llm import scripted_llm

ANSWERS = {
    "hello": "\nHello, 世界!",
    "call": 'get_weather\n{"city": "Köln", "days": [1, 2]}',
    "both": '\nLet me look.\nget_weather\n{"city": "Bonn"}',
    "bare": "get_weather\n{}",
    "broken": 'get_weather\n{"city": Bonn}',
    "list": 'get_weather\n{"city": NaN}',
    "colours": "\nred green blue",
    "result": "\nIt is sunny.",
    "empty": "",
}


def answer(prompt: str) -> str:
    """What follows the last # of the prompt says which answer it is; or it is the beginning of one."""
    key = prompt.rpartition("#")[2]
    return ANSWERS.get(key, f" after {key!r}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    llm = scripted_llm(tmp_path_factory.mktemp("m"), answer, max_model_len=65536, dialect="glm4")
    with serve(config("tiny", "claude-sonnet-4-5"), llm) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[anthropic.Anthropic]:
    with client_of(server) as made:
        yield made


def test_a_whole_message(server: LiveServer, client: anthropic.Anthropic) -> None:
    message = client.messages.create(**ask("hello", system="Be brief.", metadata={"user_id": "u"}))
    only_known(message)
    assert message.id.startswith("msg_")
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "Hello, 世界!"}]
    assert (message.model, message.role, message.stop_reason, message.stop_sequence) == (
        "tiny", "assistant", "end_turn", None,
    )  # fmt: skip
    counted = client.messages.count_tokens(model="tiny", system="Be brief.", messages=ask("hello")["messages"])
    assert message.usage.input_tokens == counted.input_tokens > 0
    assert message.usage.output_tokens == len(ANSWERS["hello"].encode()) + 1
    assert message.usage.cache_read_input_tokens == message.usage.cache_creation_input_tokens == 0
    with server.client() as http:
        raw = http.post("/v1/messages", json=ask("hello"))
        Message.model_validate(raw.json(), strict=True)
        assert raw.headers["request-id"] == raw.headers["x-request-id"]


def test_the_helpers_of_a_stream(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**ask("hello"))
    with client.messages.stream(**ask("hello")) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(pieces) == "Hello, 世界!"
    assert len(pieces) > 5  # as it is written
    assert [block.to_dict() for block in final.content] == [block.to_dict() for block in whole.content]
    assert (final.stop_reason, final.usage) == (whole.stop_reason, whole.usage)
    assert client.messages.create(**ask("hello"), stream=False).content == whole.content


def test_the_asynchronous_client(server: LiveServer) -> None:
    async def run() -> None:
        async with anthropic.AsyncAnthropic(base_url=server.url, auth_token="some-token", max_retries=0) as client:
            whole = await client.messages.create(**ask("hello"))
            async with client.messages.stream(**ask("hello")) as stream:
                text = "".join([piece async for piece in stream.text_stream])
                final = await stream.get_final_message()
            assert text == "Hello, 世界!"
            assert [block.to_dict() for block in final.content] == [block.to_dict() for block in whole.content]
            types = [event.type async for event in await client.messages.create(**ask("hello"), stream=True)]
            assert (types[0], types[-1]) == ("message_start", "message_stop")

    asyncio.run(run())


@pytest.mark.parametrize("key", ["call", "both", "bare", "hello", "empty"])
def test_a_streamed_answer_is_the_whole_one(server: LiveServer, client: anthropic.Anthropic, key: str) -> None:
    whole = client.messages.create(**ask(key, tools=[TOOL]))
    first, *middle, delta, last = streamed(server, ask(key, tools=[TOOL]))
    assert (first.type, delta.type, last.type) == ("message_start", "message_delta", "message_stop")
    assert first.message.content == []
    assert first.message.stop_reason is None
    blocks: list[dict[str, Any]] = []
    state = "content_block_stop"
    for event in middle:
        if event.type == "content_block_start":
            assert state == "content_block_stop"
            assert event.index == len(blocks)
            blocks.append({**event.content_block.to_dict(), "written": ""})
        elif event.type == "content_block_delta":
            assert state != "content_block_stop"
            assert event.index == len(blocks) - 1
            kinds = {"text": "text_delta", "tool_use": "input_json_delta"}
            assert event.delta.type == kinds[blocks[-1]["type"]]
            blocks[-1]["written"] += getattr(event.delta, "text", None) or getattr(event.delta, "partial_json", "")
        state = event.type
    assert [block["type"] for block in blocks] == [block.type for block in whole.content]
    for block, expected in zip(blocks, whole.content, strict=True):
        if expected.type == "text":
            assert block["written"] == expected.text
        elif expected.type == "tool_use":
            assert json.loads(block["written"]) == expected.input
            assert block["name"] == expected.name
    assert delta.delta.stop_reason == whole.stop_reason
    assert delta.usage.to_dict() == whole.usage.to_dict()


def test_a_tool_is_called_and_answers(client: anthropic.Anthropic) -> None:
    question = ask("call")["messages"]
    first = client.messages.create(**ask("call", tools=[TOOL]))
    (call,) = first.content
    assert isinstance(call, ToolUseBlock)
    assert first.stop_reason == "tool_use"
    assert call.id.startswith("toolu_")
    assert (call.name, call.input) == ("get_weather", {"city": "Köln", "days": [1, 2]})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "21 °C #result"}]}
    messages = [*question, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    with client.messages.stream(model="tiny", max_tokens=50, tools=[TOOL], messages=messages) as stream:
        final = stream.get_final_message()
    assert [block.to_dict() for block in final.content] == [{"type": "text", "text": "It is sunny."}]
    assert final.stop_reason == "end_turn"


def test_the_input_of_a_call_streams_while_it_is_written(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**ask("both", tools=[TOOL])) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        content: list[Any] = list(stream.get_final_message().content)
    text, call = content
    assert len(pieces) > 5
    assert json.loads("".join(pieces)) == {"city": "Bonn"} == call.input
    assert text.text == "Let me look.\n"


@pytest.mark.parametrize("key", ["broken", "list"])
def test_arguments_that_are_no_json(client: anthropic.Anthropic, key: str) -> None:
    message = client.messages.create(**ask(key, tools=[TOOL]))
    (call,) = message.content
    assert call.input == {"INVALID_JSON": ANSWERS[key].partition("\n")[2]}
    again = [*ask("x")["messages"], {"role": "assistant", "content": message.content}]
    again.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "is_error": True}]})
    assert client.messages.count_tokens(model="tiny", tools=[TOOL], messages=again).input_tokens > 0


def test_why_an_answer_ends(server: LiveServer, client: anthropic.Anthropic) -> None:
    stopped = client.messages.create(**ask("colours", stop_sequences=["violet", "green"]))
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "green")
    assert stopped.content[0].text == "red "
    cut = client.messages.create(**ask("colours") | {"max_tokens": 5})
    assert (cut.stop_reason, cut.stop_sequence, cut.usage.output_tokens) == ("max_tokens", None, 5)
    call = client.messages.create(**ask("call", tools=[TOOL]) | {"max_tokens": 20})
    assert call.stop_reason == "max_tokens"
    events = streamed(server, ask("colours", stop_sequences=["green"]))
    assert events[-2].delta.to_dict() == {"stop_reason": "stop_sequence", "stop_sequence": "green"}


def test_a_prompt_that_is_only_to_be_cached(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**ask("hello") | {"max_tokens": 0})
    assert (message.content, message.stop_reason, message.usage.output_tokens) == ([], "max_tokens", 0)


def test_the_model_goes_on_with_a_begun_answer(server: LiveServer, client: anthropic.Anthropic) -> None:
    """Also where the beginning could still become the name of a tool, and is held back by the parser."""
    for begun in ("The sun is", "get_wea"):
        messages = [*ask("x")["messages"], {"role": "assistant", "content": begun}]
        message = client.messages.create(model="tiny", max_tokens=50, tools=[TOOL], messages=messages)
        expected = f" after {'x' + chr(10) + begun!r}"
        assert [block.to_dict() for block in message.content] == [{"type": "text", "text": expected}]
        counted = client.messages.count_tokens(model="tiny", tools=[TOOL], messages=messages)
        assert counted.input_tokens == message.usage.input_tokens

"""OpenAI's own client library: chat, streams, tools, embeddings, models."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletionMessageParam
from sdk_server import CALL, KEY, QUESTION, WEATHER_TOOL, random_server, scripted_model, scripted_server

from live import LiveServer, config, serve
from stepped import stepped, until

HI: list[Any] = [{"role": "user", "content": "hi"}]
GREETING = "Hello, 世界!"


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with scripted_server(tmp_path_factory.mktemp("scripted") / "m") as running:
        yield running


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with random_server(tmp_path_factory.mktemp("random") / "m") as running:
        yield running


def connect(server: LiveServer, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60, **options)


@pytest.fixture
def client(scripted: LiveServer) -> Iterator[openai.OpenAI]:
    with connect(scripted) as made:
        yield made


@pytest.fixture
def real(random: LiveServer) -> Iterator[openai.OpenAI]:
    with connect(random) as made:
        yield made


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HI)
    assert answer.choices[0].message.content == GREETING
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(f"\n{GREETING}".encode()) + 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_stream(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    with client.chat.completions.create(model="alias", messages=HI, stream=True, stream_options=options) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == GREETING
    assert len([piece for piece in pieces if piece]) > 3
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(f"\n{GREETING}".encode()) + 1
    assert {chunk.model for chunk in chunks} == {"alias"}


def test_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=HI) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == GREETING == final.choices[0].message.content


def test_async(scripted: LiveServer) -> None:
    async def ask() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(base_url=f"{scripted.url}/v1", api_key=KEY) as client:
            whole = await client.chat.completions.create(model="tiny", messages=HI)
            async with await client.chat.completions.create(model="tiny", messages=HI, stream=True) as stream:
                pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return whole.choices[0].message.content, "".join(pieces)

    assert asyncio.run(ask()) == (GREETING, GREETING)


def test_several_loops_at_once(scripted: LiveServer) -> None:
    answers: list[list[str | None]] = []

    async def ask_five_times() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{scripted.url}/v1", api_key=KEY) as client:
            one = client.chat.completions.create
            got = await asyncio.gather(*(one(model="tiny", messages=HI) for _ in range(5)))
            return [answer.choices[0].message.content for answer in got]

    threads = [threading.Thread(target=lambda: answers.append(asyncio.run(ask_five_times()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [[GREETING] * 5] * 3


def test_tools_round_trip(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, QUESTION]
    answer = client.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER_TOOL])
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content is not None
    assert message.content.strip() == "Let me look."
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function"
    assert f"{call.function.name}\n{call.function.arguments}" == CALL
    result: ChatCompletionMessageParam = {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}
    messages += [message, result]
    final = client.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER_TOOL])
    assert final.choices[0].message.content == "It has 18 degrees in Paris."
    assert final.choices[0].finish_reason == "stop"
    assert final.choices[0].message.tool_calls is None


def test_tool_choice_none(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=[QUESTION], tools=[WEATHER_TOOL], tool_choice="none")
    assert answer.choices[0].message.tool_calls is None


def test_stream_helper_with_tools(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=[QUESTION], tools=[WEATHER_TOOL]) as stream:
        deltas = [event.arguments_delta for event in stream if event.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls is not None
    (call,) = final.choices[0].message.tool_calls
    assert "".join(deltas) == call.function.arguments
    assert len(deltas) > 10
    assert f"get_weather\n{call.function.arguments}" == CALL


def test_text_and_arguments_stream_while_the_model_still_writes(tmp_path: Path) -> None:
    """With tools present. The engine is stopped in the middle of text and arguments: what was said so far is there."""
    llm = scripted_model(tmp_path / "m")
    backend = stepped(llm)
    deltas: list[tuple[str, str]] = []  # text, arguments
    before, arguments = "\nLet me look.\n", CALL.partition("\n")[2]
    stops = [
        ("\nLet me", "Let me", ""),
        (f"{before}get_wea", "Let me look.\n", ""),
        (f'{before}get_weather\n{{"city": "P', "Let me look.\n", '{"city": "P'),
        (f"{before}{CALL[:-4]}", "Let me look.\n", arguments[:-4]),
    ]
    with serve(config(api_keys=(KEY,)), llm) as running, connect(running) as client:

        def listen() -> None:
            with client.chat.completions.create(
                model="tiny", messages=[QUESTION], tools=[WEATHER_TOOL], stream=True
            ) as stream:
                for chunk in stream:
                    delta = chunk.choices[0].delta
                    calls = [call.function for call in delta.tool_calls or () if call.function]
                    deltas.append((delta.content or "", "".join(call.arguments or "" for call in calls)))

        def wait_at(raw: str, text: str, arguments: str) -> None:
            size = len(raw.encode())
            backend.allow(size - backend.steps)
            until(lambda: backend.steps == size and backend.waits, "the engine is stopped")
            until(lambda: tuple(map("".join, zip(*deltas, strict=True))) == (text, arguments), f"{raw!r} is there")
            assert running.leftovers["running"] == 1

        listener = threading.Thread(target=listen)
        listener.start()
        try:
            for stop in stops:
                wait_at(*stop)
        finally:
            backend.open()
            listener.join()
    assert "".join(one for _, one in deltas) == arguments
    assert len([one for _, one in deltas if one]) > 10


def test_n_and_seed(real: openai.OpenAI) -> None:
    def ask(seed: int) -> list[str | None]:
        answer = real.chat.completions.create(
            model="tiny", messages=HI, n=3, seed=seed, max_tokens=12, temperature=1.0, extra_body={"ignore_eos": True}
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    first = ask(1)
    assert first == ask(1)
    assert first != ask(2)
    assert len(set(first)) == 3


def test_stop(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "count"}]
    answer = client.chat.completions.create(model="tiny", messages=messages, stop=[", three", "nothing"])
    assert answer.choices[0].message.content == "one, two"
    assert answer.choices[0].finish_reason == "stop"
    assert (
        client.chat.completions.create(model="tiny", messages=messages, max_tokens=4).choices[0].finish_reason
        == "length"
    )


def test_logprobs(real: openai.OpenAI) -> None:
    options: Any = {"model": "tiny", "messages": HI, "max_tokens": 5, "logprobs": True, "top_logprobs": 3, "seed": 4}
    answer = real.chat.completions.create(**options)
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    assert len(content) == answer.usage.completion_tokens
    for one in content:
        assert len(one.top_logprobs) == 3
        assert one.logprob <= one.top_logprobs[0].logprob <= 0
    with real.chat.completions.create(**options, stream=True) as stream:
        parts = [chunk.choices[0].logprobs for chunk in stream]
    assert [one for part in parts if part is not None for one in part.content or ()] == content


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "alias"]
    assert client.models.retrieve("alias").owned_by == "glm4"


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_embeddings(real: openai.OpenAI, encoding: Any) -> None:
    options = {} if encoding is None else {"encoding_format": encoding}
    answer = real.embeddings.create(model="tiny", input=["one", "two"], **options)
    assert [one.index for one in answer.data] == [0, 1]
    reference = real.embeddings.create(model="tiny", input="two", encoding_format="float").data[0].embedding
    vector: Any = answer.data[1].embedding
    if encoding == "base64":
        vector = np.frombuffer(base64.b64decode(vector), "<f4").tolist()
    assert vector == pytest.approx(reference, abs=1e-6)
    assert sum(value * value for value in reference) == pytest.approx(1)
    assert answer.usage.prompt_tokens > 0


class Reading(pydantic.BaseModel):
    """What the model is to fill in."""

    place: Literal["Paris", "Rome"]
    degrees: int = pydantic.Field(ge=-50, le=50)
    sunny: bool


def test_parse(real: openai.OpenAI) -> None:
    """Random weights, and still the answer is an object of the class: the grammar leaves nothing else."""
    options: Any = {"model": "tiny", "messages": HI, "response_format": Reading, "max_tokens": 400, "temperature": 0}
    answer = real.chat.completions.parse(**options)
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(answer.choices[0].message.parsed, Reading)
    with real.chat.completions.stream(**options) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == answer.choices[0].message.parsed


def test_parse_a_forced_tool_call(real: openai.OpenAI) -> None:
    tool = openai.pydantic_function_tool(Reading, name="report")
    answer = real.chat.completions.parse(
        model="tiny", messages=HI, tools=[tool], tool_choice="required", max_tokens=400, temperature=0
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.tool_calls is not None
    (call, *_) = answer.choices[0].message.tool_calls
    assert call.function.name == "report"
    assert isinstance(call.function.parsed_arguments, Reading)

"""OpenAI's own client library when things go wrong: exception classes, retries, request ids, abandoned streams."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from sdk_server import KEY, scripted_model, scripted_server

from glm4.llm import LLM
from glm4.server.config import ModelSpec
from live import LiveServer, config, serve
from stepped import stepped, until
from tiny import write_folder

HI: list[Any] = [{"role": "user", "content": "hi"}]
GREETING = "Hello, 世界!"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with scripted_server(tmp_path_factory.mktemp("scripted") / "m", max_body_bytes=100_000) as running:
        yield running


def connect(server: LiveServer, *, key: str = KEY, retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=retries, timeout=60)


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}


@pytest.mark.parametrize(
    ("options", "kind", "param", "code"),
    [
        ({"temperature": -1}, openai.BadRequestError, "temperature", "invalid_value"),
        ({"extra_body": {"colour": "red"}}, openai.BadRequestError, "colour", "invalid_value"),
        ({"messages": []}, openai.BadRequestError, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x" * 9000}]}, openai.BadRequestError, "messages",
         "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "x" * 200_000}]}, openai.APIStatusError, None, None),
        ({"messages": [*HI, {"role": "user", "content": [IMAGE]}]}, openai.BadRequestError, "messages[1].content[0]",
         "invalid_value"),
        ({"messages": [{"role": "user", "content": [AUDIO]}]}, openai.BadRequestError, "messages[0].content[0]",
         "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
         openai.BadRequestError, "messages[0].content[0].file", "invalid_value"),
        ({"model": "gpt-9"}, openai.NotFoundError, "model", "model_not_found"),
        ({"stream": True, "n": 0}, openai.BadRequestError, "n", "invalid_value"),
    ],
)  # fmt: skip
def test_exceptions(server: LiveServer, options: Any, kind: type[openai.APIStatusError], param: Any, code: Any) -> None:
    with connect(server) as client, pytest.raises(kind) as raised:
        client.chat.completions.create(**{"model": "tiny", "messages": HI} | options)
    assert (raised.value.param, raised.value.code) == (param, code)
    assert raised.value.request_id is not None


def test_a_wrong_key(server: LiveServer) -> None:
    with connect(server, key="not-the-key") as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="tiny", messages=HI)


def test_nobody_listens(tmp_path: Path) -> None:
    with scripted_server(tmp_path / "m") as running:
        pass
    with connect(running) as client, pytest.raises(openai.APIConnectionError):
        client.models.list()


def test_request_ids(server: LiveServer) -> None:
    with connect(server) as client:
        answer = client.chat.completions.with_raw_response.create(model="tiny", messages=HI)
        assert answer.headers["x-request-id"] == answer.request_id
        assert (answer.request_id or "").startswith("req-")
        assert answer.parse().choices[0].message.content == GREETING
        own = client.chat.completions.create(model="tiny", messages=HI, extra_headers={"X-Request-Id": "mine-1"})
        assert own._request_id == "mine-1"
        with client.chat.completions.with_streaming_response.create(model="tiny", messages=HI, stream=True) as raw:
            assert raw.headers["content-type"].startswith("text/event-stream")
            assert raw.request_id
            raw.read()


def test_a_full_queue_is_tried_again(tmp_path: Path) -> None:
    llm = scripted_model(tmp_path / "m", max_num_seqs=1)
    backend = stepped(llm)
    with serve(config(max_queue=0, api_keys=(KEY,)), llm) as running, connect(running, retries=8) as client:
        try:
            with client.chat.completions.create(model="tiny", messages=HI, stream=True) as stream:
                with connect(running) as impatient, pytest.raises(openai.RateLimitError) as raised:
                    impatient.chat.completions.create(model="tiny", messages=HI)
                assert int(raised.value.response.headers["retry-after"]) > 0
                answers: list[Any] = []
                patient = threading.Thread(
                    target=lambda: answers.append(
                        client.chat.completions.with_raw_response.create(model="tiny", messages=HI)
                    )
                )
                refused = 'request_success_total{finished_reason="stop",model_name="tiny"} 2.0'
                patient.start()
                backend.open()
                assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == GREETING
            patient.join()
            assert answers[0].parse().choices[0].message.content == GREETING
            with running.client(headers={"x-api-key": KEY}) as plain:
                until(lambda: refused in plain.get("/metrics").text, "two answers")
        finally:
            backend.open()


def test_a_model_that_loads_is_waited_for(tmp_path: Path) -> None:
    goes_on = threading.Event()

    def load(spec: ModelSpec, progress: Any) -> LLM:
        assert goes_on.wait(60)
        return scripted_model(tmp_path / "m")

    with serve(config(api_keys=(KEY,)), load=load, wait=False) as running:
        with connect(running) as impatient, pytest.raises(openai.InternalServerError) as raised:
            impatient.chat.completions.create(model="tiny", messages=HI)
        assert (raised.value.status_code, raised.value.code) == (503, "model_loading")
        with connect(running, retries=5) as client:
            timer = threading.Timer(0.5, goes_on.set)
            timer.start()
            answer = client.chat.completions.with_raw_response.create(model="tiny", messages=HI)
        assert answer.retries_taken > 0
        assert answer.parse().choices[0].message.content == GREETING


def test_an_error_in_the_middle_of_a_stream(tmp_path: Path) -> None:
    llm = scripted_model(tmp_path / "m")
    backend = stepped(llm)
    with serve(config(api_keys=(KEY,)), llm) as running, connect(running) as client:
        try:
            with client.chat.completions.create(model="tiny", messages=HI, stream=True) as stream:
                backend.allow(4)
                chunks = iter(stream)
                assert next(chunks).choices[0].delta.role == "assistant"
                backend.fail(RuntimeError("broken"))
                with pytest.raises(openai.APIError) as raised:
                    list(chunks)
            assert "broken" not in str(raised.value)
        finally:
            backend.open()


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_a_stream_that_is_given_up_frees_its_pages_within_one_step(tmp_path: Path, how: str) -> None:
    llm = LLM(str(write_folder(tmp_path / "m")), dtype="fp32", max_num_seqs=2, max_model_len=1024)
    backend = stepped(llm)
    body: dict[str, Any] = {"model": "tiny", "messages": HI, "max_tokens": 500, "extra_body": {"ignore_eos": True}}

    def in_a_step() -> bool:
        return backend.steps == 5 and backend.waits

    async def cancel(running: LiveServer) -> None:
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0) as client:
            begun = asyncio.Event()

            async def read() -> None:
                async for _ in await client.chat.completions.create(**body, stream=True):
                    begun.set()

            task = asyncio.create_task(read())
            await begun.wait()
            await asyncio.to_thread(until, in_a_step, "the engine is in the middle of a step")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    with serve(config(api_keys=(KEY,)), llm) as running, connect(running) as client:
        try:
            backend.allow(5)
            if how == "close":
                stream = client.chat.completions.create(**body, stream=True)
                next(iter(stream))
                until(in_a_step, "the engine is in the middle of a step")
                stream.close()
            else:
                asyncio.run(cancel(running))
            until(lambda: running.leftovers["places"] == 0, "the server has noticed")
            before = backend.steps
            assert running.leftovers["pages"] > 0
            backend.allow()
            until(lambda: not any(running.leftovers.values()), "everything is free")
            assert backend.steps == before + 1
        finally:
            backend.open()

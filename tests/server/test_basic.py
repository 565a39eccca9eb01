"""The server's first answers: health, models, chat and text completions, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from live import LiveServer, config, serve
from scripted_llm import scripted_llm


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    llm = scripted_llm(tmp_path_factory.mktemp("model"), lambda prompt: "\nHello, 世界!")
    with serve(config("tiny", "alias"), llm) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made


def events(response: httpx.Response) -> list[Any]:
    """Data of server-sent events; the end marker as text."""
    blocks = [block for block in response.text.split("\n\n") if block and not block.startswith(":")]
    data = [block.removeprefix("data: ") for block in blocks]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


def test_health_models_version(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    assert set(client.get("/version").json()) == {"version"}
    assert [entry["id"] for entry in client.get("/v1/models").json()["data"]] == ["tiny", "alias"]
    assert client.get("/v1/models/alias").json()["root"] == "tiny"
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"


def test_chat_whole_and_streamed(client: httpx.Client) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    whole = client.post("/v1/chat/completions", json=body).json()
    assert whole["choices"][0]["message"]["content"] == "Hello, 世界!"
    assert whole["choices"][0]["finish_reason"] == "stop"
    streamed = client.post(
        "/v1/chat/completions", json=body | {"stream": True, "stream_options": {"include_usage": True}}
    )
    *chunks, usage, done = events(streamed)
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == "Hello, 世界!"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[-2:]] == [None, "stop"]
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]


def test_text_completion_whole_and_streamed(client: httpx.Client) -> None:
    body = {"prompt": ["a", "b"], "max_tokens": 6, "echo": True, "n": 2}
    whole = client.post("/v1/completions", json=body).json()
    assert [choice["text"] for choice in whole["choices"]] == ["a\nHello", "a\nHello", "b\nHello", "b\nHello"]
    streamed = events(client.post("/v1/completions", json=body | {"stream": True}))
    assert streamed[-1] == "[DONE]"
    texts = ["", "", "", ""]
    for chunk in streamed[:-1]:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in whole["choices"]]


def test_a_prompt_that_is_only_scored_has_no_generated_token_anywhere(client: httpx.Client) -> None:
    body = {"prompt": "ab", "max_tokens": 0, "echo": True, "return_token_ids": True}
    whole = client.post("/v1/completions", json=body).json()
    (choice,) = whole["choices"]
    assert (choice["text"], choice["token_ids"], whole["usage"]["completion_tokens"]) == ("ab", [], 0)
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, done = events(client.post("/v1/completions", json=body | {"stream": True, "stream_options": options}))
    assert done == "[DONE]"
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == "ab"
    assert [token for chunk in chunks for choice in chunk["choices"] for token in choice["token_ids"]] == []
    assert {chunk["usage"]["completion_tokens"] for chunk in chunks} == {0}


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "code"),
    [
        ("/v1/chat/completions", {"messages": []}, 400, "messages", "invalid_value"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}], "functions": []}, 400, "functions", "invalid_value"),
        ("/v1/chat/completions", {"model": "other", "messages": []}, 404, "model", "model_not_found"),
        ("/v1/completions", {"prompt": "x" * 5000}, 400, "prompt", "context_length_exceeded"),
        ("/v1/nothing", {}, 404, None, None),
    ],
)
def test_errors_have_openai_shape(
    client: httpx.Client, path: str, body: dict[str, Any], status: int, param: str | None, code: str | None
) -> None:
    response = client.post(path, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (status, param, code)
    assert set(error) == {"message", "type", "param", "code"}


def test_a_tiny_model_is_loaded_in_the_background(tmp_path: Path) -> None:
    from tiny import write_folder

    with serve(config("real", source=str(write_folder(tmp_path / "m")))) as running, running.client() as client:
        answer = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 4, "temperature": 0}).json()
        assert answer["usage"]["completion_tokens"] == 4
        vector = client.post("/v1/embeddings", json={"input": ["abc", "d"]}).json()["data"][0]["embedding"]
        assert sum(x * x for x in vector) == pytest.approx(1)

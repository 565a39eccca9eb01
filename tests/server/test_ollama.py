"""Ollama's API, used through the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ollama
import pytest
from sdk_server import ASKED, KEY, WEATHER_TOOL, random_server, scripted_server

from glm4.llm import LLM
from glm4.multimodal.image import encode_picture
from live import LiveServer, config, serve
from scripted_llm import scripted_llm
from vision_folder import ROWS, write_vision_folder

HI = [{"role": "user", "content": "hi"}]
GREETING = "Hello, 世界!"
WEATHER: dict[str, Any] = dict(WEATHER_TOOL)
CHATTING = [{"role": "user", "content": ASKED}]


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with scripted_server(tmp_path_factory.mktemp("scripted") / "m") as running:
        yield running


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with random_server(tmp_path_factory.mktemp("random") / "m") as running:
        yield running


def connect(server: LiveServer, key: str = KEY) -> ollama.Client:
    return ollama.Client(host=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=60)


@pytest.fixture
def client(scripted: LiveServer) -> Iterator[ollama.Client]:
    with connect(scripted) as made:
        yield made


@pytest.fixture
def real(random: LiveServer) -> Iterator[ollama.Client]:
    with connect(random) as made:
        yield made


def refused(status: int, call: Any, **arguments: Any) -> str:
    def ask() -> None:
        answer = call(**arguments)
        if arguments.get("stream"):
            list(answer)

    with pytest.raises(ollama.ResponseError) as caught:
        ask()
    assert caught.value.status_code == status
    return str(caught.value.error)


def test_chat(client: ollama.Client) -> None:
    answer = client.chat("tiny:latest", HI)
    assert answer.message.content == GREETING
    assert answer.done
    assert answer.done_reason == "stop"
    assert answer.eval_count == len(f"\n{GREETING}".encode()) + 1
    assert answer.prompt_eval_count is not None
    assert answer.prompt_eval_count > 2
    assert answer.total_duration == pytest.approx((answer.prompt_eval_duration or 0) + (answer.eval_duration or 0))


def test_a_stream_is_the_answer_in_pieces(client: ollama.Client) -> None:
    *pieces, last = client.chat("tiny", HI, stream=True)
    assert "".join(piece.message.content or "" for piece in pieces) == GREETING
    assert len(pieces) > 3
    assert not any(piece.done for piece in pieces)
    assert last.done
    assert last.eval_count == len(f"\n{GREETING}".encode()) + 1


def test_streaming_is_the_default(scripted: LiveServer) -> None:
    with scripted.client(headers={"Authorization": f"Bearer {KEY}"}) as raw:
        response = raw.post("/api/chat", json={"model": "tiny", "messages": HI})
    assert response.headers["content-type"] == "application/x-ndjson"
    *pieces, last = [json.loads(line) for line in response.text.splitlines()]
    assert "".join(piece["message"]["content"] for piece in pieces) == GREETING
    assert last["done"] is True


def test_line_breaks_of_unicode_stay_within_their_line(tmp_path: Path) -> None:
    said = "one\x85two\u2028three\u2029\x0bfour"
    llm = scripted_llm(tmp_path / "m", lambda prompt: f"\n{said}")
    with serve(config("tiny"), llm) as server, connect(server) as client:
        assert "".join(part.message.content or "" for part in client.chat("tiny", HI, stream=True)) == said


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_read(client: ollama.Client, stream: bool) -> None:
    messages: list[Any] = [*CHATTING]
    if stream:
        parts = [part.message for part in client.chat("tiny", messages, tools=[WEATHER], stream=True)]
        (calls,) = [part.tool_calls for part in parts if part.tool_calls]
        said = "".join(part.content or "" for part in parts)
        messages.append(ollama.Message(role="assistant", content=said, tool_calls=calls))
    else:
        answer = client.chat("tiny", messages, tools=[WEATHER])
        calls, said = answer.message.tool_calls or [], answer.message.content or ""
        assert answer.done_reason == "stop"
        messages.append(answer.message)
    (call,) = calls
    assert said == "Let me look.\n"
    assert call.function.name == "get_weather"
    assert call.function.arguments == {"city": "Paris", "unit": "°C"}
    messages.append({"role": "tool", "tool_name": "get_weather", "content": "18 degrees"})
    assert client.chat("tiny", messages, tools=[WEATHER]).message.content == "It has 18 degrees in Paris."


def test_generate(client: ollama.Client) -> None:
    assert client.generate("tiny", "count", system="Be brief.").response == "one, two, three, four"
    *pieces, last = client.generate("tiny", "count", stream=True)
    assert "".join(piece.response or "" for piece in pieces) == "one, two, three, four"
    assert last.done_reason == "stop"


def test_options_are_honored(real: ollama.Client) -> None:
    greedy = {"temperature": 0, "num_predict": 6, "num_ctx": 4096}
    answer = real.chat("tiny", HI, options=greedy)
    assert answer.done_reason == "length"
    assert answer.eval_count == 6
    assert real.chat("tiny", HI, options=greedy).message.content == answer.message.content
    seeded = {"temperature": 1.5, "seed": 3, "num_predict": 20}
    assert real.generate("tiny", "hi", options=seeded).response == real.generate("tiny", "hi", options=seeded).response
    penalized = real.chat("tiny", HI, options={**greedy, "num_predict": 40, "repeat_penalty": 9, "top_k": 50})
    assert penalized.message.content != real.chat("tiny", HI, options={**greedy, "num_predict": 40}).message.content


def test_a_format_is_kept(real: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"n": {"const": 42}}, "required": ["n"], "additionalProperties": False}
    assert json.loads(real.chat("tiny", HI, format=schema).message.content or "") == {"n": 42}
    answer = real.generate("tiny", "hi", format="json", options={"num_predict": 5, "temperature": 0})
    assert (answer.response or "").startswith("{")


def test_log_probabilities_are_of_the_text(real: ollama.Client) -> None:
    options = {"temperature": 0, "num_predict": 6}
    answer = real.chat("tiny", HI, logprobs=True, top_logprobs=2, options=options)
    assert answer.logprobs
    assert all(len(one.top_logprobs or ()) == 2 and one.logprob <= 0 for one in answer.logprobs)
    streamed = [one for part in real.chat("tiny", HI, logprobs=True, top_logprobs=2, stream=True, options=options)
                for one in part.logprobs or ()]  # fmt: skip
    assert streamed == list(answer.logprobs)


def test_a_raw_prompt_is_taken_as_written(real: ollama.Client, random: LiveServer) -> None:
    options = {"temperature": 0, "num_predict": 6}
    templated = real.generate("tiny", "hi", options=options)
    written = random.llm.processor.chat_template.source
    assert "<|assistant|>" in written
    raw = real.generate("tiny", "[gMASK]<sop><|user|>\nhi<|assistant|>", raw=True, options=options)
    assert raw.prompt_eval_count == templated.prompt_eval_count
    assert "raw" in refused(400, real.generate, model="tiny", prompt="hi", system="s", raw=True)


def test_embeddings(real: ollama.Client, random: LiveServer) -> None:
    answer = real.embed("tiny", ["first text", "second"])
    vectors = np.array(answer.embeddings)
    assert vectors.shape[0] == 2
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(real.embeddings("tiny", "first text").embedding, vectors[0])
    assert np.allclose(real.embed("tiny", "second").embeddings[0], vectors[1], atol=1e-6)
    assert len(real.embed("tiny", "second", dimensions=3).embeddings[0]) == 3
    long = "x" * (2 * random.llm.info.max_model_len)
    assert real.embed("tiny", long).prompt_eval_count <= random.llm.info.max_model_len  # type: ignore[operator]
    assert "context" in refused(400, real.embed, model="tiny", input=long, truncate=False)
    assert "dimensions" in refused(400, real.embed, model="tiny", input="a", dimensions=10**6)


def test_the_models(real: ollama.Client, random: LiveServer) -> None:
    assert [model.model for model in real.list().models] == ["tiny", "alias"]
    first = real.list().models[0]
    assert first.details is not None
    assert first.details.family == "glm"
    assert first.details.quantization_level == "fp32"
    assert first.size == random.llm.info.execution.weight_bytes  # type: ignore[union-attr]
    loaded = real.ps().models[0]
    assert loaded.context_length == random.llm.info.max_model_len
    shown = real.show("alias:latest")
    assert shown.modelinfo is not None
    assert shown.modelinfo["glm.context_length"] == random.llm.info.max_model_len
    assert shown.capabilities is not None
    assert {"completion", "tools", "embedding"} == set(shown.capabilities)
    assert "<|assistant|>" in (shown.template or "")


def test_pull_succeeds_for_what_is_served(client: ollama.Client) -> None:
    assert client.pull("tiny").status == "success"
    assert [part.status for part in client.pull("tiny", stream=True)] == ["success"]
    assert "not found" in refused(404, client.pull, model="llama3")


def test_the_models_cannot_be_changed(client: ollama.Client) -> None:
    assert "glm4 serve -m" in refused(501, client.create, model="mine", from_="tiny")
    with pytest.raises(ollama.ResponseError, match="glm4 serve -m"):
        client.copy("tiny", "mine")
    with pytest.raises(ollama.ResponseError, match="glm4 serve -m"):
        client.delete("tiny")
    assert client.list().models


def test_an_empty_request_loads(client: ollama.Client) -> None:
    assert client.generate("tiny").done_reason == "load"
    assert client.chat("tiny", keep_alive="5m").done_reason == "load"
    assert "stay loaded" in refused(400, client.generate, model="tiny", keep_alive=0)


def test_errors_are_in_ollamas_form(client: ollama.Client, scripted: LiveServer) -> None:
    assert refused(404, client.chat, model="nope", messages=HI).startswith("model 'nope' not found")
    assert "num_ctx" in refused(400, client.chat, model="tiny", messages=HI, options={"num_ctx": 10**6}, stream=True)
    assert "does not support thinking" in refused(400, client.chat, model="tiny", messages=HI, think=True)
    assert "suffix" in refused(400, client.generate, model="tiny", prompt="a", suffix="b")
    assert "mirostat" in refused(400, client.chat, model="tiny", messages=HI, options={"mirostat": 2})
    assert "takes text only" in refused(400, client.generate, model="tiny", prompt="a", images=[b"png"])
    with connect(scripted, "wrong") as stranger:
        assert "API key" in refused(401, stranger.list)
    with scripted.client(headers={"Authorization": f"Bearer {KEY}"}) as raw:
        assert isinstance(raw.post("/api/chat", content=b"{").json()["error"], str)
        assert raw.get("/api/nothing").status_code == 404
        assert raw.get("/api/version").json().keys() == {"version", "glm4"}


def test_thinking_is_apart_and_may_be_left_out(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path / "m", lambda prompt: "<think>\nhm\n</think>\nFine.", dialect="glm_z1")
    with serve(config("tiny"), llm) as server, connect(server) as client:
        answer = client.chat("tiny", HI)
        assert answer.message.thinking
        assert answer.message.content == "Fine."
        parts = list(client.generate("tiny", "hi", think=True, stream=True))
        assert "".join(part.thinking or "" for part in parts) == answer.message.thinking
        assert "".join(part.response or "" for part in parts) == "Fine."
        hidden = client.chat("tiny", HI, think=False)
        assert hidden.message.thinking is None
        assert hidden.message.content == "Fine."
        assert "thinking" in (client.show("tiny").capabilities or [])


def test_pictures_are_seen(tmp_path: Path) -> None:
    picture = encode_picture(np.full((9, 12, 3), 40, np.uint8))
    llm = LLM(str(write_vision_folder(tmp_path / "m")), dtype="fp32", max_model_len=256)
    with serve(config("tiny"), llm) as server, connect(server) as client:
        options = {"num_predict": 4, "temperature": 0}
        asked = [{"role": "user", "content": "hi", "images": [picture]}]
        answer = client.chat("tiny", asked, options=options)
        assert (
            answer.prompt_eval_count
            == client.generate("tiny", "hi", images=[picture], options=options)["prompt_eval_count"]
        )
        assert answer.prompt_eval_count > ROWS
        assert "vision" in (client.show("tiny").capabilities or [])
        assert "images" in refused(400, client.generate, model="tiny", prompt="hi", images=[b"no picture"])


def test_a_stream_that_is_left_ends(random: LiveServer) -> None:
    body = {"model": "tiny", "messages": HI, "options": {"temperature": 0}}
    with (
        httpx.Client(base_url=random.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as raw,
        raw.stream("POST", "/api/chat", json=body) as response,
    ):
        first = json.loads(next(response.iter_lines()))
        assert first["done"] is False
    for _ in range(600):
        if not any(random.leftovers.values()):
            return
        httpx.get(f"{random.url}/health")
    assert not any(random.leftovers.values())

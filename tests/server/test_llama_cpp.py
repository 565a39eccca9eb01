"""llama.cpp's endpoints: its own completion, and the small ones around it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from glm4.llm import LLM
from live import LiveServer, config, serve
from tiny import tiny_model, write_folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = write_folder(tmp_path_factory.mktemp("model") / "m", tiny_model())
    llm = LLM(str(folder), dtype="fp32", num_threads=1, max_model_len=256, max_num_seqs=2)
    with serve(config("tiny", allowed_origins=("localhost",)), llm) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made


def complete(client: httpx.Client, **body: Any) -> Any:
    response = client.post("/completion", json={"temperature": 0, "n_predict": 6, "ignore_eos": True, **body})
    assert response.status_code == 200, response.text
    return response.json()


def test_a_completion_says_what_was_done(client: httpx.Client) -> None:
    body = complete(client, prompt="Once", return_tokens=True, seed=3)
    assert body["stop"] is True
    assert body["stop_type"] == "limit"
    assert body["truncated"] is False
    assert body["tokens_predicted"] == len(body["tokens"]) == body["timings"]["predicted_n"] == 6
    assert body["tokens_evaluated"] == body["timings"]["prompt_n"] + body["timings"]["cache_n"] == 6  # prefix, 4 bytes
    assert body["prompt"] == "[gMASK]<sop>Once"
    assert body["generation_settings"]["n_predict"] == 6
    assert body["generation_settings"]["seed"] == 3


def test_without_a_limit_the_context_is_the_limit(client: httpx.Client) -> None:
    body = complete(client, prompt="Once", n_predict=-1)
    assert body["tokens_predicted"] == 256 - 6
    assert body["truncated"] is True


def test_texts_and_ids_mix_in_a_prompt(client: httpx.Client) -> None:
    whole = complete(client, prompt="Once upon")
    assert complete(client, prompt=["Once", 32, "upon"])["content"] == whole["content"]
    assert complete(client, prompt={"prompt_string": "Once upon"})["content"] == whole["content"]
    several = complete(client, prompt=["Once upon", [258, 260, *b"Once upon"], {"prompt_string": "Once upon"}])
    assert [one["index"] for one in several] == [0, 1, 2]
    assert [one["content"] for one in several] == [whole["content"]] * 3


def test_a_stream_is_the_answer_in_pieces(client: httpx.Client) -> None:
    whole = complete(client, prompt="Once", return_tokens=True)
    request = {"prompt": "Once", "temperature": 0, "n_predict": 6, "ignore_eos": True, "stream": True, "n_probs": 3}
    with client.stream("POST", "/completion", json=request) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]
    *pieces, last = events
    assert "".join(piece["content"] for piece in pieces) == whole["content"]
    assert [token for piece in pieces for token in piece["tokens"]] == whole["tokens"]
    assert all(len(piece["completion_probabilities"][0]["top_logprobs"]) == 3 for piece in pieces)
    assert [piece["stop"] for piece in pieces] == [False] * 6
    assert last["stop"] is True
    assert last["tokens_predicted"] == 6


def test_biases_by_text_and_by_id(client: httpx.Client) -> None:
    likely = complete(client, prompt="Once", n_predict=1, return_tokens=True)["tokens"][0]
    for bias in ([[likely, False]], [[likely, -100]], {str(likely): -100}):
        assert complete(client, prompt="Once", n_predict=1, return_tokens=True, logit_bias=bias)["tokens"] != [likely]
    assert complete(client, prompt="Once", logit_bias=[["Q", 100]])["content"] == "QQQQQQ"


def test_only_the_fields_asked_for(client: httpx.Client) -> None:
    body = complete(client, prompt="Once", response_fields=["content", "generation_settings/n_predict"])
    assert body.keys() == {"content", "generation_settings/n_predict"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mirostat", 2), ("prompt", ""), ("prompt", {"prompt_string": "x", "multimodal_data": "y"}), ("prompt", []),
        ("n_predict", -2), ("n_predict", 0), ("logit_bias", [[1]]), ("logit_bias", 3), ("seed", "x"), ("n_probs", -1),
    ],
)  # fmt: skip
def test_what_is_not_done_is_refused_by_name(client: httpx.Client, field: str, value: Any) -> None:
    response = client.post("/completion", json={"prompt": "Once", field: value})
    assert response.status_code == 400
    shown = response.json()["error"]["param"].partition(".")[0]
    assert shown == {"n_predict": "max_tokens"}.get(field, field) or shown == field


def test_what_the_server_is(client: httpx.Client) -> None:
    props = client.get("/props").json()
    assert props["total_slots"] == 2
    assert props["default_generation_settings"]["n_ctx"] == 256
    assert "<|assistant|>" in props["chat_template"]
    assert [slot["is_processing"] for slot in client.get("/slots").json()] == [False, False]
    assert client.get("/models").json() == client.get("/v1/models").json()
    assert client.get("/v1/health").status_code == 200


def test_a_chat_rendered_and_counted(client: httpx.Client) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    prompt = client.post("/apply-template", json=chat).json()["prompt"]
    assert prompt == "[gMASK]<sop><|user|>\nhi<|assistant|>"
    assert client.post("/v1/chat/completions/input_tokens", json=chat).json()["input_tokens"] == 7
    answer = client.post("/chat/completions", json={**chat, "max_tokens": 1})
    assert answer.json()["usage"]["prompt_tokens"] == 7
    assert answer.json()["system_fingerprint"].startswith("build-")


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:3000", True), ("http://127.0.0.1", True), ("http://[::1]:80", True),
        ("http://localhost.evil.com", False), ("http://notlocalhost", False), ("http://[", False), ("null", False),
    ],
)  # fmt: skip
def test_localhost_stands_for_every_page_of_this_machine(client: httpx.Client, origin: str, allowed: bool) -> None:
    asking = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    response = client.options("/v1/models", headers=asking)
    assert response.status_code == 200
    assert response.headers.get("access-control-allow-origin") == (origin if allowed else None)


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_object", "schema": 3},
        {"type": "json_object", "strict": True},
        {"type": "text", "schema": {}},
        {"type": []},
    ],
)
def test_a_form_that_cannot_be_kept_is_refused(client: httpx.Client, form: Any) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "response_format": form}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("response_format")


def test_a_schema_beside_json_object_is_kept(client: httpx.Client) -> None:
    form = {"type": "json_object", "schema": {"const": "42"}}
    body = {"messages": [{"role": "user", "content": "hi"}], "response_format": form, "max_tokens": 8}
    assert client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"] == '"42"'

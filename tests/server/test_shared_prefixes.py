"""The prefix cache as clients see it: on by default, told in `usage`, and computing only what is new."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from answers import read_events

from glm4.llm import LLM
from glm4.model.kv_cache import PAGE_SIZE
from live import LiveServer, config, serve
from tiny import write_folder

SHARED = "One long document that every question is about. " * 45


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_folder(tmp_path_factory.mktemp("model") / "m"))


@pytest.fixture
def server(folder: str) -> Iterator[LiveServer]:
    with serve(config(), LLM(folder, dtype="fp32", max_model_len=4096)) as running:
        yield running


def ask(client: httpx.Client, question: str, **options: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": SHARED}, {"role": "user", "content": question}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 16, "ignore_eos": True, "return_token_ids": True}
    response = client.post("/v1/chat/completions", json=body | options)
    assert response.status_code == 200
    if options.get("stream"):
        *_, usage, done = read_events(response.text)
        assert done == "[DONE]"
        return usage
    return response.json()


def counts(server: LiveServer) -> tuple[int, int]:
    """Prompt tokens looked up so far, and those that had to be computed."""
    stats = server.llm.stats()
    return stats.prefix_cache_queries, stats.prefix_cache_queries - stats.prefix_cache_hits


def test_a_shared_prefix_is_computed_once(server: LiveServer, folder: str) -> None:
    with server.client() as client:
        first = ask(client, "What is it about?")
        size = first["usage"]["prompt_tokens"]
        assert size > 2000
        assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert counts(server) == (size, size)
        second = ask(client, "And who wrote it?")
        shared = sum(1 for _ in _common(first["prompt_token_ids"], second["prompt_token_ids"]))
        assert shared > 2000
        cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached == shared // PAGE_SIZE * PAGE_SIZE
        looked_up, computed = counts(server)
        assert looked_up == size + second["usage"]["prompt_tokens"]
        assert computed == size + second["usage"]["prompt_tokens"] - cached
        assert computed - size < 0.05 * size, "of the second prompt only its end is computed"
        last = ask(client, "And who wrote it?", stream=True, stream_options={"include_usage": True})
        assert last["usage"]["prompt_tokens_details"]["cached_tokens"] >= cached
        metrics = client.get("/metrics").text
    hits = next(line for line in metrics.splitlines() if line.startswith("glm4:prefix_cache_hits_total{"))
    assert float(hits.split()[-1]) == server.llm.stats().prefix_cache_hits
    with serve(config(), LLM(folder, dtype="fp32", max_model_len=4096, enable_prefix_caching=False)) as other:
        with other.client() as client:
            fresh = ask(client, "And who wrote it?")
        assert fresh["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert fresh["choices"][0]["token_ids"] == second["choices"][0]["token_ids"], "the answer is the same to the token"


def _common(left: list[int], right: list[int]) -> Iterator[int]:
    for one, other in zip(left, right, strict=False):
        if one != other:
            return
        yield one


def test_a_conversation_grows_from_what_is_known(server: LiveServer) -> None:
    """Turn after turn only the new turns are computed; the model's own answers are known as well."""
    messages = [{"role": "user", "content": "tell me " * 20}]
    known = 0
    with server.client() as client:
        for _ in range(4):
            body = {"messages": messages, "structured_outputs": {"regex": "[a-z]{64}"}, "seed": 1}
            answer = client.post("/v1/chat/completions", json=body).json()
            usage = answer["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] >= known // PAGE_SIZE * PAGE_SIZE
            text = answer["choices"][0]["message"]["content"]
            assert len(text) == 64
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "more"}]
            known = usage["prompt_tokens"] + 64  # all but the stop token, which another role tag replaces
    assert known > 400

"""Time limits, full queues, failing engines, models on their way up: what clients are told, and what goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from answers import joined_message, read_events

from glm4.errors import CheckpointError
from glm4.llm import LLM
from glm4.server.config import ModelSpec, ServerConfig
from live import LiveServer, config, serve
from scripted_llm import scripted_llm
from stepped import SteppedBackend, stepped, until
from tiny import write_folder

CHAT = {"messages": [{"role": "user", "content": "?"}]}


@contextmanager
def gated(folder: Path, **options: Any) -> Iterator[tuple[LiveServer, SteppedBackend, httpx.Client]]:
    """A server with one place, whose engine stands still until it is opened."""
    llm = scripted_llm(folder, lambda prompt: "\nHello", max_num_seqs=1)
    backend = stepped(llm)
    with serve(config(**options), llm) as running, running.client() as client:
        try:
            yield running, backend, client
        finally:
            backend.open()


def error_of(response: httpx.Response) -> tuple[int, str | None]:
    return response.status_code, response.json()["error"]["code"]


def test_request_timeout(tmp_path: Path) -> None:
    with gated(tmp_path / "m", request_timeout=1) as (running, backend, client):
        streamed = client.post("/v1/chat/completions", json=CHAT | {"stream": True})
        *chunks, error, done = read_events(streamed.text)
        assert streamed.status_code == 200
        assert [chunk["choices"][0]["delta"] for chunk in chunks] == [{"role": "assistant", "content": ""}]
        assert (error["error"]["type"], error["error"]["code"]) == ("timeout_error", "timeout")
        assert done == "[DONE]"
        before = backend.steps
        for body in (CHAT, CHAT | {"stream": True}):  # the engine is in the middle of a step all the while
            assert error_of(client.post("/v1/chat/completions", json=body)) == (504, "timeout")
        backend.allow()
        until(lambda: not any(running.leftovers.values()), "what took too long is dropped")
        assert backend.steps == before + 1


def test_full_queue_and_queue_timeout(tmp_path: Path) -> None:
    with gated(tmp_path / "m", max_queue=1, queue_timeout=4) as (running, backend, client), ExitStack() as stack:
        answer = stack.enter_context(client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}))
        answers: list[httpx.Response] = []
        waiting = threading.Thread(target=lambda: answers.append(client.post("/v1/chat/completions", json=CHAT)))
        waiting.start()
        until(lambda: running.leftovers["queue"] == 1, "the second request waits")
        refused = client.post("/v1/chat/completions", json=CHAT)
        assert error_of(refused) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) > 0
        assert error_of(client.post("/v1/completions", json={"prompt": "a", "stream": True})) == (429, "queue_full")
        waiting.join()
        assert error_of(answers[0]) == (503, "queue_timeout")
        assert int(answers[0].headers["retry-after"]) > 0
        backend.open()
        *chunks, done = read_events("".join(answer.iter_text()))
        assert joined_message(chunks)[0]["content"] == "Hello", "the first request knows nothing of all this"
        assert done == "[DONE]"


def test_who_waits_gets_the_place(tmp_path: Path) -> None:
    with gated(tmp_path / "m") as (running, backend, client):
        texts: list[str] = []

        def ask() -> None:
            answer = client.post("/v1/chat/completions", json=CHAT).json()
            texts.append(answer["choices"][0]["message"]["content"])

        threads = [threading.Thread(target=ask) for _ in range(5)]
        for thread in threads:
            thread.start()
        until(lambda: running.leftovers["queue"] == 4, "four wait for the fifth")
        backend.open()
        for thread in threads:
            thread.join()
        assert texts == ["Hello"] * 5
        until(lambda: not any(running.leftovers.values()), "all is free")


def test_a_failing_engine_ends_every_stream_with_an_error(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path / "m", lambda prompt: "\n" + "x" * 3000, max_num_seqs=4, delay=0.01)
    backend = stepped(llm)
    backend.open()
    with serve(config(), llm) as running, running.client() as client, ExitStack() as stack:
        chat = stack.enter_context(client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}))
        body = {"prompt": ["a", "b"], "stream": True}
        text = stack.enter_context(client.stream("POST", "/v1/completions", json=body))
        whole: list[httpx.Response] = []
        waiting = threading.Thread(target=lambda: whole.append(client.post("/v1/chat/completions", json=CHAT)))
        waiting.start()
        until(lambda: running.leftovers["running"] == 4, "four answers run")
        backend.fail(RuntimeError("secret/path/of/the/machine"))
        for response in (chat, text):
            body_text = "".join(response.iter_text())
            *_, error, done = read_events(body_text)
            assert error["error"]["type"] == "api_error"
            assert done == "[DONE]"
            assert "secret" not in body_text
        waiting.join()
        assert whole[0].status_code == 500
        assert "secret" not in whole[0].text
        assert client.get("/health").status_code == 503
        assert client.get("/ready").json()["status"] == "failed"
        assert error_of(client.post("/v1/chat/completions", json=CHAT)) == (503, "model_failed")


def test_two_models_by_their_names(tmp_path: Path) -> None:
    def load(spec: ModelSpec, progress: Any) -> LLM:
        return scripted_llm(tmp_path / spec.source, lambda prompt: f"\nI am {spec.source}")

    models = (ModelSpec("one", ("first", "alias")), ModelSpec("two", ("second",)))
    with serve(ServerConfig(models), load=load) as running, running.client() as client:
        names = {"first": "one", "alias": "one", "second": "two", "": "one"}
        for name, source in names.items():
            body = CHAT | ({"model": name} if name else {})
            answer = client.post("/v1/chat/completions", json=body).json()
            assert answer["choices"][0]["message"]["content"] == f"I am {source}"
            assert answer["model"] == (name or "first")
        assert error_of(client.post("/v1/chat/completions", json=CHAT | {"model": "third"})) == (404, "model_not_found")
        assert [entry["id"] for entry in client.get("/v1/models").json()["data"]] == ["first", "alias", "second"]


def test_models_load_in_the_background(tmp_path: Path) -> None:
    goes_on = threading.Event()

    def load(spec: ModelSpec, progress: Any) -> LLM:
        progress("reading", 1, 4)
        assert goes_on.wait(60)
        return LLM(str(write_folder(tmp_path / "m")), dtype="fp32", max_model_len=512, progress=progress)

    with serve(config(), load=load, wait=False) as running, running.client() as client:
        until(lambda: "reading" in client.get("/ready").text, "loading has begun")
        assert client.get("/health").json() == {"status": "ok"}
        answer = client.get("/ready")
        assert (answer.status_code, answer.json()) == (503, {"status": "loading", "models": {"tiny": "reading, 25%"}})
        assert int(answer.headers["retry-after"]) > 0
        early = client.post("/v1/chat/completions", json=CHAT)
        assert error_of(early) == (503, "model_loading")
        assert int(early.headers["retry-after"]) > 0
        assert client.get("/metrics").status_code == 200
        goes_on.set()
        until(lambda: client.get("/ready").status_code == 200, "the model is ready")
        assert client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 3}).status_code == 200


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    def load(spec: ModelSpec, progress: Any) -> LLM:
        if spec.source == "broken":
            raise CheckpointError("/secret/path is damaged")
        return scripted_llm(tmp_path / "m", lambda prompt: "\nHello")

    models = (ModelSpec("broken", ("bad",)), ModelSpec("works", ("good",)))
    with serve(ServerConfig(models), load=load, wait=False) as running, running.client() as client:
        until(lambda: client.get("/ready").json()["models"]["good"] == "ready", "the other one is loaded")
        assert client.get("/ready").json() == {"status": "failed", "models": {"bad": "failed", "good": "ready"}}
        bad = client.post("/v1/chat/completions", json=CHAT | {"model": "bad"})
        assert error_of(bad) == (503, "model_failed")
        assert "secret" not in bad.text
        assert client.post("/v1/chat/completions", json=CHAT | {"model": "good"}).status_code == 200


def test_many_samples_leave_places_to_others(tmp_path: Path) -> None:
    """`n` counts in places, in the queue and in the engine; but half of the places stay free."""
    llm = LLM(str(write_folder(tmp_path / "m")), dtype="fp32", max_num_seqs=4, max_model_len=2048)
    with serve(config(), llm) as running, running.client() as client, ExitStack() as stack:
        long = {"prompt": "a", "n": 16, "max_tokens": 1500, "ignore_eos": True, "stream": True}
        stack.enter_context(client.stream("POST", "/v1/completions", json=long))
        until(lambda: running.leftovers["running"] > 0, "the long request runs")
        assert running.leftovers["places"] == 2
        for body in ({"prompt": "b"}, {"prompt": "b", "n": 2}, {"prompt": ["b", "c", "d"]}):
            short = client.post("/v1/completions", json=body | {"max_tokens": 2, "ignore_eos": True})
            assert short.status_code == 200
            assert running.leftovers["running"] == 2, "the long one still runs, with half of the places"


def test_a_group_of_samples_is_answered_whole(tmp_path: Path) -> None:
    llm = LLM(str(write_folder(tmp_path / "m")), dtype="fp32", max_num_seqs=4, max_model_len=512)
    body = {"prompt": "a", "max_tokens": 8, "ignore_eos": True, "seed": 5, "temperature": 1.0, "logprobs": 1}
    with serve(config(), llm) as running, running.client() as client:
        few, many = (client.post("/v1/completions", json=body | {"n": n}).json()["choices"] for n in (2, 11))
        assert [one["index"] for one in many] == list(range(11))
        assert [one["text"] for one in few] == [one["text"] for one in many[:2]]
        until(lambda: not any(running.leftovers.values()), "all is free")


@pytest.mark.parametrize("body", [{"prompt": "a", "n": 9}, {"prompt": ["a"] * 9}])
def test_requests_larger_than_the_engine_are_answered(tmp_path: Path, body: dict[str, Any]) -> None:
    llm = scripted_llm(tmp_path / "m", lambda prompt: "xyz", max_num_seqs=2)
    with serve(config(max_queue=0), llm) as running, running.client() as client:
        whole = client.post("/v1/completions", json=body).json()
        assert [choice["text"] for choice in whole["choices"]] == ["xyz"] * 9
        *chunks, done = read_events(client.post("/v1/completions", json=body | {"stream": True}).text)
        assert done == "[DONE]"
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) != ""
        until(lambda: not any(running.leftovers.values()), "all is free")

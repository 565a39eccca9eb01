"""One request's failure over HTTP: a 500 or an error event for it, a traceback in the log, nothing for its neighbor."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from answers import read_events

from adapter_files import factors, write_adapter
from faults import FAULTS, PROMPT, SEED, BoomError, Fault, PanicException
from glm4.llm import LLM
from live import LiveServer, config, serve
from stepped import until
from tiny import write_folder

NEIGHBOR = {
    "prompt": "a neighbor", "max_tokens": 200, "temperature": 0, "ignore_eos": True, "stream": True,
    "return_token_ids": True, "logprobs": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("model")
    llm = LLM(str(write_folder(folder / "m")), dtype="fp32", max_num_seqs=4, max_model_len=512)
    llm.load_adapter("bad", str(write_adapter(folder / "bad", factors(llm.backend.model.config, 1))))  # type: ignore[attr-defined]
    with serve(config(), llm) as running:
        yield running


def heard(lines: Iterator[str]) -> list[tuple[int, float]]:
    """Token ids and log-probabilities of a stream, to the last bit, however its chunks were merged."""
    *chunks, done = read_events("\n".join(lines))
    assert done == "[DONE]"
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    pairs = [zip(choice["token_ids"], choice["logprobs"]["token_logprobs"], strict=True) for choice in choices]
    return [pair for chunk in pairs for pair in chunk]


def body_of(fault: Fault, **changes: Any) -> dict[str, Any]:
    body = {"prompt": PROMPT, "seed": SEED, "max_tokens": 12, "ignore_eos": True, **fault.fields, **changes}
    return body | ({"model": "bad"} if fault.adapter else {})


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if "memory" not in fault.name], ids=lambda one: one.name)
def test_a_failure_ends_its_request_and_no_other(
    server: LiveServer, fault: Fault, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with server.client() as client, client.stream("POST", "/v1/completions", json=NEIGHBOR) as alone:
        expected = heard(alone.iter_lines())
    until(lambda: not any(server.leftovers.values()), "the engine is idle")
    server.llm.backend.engine.prefix_cache.clear()  # type: ignore[attr-defined]
    with server.client() as client, client.stream("POST", "/v1/completions", json=NEIGHBOR) as neighbor:
        lines = neighbor.iter_lines()
        first = next(lines)
        with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, "glm4.server"):
            fault.install(patch)
            whole = client.post("/v1/completions", json=body_of(fault), headers={"x-request-id": "the-whole"})
            streamed = client.post(
                "/v1/completions", json=body_of(fault, stream=True), headers={"x-request-id": "the-stream"}
            )
        assert heard(iter([first, *lines])) == expected
        assert whole.status_code == 500
        assert whole.json()["error"]["message"] == "internal error; the server's log says more (request the-whole)"
        errors = [json.loads(streamed.text)] if streamed.status_code == 500 else read_events(streamed.text)[-2:-1]
        assert "request the-stream" in errors[0]["error"]["message"]
        assert "boom" not in whole.text + streamed.text
        failures = [record for record in caplog.records if record.levelno >= logging.ERROR]
        for record, name in zip(failures, ("the-whole", "the-stream"), strict=True):
            assert record.request_id == name  # type: ignore[attr-defined]
            assert record.exc_info is not None
            cause = getattr(record.exc_info[1], "__cause__", None) or record.exc_info[1]
            assert isinstance(cause, (BoomError, PanicException))
            assert cause.__traceback__ is not None
        until(lambda: not any(server.leftovers.values()), "everything is free")
        assert client.post("/v1/completions", json=body_of(fault)).status_code == 200
        assert client.get("/health").status_code == 200


def test_a_step_that_fails_as_a_whole_stops_the_model_and_health_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(str(write_folder(tmp_path / "m")), dtype="fp32", max_model_len=512)

    def fail(*_: object) -> None:
        raise BoomError("boom")

    with serve(config(), llm) as server, server.client() as client:
        with client.stream("POST", "/v1/completions", json=NEIGHBOR | {"max_tokens": 400}) as neighbor:
            lines = neighbor.iter_lines()
            next(lines)
            monkeypatch.setattr(llm.backend.engine.scheduler, "schedule", fail)  # type: ignore[attr-defined]
            assert "internal error" in read_events("\n".join(lines))[-2]["error"]["message"]
        until(lambda: client.get("/health").status_code == 503, "the model is reported as failed")
        assert client.get("/health").json() == {"status": "failed", "models": ["tiny"]}
        assert client.post("/v1/completions", json={"prompt": "abc"}).status_code == 503

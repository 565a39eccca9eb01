"""GET /ui/operator: what who runs a server sees of it, read from a real one."""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from glm4.server.config import ModelSpec
from glm4.server.page import watch
from glm4.server.page.log_ring import MAX_RECORDS, LogRing
from live import config, serve
from scripted_llm import scripted_llm
from stepped import until

KEYS = ("the-first-key", "the-second-key")
ANSWER = "\nThe answer is long enough to be counted."


def ask(client: httpx.Client, content: str = "Hi", **more: Any) -> httpx.Response:
    return client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}], **more})


def test_it_is_for_who_has_the_first_key(tmp_path: Path) -> None:
    made = scripted_llm(tmp_path / "m", lambda prompt: ANSWER)
    with serve(config(ui=True, api_keys=KEYS), made) as live, live.client() as client:
        assert client.get("/ui/operator").status_code == 401
        refused = client.get("/ui/operator", headers={"x-api-key": KEYS[1]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_operator")
        assert client.get("/ui/operator", headers={"x-api-key": KEYS[0]}).status_code == 200
        assert client.post("/ui/login", json={"key": KEYS[1]}).status_code == 200
        assert client.get("/ui/operator").status_code == 403
        assert client.post("/ui/login", json={"key": KEYS[0]}).status_code == 200
        assert client.get("/ui/operator").json()["models"][0]["state"] == "ready"


def test_without_the_page_there_is_none(tmp_path: Path) -> None:
    with serve(config(), scripted_llm(tmp_path / "m", lambda prompt: ANSWER)) as live, live.client() as client:
        assert client.get("/ui/operator").status_code == 404
        assert not rings()


def test_the_load_is_that_of_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SAMPLE_SECONDS", 0.02)
    made = scripted_llm(tmp_path / "m", lambda prompt: ANSWER, delay=0.01)
    with serve(config(ui=True), made) as live, live.client() as client:
        until(lambda: len(client.get("/ui/operator").json()["history"]["seconds"]) > 1, "samples")
        usage = ask(client).json()["usage"]
        count = len(client.get("/ui/operator").json()["history"]["seconds"])
        until(lambda: len(client.get("/ui/operator").json()["history"]["seconds"]) > count + 1, "a sample behind it")
        seen = client.get("/ui/operator").json()
        history, (model,) = seen["history"], seen["models"]
        assert (model["name"], model["state"], model["context"], model["progress"]) == ("tiny", "ready", 4096, None)
        assert (model["prompt_tokens"], model["generation_tokens"]) == (
            usage["prompt_tokens"], usage["completion_tokens"],
        )  # fmt: skip
        metrics = client.get("/metrics").text
        for name in ("prompt_tokens", "generation_tokens"):
            found = re.search(rf'glm4:{name}_total{{model_name="tiny"}} ([\d.]+)', metrics)
            assert found is not None
            assert float(found[1]) == model[name]
        assert len({len(column) for column in history.values()}) == 1
        assert history["seconds"] == sorted(history["seconds"])
        assert max(history["prompt_tps"]) > 0
        assert max(history["generation_tps"]) > 0
        assert max(history["running"]) == 1
        assert all(0 <= share <= 1 for share in history["kv"])
        memory = seen["memory"]
        assert 0 < memory["process"] < memory["total"]
        assert 0 < memory["available"] < memory["total"]
        assert seen["uptime"] > 0


def test_an_hour_is_kept() -> None:
    assert watch.SAMPLE_SECONDS * watch.SAMPLES == 3600
    assert watch.Watch()._samples.maxlen == watch.SAMPLES


def test_queues_are_seen_while_they_are_there(tmp_path: Path) -> None:
    made = scripted_llm(tmp_path / "m", lambda prompt: "\n" + "a" * 3000, delay=0.02, max_num_seqs=1)
    with serve(config(ui=True), made) as live, live.client() as client, live.client() as other, live.client() as third:

        def model() -> Any:
            return other.get("/ui/operator").json()["models"][0]

        second = threading.Thread(target=lambda: ask(third, max_tokens=1))
        body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as first:
            lines = first.iter_lines()
            next(lines)
            second.start()
            until(lambda: (model()["running"], model()["waiting"]) == (1, 1), "one runs and one waits")
        second.join()
        assert (model()["running"], model()["waiting"]) == (0, 0)


def test_loading_and_failing_are_told(tmp_path: Path) -> None:
    goes_on = threading.Event()

    def load(spec: ModelSpec, progress: Any) -> Any:
        progress("pulling tiny", 24e6, 96e6)
        goes_on.wait(120)
        raise RuntimeError("the path of a secret")

    with serve(config(ui=True), load=load, wait=False) as live, live.client() as client:

        def model() -> Any:
            return client.get("/ui/operator").json()["models"][0]

        until(lambda: model()["progress"] is not None, "it has begun")
        assert (model()["state"], model()["stage"], model()["progress"]) == (
            "loading", "pulling tiny, 25% of 96 MB", 0.25,
        )  # fmt: skip
        goes_on.set()
        until(lambda: model()["state"] == "failed", "it has failed")
        assert model()["error"] == "internal error (RuntimeError)"
        (record,) = client.get("/ui/operator").json()["errors"]
        assert (record["level"], record["logger"]) == ("ERROR", "glm4.server")
        assert record["message"].startswith("tiny cannot be loaded\nRuntimeError ← test_page_operator.py:")
        assert "secret" not in record["message"]


def test_errors_are_told_without_what_was_sent(tmp_path: Path) -> None:
    def answer(prompt: str) -> str:
        raise ValueError(f"cannot answer {prompt}")

    made = scripted_llm(tmp_path / "m", answer)
    with serve(config(ui=True, api_keys=KEYS), made) as live, live.client(headers={"x-api-key": KEYS[0]}) as client:
        assert ask(client, "a private question").status_code == 500
        seen = client.get("/ui/operator")
        record = seen.json()["errors"][-1]
        assert record["level"] == "ERROR"
        assert "ValueError" in record["message"]
        assert " in answer" in record["message"]
        assert "private" not in seen.text
        assert not any(key in seen.text for key in KEYS)


def test_the_log_is_bounded_and_taken_away(tmp_path: Path) -> None:
    with serve(config(ui=True), scripted_llm(tmp_path / "m", lambda prompt: ANSWER)) as live, live.client() as client:
        logger = logging.getLogger("glm4.somewhere")
        for number in range(MAX_RECORDS + 50):
            logger.warning("warning %d %s", number, "x" * 5000)
        logger.info("nothing to see")
        logger.error("%d arguments that do not fit")
        logging.getLogger("another").error("not ours")
        errors = client.get("/ui/operator").json()["errors"]
        assert len(errors) == MAX_RECORDS
        assert errors[0]["message"].startswith("warning 51 x")
        assert errors[-1]["message"] == "%d arguments that do not fit"
        assert max(len(one["message"]) for one in errors) <= 1000
        assert len(rings()) == 1
    assert not rings()


def rings() -> list[logging.Handler]:
    return [handler for handler in logging.getLogger("glm4").handlers if isinstance(handler, LogRing)]

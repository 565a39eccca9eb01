"""Responses when something goes wrong: clients that leave, time limits, a store that is full, kill -9."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai_schema

from live import LiveServer, config, serve
from scripted_llm import scripted_llm
from tiny import write_folder

LONG = "\n" + "word " * 200


@contextmanager
def slow(folder: Path, **options: Any) -> Iterator[LiveServer]:
    """A server that takes ten seconds for an answer."""
    with serve(config("tiny", **options), scripted_llm(folder, lambda prompt: LONG, delay=0.01)) as running:
        yield running


def events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            openai_schema.check_response_event(event)
            yield event


def test_a_client_that_leaves(tmp_path: Path) -> None:
    with slow(tmp_path, store_path=tmp_path / "s.db") as running, running.client() as http:
        with http.stream("POST", "/v1/responses", json={"input": "hi", "stream": True}) as response:
            for event in events(response):
                if event["type"] == "response.created":
                    made = event["response"]["id"]
                    found = http.get(f"/v1/responses/{made}").json()
                    openai_schema.check_response(found)
                    assert (found["status"], found["output"]) == ("in_progress", [])
                    early = http.post("/v1/responses", json={"input": "more", "previous_response_id": made})
                    assert (early.status_code, early.json()["error"]["param"]) == (400, "previous_response_id")
                if event["type"] == "response.output_text.delta" and len(event["delta"].strip()) > 0:
                    break
        while (found := http.get(f"/v1/responses/{made}").json())["status"] == "in_progress":
            time.sleep(0.01)
        openai_schema.check_response(found)
        (message,) = found["output"]
        text = message["content"][0]["text"]
        assert (found["status"], message["status"]) == ("cancelled", "incomplete")
        assert text
        assert LONG[1:].startswith(text)
        while running.llm.has_unfinished_requests():  # the record is written first
            time.sleep(0.01)


def test_clients_that_vanish_at_once_leave_nothing_unfinished(tmp_path: Path) -> None:
    store = tmp_path / "s.db"
    with slow(tmp_path, store_path=store) as running, closing(sqlite3.connect(store)) as rows:
        body = json.dumps({"input": "hi", "stream": True})
        head = "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
        for number in range(30):
            with socket.create_connection(address) as connection:
                connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
                time.sleep(0.002 * number)  # gone at every stage: unread, being prepared, being stored, streaming
        with running.client() as http:
            last = http.post("/v1/responses", json={"input": "hi", "max_output_tokens": 3}).json()
        while running.llm.has_unfinished_requests():
            time.sleep(0.01)
        statuses = "SELECT status, count(*) FROM responses GROUP BY status"
        while "in_progress" in (found := dict(rows.execute(statuses))):
            time.sleep(0.01)
        assert last["status"] == "incomplete"
        assert set(found) <= {"cancelled", "incomplete"}
        assert found["incomplete"] == 1
        assert running.state.models.models[0].admission.num_taken == 0  # type: ignore[union-attr]


def test_a_time_limit_in_the_middle(tmp_path: Path) -> None:
    with slow(tmp_path, request_timeout=0.5) as running, running.client() as http:
        assert http.post("/v1/responses", json={"input": "hi"}).status_code == 504
        with http.stream("POST", "/v1/responses", json={"input": "hi", "stream": True}) as response:
            seen = list(events(response))
        assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
        assert [event["type"] for event in seen[-3:]] == ["response.output_item.done", "error", "response.failed"]
        assert seen[-2]["code"] == "timeout"
        failed = seen[-1]["response"]
        assert failed["error"]["message"] == seen[-2]["message"]
        assert failed["output"] == [seen[-3]["item"]]
        assert http.get(f"/v1/responses/{failed['id']}").json() == failed


def test_an_answer_that_cannot_be_stored_is_not_said_to_be(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path, lambda prompt: LONG)
    with serve(config("tiny", store_max_bytes=1500), llm) as running, running.client() as http:
        whole = http.post("/v1/responses", json={"input": "hi"})
        assert whole.status_code == 500
        assert whole.json()["error"]["param"] == "store"
        with http.stream("POST", "/v1/responses", json={"input": "hi", "stream": True}) as response:
            seen = list(events(response))
        assert [event["type"] for event in seen[-3:]] == ["response.output_item.done", "error", "response.failed"]
        assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
        found = http.get(f"/v1/responses/{seen[0]['response']['id']}").json()
        assert (found["status"], found["output"]) == ("failed", [])
        assert http.post("/v1/responses", json={"input": "hi", "store": False}).status_code == 200


def test_a_response_deleted_while_it_is_written_stays_deleted(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path, lambda prompt: LONG[:60], delay=0.01)
    with serve(config("tiny"), llm) as running, running.client() as http:
        with http.stream("POST", "/v1/responses", json={"input": "hi", "stream": True}) as response:
            for event in events(response):
                if event["type"] == "response.created":
                    made = event["response"]["id"]
                    assert http.delete(f"/v1/responses/{made}").json()["deleted"]
        assert event["type"] == "response.completed"
        assert http.get(f"/v1/responses/{made}").status_code == 404


def test_a_damaged_store_stops_the_command(tmp_path: Path) -> None:
    store = tmp_path / "s.db"
    store.write_bytes(b"\0" * 5000)
    command = [sys.executable, "-m", "glm4", "serve", "-m", "nothing", "--port", "0", "--store", str(store)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    message = " ".join(ended.stderr.split())
    assert "file is not a database; move " in message
    assert "to start with an empty store" in message
    assert "Traceback" not in message
    assert "serving" not in message


# kill -9


@dataclass
class Told:
    """What clients were told before the server died."""

    created: list[str] = field(default_factory=list)
    complete: dict[str, Any] = field(default_factory=dict)


@contextmanager
def started(folder: Path, store: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`glm4 serve` as a process of its own, and its address."""
    command = [sys.executable, "-m", "glm4", "serve", "-m", str(folder), "--served-model-name", "*", "--port", "0"]
    output = store.with_suffix(".log")
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--store", str(store), "--dtype", "fp32", "--max-num-seqs", "8"],
            stderr=file,
            env={**os.environ, "GLM4_PACKED_CACHE_GB": "0", "NO_COLOR": "1"},
        )
    try:
        while not (found := re.search(r"http://[\d.]+:\d+", output.read_text())):
            assert process.poll() is None, output.read_text()
            time.sleep(0.05)
        with httpx.Client(base_url=found.group()) as http:
            while not _ready(http):
                assert process.poll() is None, output.read_text()
                time.sleep(0.05)
        yield process, found.group()
    finally:
        process.kill()
        process.wait()


def _ready(http: httpx.Client) -> bool:
    try:
        return http.get("/ready").status_code == 200
    except httpx.TransportError:
        return False


def ask(url: str, told: Told, *, stream: bool) -> None:
    """Talk until the server is gone."""
    body = {"input": "hi", "max_output_tokens": 6, "ignore_eos": True, "stream": stream}
    with httpx.Client(base_url=url, timeout=30) as http:
        try:
            while True:
                if not stream:
                    response = http.post("/v1/responses", json=body).json()
                    told.complete[response["id"]] = response
                    continue
                with http.stream("POST", "/v1/responses", json=body) as streamed:
                    for event in events(streamed):
                        if event["type"] == "response.created":
                            told.created.append(event["response"]["id"])
                        if event["type"] == "response.incomplete":
                            told.complete[event["response"]["id"]] = event["response"]
        except httpx.TransportError:
            return


def test_kill_9_loses_nothing_a_client_was_told(tmp_path: Path) -> None:
    folder, store = write_folder(tmp_path / "m"), tmp_path / "s.db"
    known = Told()
    for _ in range(2):  # the second time on a store that was left behind by the first
        told = Told()
        with started(folder, store) as (process, url):
            clients = [threading.Thread(target=ask, args=(url, told), kwargs={"stream": n % 2 == 0}) for n in range(6)]
            for client in clients:
                client.start()
            while len(told.complete) < 40 and process.poll() is None:
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
            for client in clients:
                client.join()
            assert process.wait() == -signal.SIGKILL
        assert len(told.complete) >= 40
        assert told.created
        known.complete |= told.complete
        known.created += told.created
    with started(folder, store) as (process, url), httpx.Client(base_url=url, timeout=30) as http:
        for made, response in known.complete.items():
            assert http.get(f"/v1/responses/{made}").json() == response
        statuses = {http.get(f"/v1/responses/{made}").json()["status"] for made in known.created}
        assert statuses <= {"incomplete", "failed"}
        body = {"input": "more", "previous_response_id": made, "max_output_tokens": 2}
        assert http.post("/v1/responses", json=body).status_code == 200
        process.terminate()
        assert process.wait(30) == 0

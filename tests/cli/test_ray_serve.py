"""Serving on a real Ray cluster: one port, several replicas, one of them killed under load."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import PROGRAM
from ray_head import HANG_SECONDS, Head, free_port, ray_head, settings

from adapter_files import factors, write_adapter
from glm4.checkpoints.checkpoint import open_checkpoint
from tiny import write_folder

pytestmark = [pytest.mark.ray, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

REPLICA = "ray::ServeReplica"
KEY = {"Authorization": "Bearer a-test-key"}
CHAT = "/v1/chat/completions"
LONG = {"messages": [{"role": "user", "content": "on"}], "max_tokens": 1900, "ignore_eos": True, "stream": True}
SHORT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_folder(tmp_path_factory.mktemp("tiny") / "model")
    with open_checkpoint(folder) as checkpoint:
        write_adapter(folder.with_name("poems"), factors(checkpoint.config))
    return folder


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with ray_head(tmp_path_factory.mktemp("home")) as started:
        yield started


@contextlib.contextmanager
def started(head: Head, source: Path, port: int, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [*PROGRAM, "serve", source.name, "--dtype", "fp32", "--context", "2048", "--max-num-seqs", "4"]
    command += [f"--ray={head.address}", "--replicas", "2", "--port", str(port), *more]
    # A relative path: replicas have another working directory.
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=settings(head.home, GLM4_API_KEY="a-test-key"),
        cwd=source.parent,
    ) as program:
        try:
            yield program
        finally:
            program.kill()


@contextlib.contextmanager
def serving(head: Head, model: Path) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    port = free_port()
    with (
        started(head, model, port, "--lora", "poems=poems") as program,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=KEY, timeout=60) as client,
    ):
        deadline = time.monotonic() + HANG_SECONDS
        while not is_ready(client):
            assert program.poll() is None, program.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield client, program


def is_ready(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return client.get("/ready").status_code == 200
    return False


class Stream(threading.Thread):
    """A long answer of one session; how it ended, once joined: "done", or the name of an error."""

    def __init__(self, client: httpx.Client, session: str) -> None:
        super().__init__()
        self.client, self.session = client, session
        self.begun = threading.Event()
        self.end = ""

    def run(self) -> None:
        try:
            with self.client.stream("POST", CHAT, json=LONG, headers={"x-session-id": self.session}) as answer:
                for line in answer.iter_lines():
                    self.begun.set()
                    self.end = "done" if line == "data: [DONE]" else self.end
        except httpx.TransportError as error:
            self.end = type(error).__name__
        self.begun.set()


def started_streams(client: httpx.Client, sessions: list[str]) -> list[Stream]:
    streams = [Stream(client, session) for session in sessions]
    for one in streams:
        one.start()
    for one in streams:
        assert one.begun.wait(HANG_SECONDS)
    return streams


def num_running(client: httpx.Client, session: str) -> int:
    """Of the replica that has this session."""
    text = client.get("/metrics", headers={"x-session-id": session}).text
    found = re.search(r"^glm4_num_requests_running\S* (\d+)", text, re.MULTILINE) or re.search(
        r"^glm4:num_requests_running\S* (\d+)", text, re.MULTILINE
    )
    assert found, text
    return int(found[1])


def apart(client: httpx.Client) -> list[str]:
    """Two sessions that are on different replicas."""
    (first,) = started_streams(client, ["session"])
    other = next(name for name in map(str, range(64)) if num_running(client, name) == 0)
    assert first.is_alive()  # or there was nothing to see
    first.join()
    return ["session", other]


def test_replicas(head: Head, model: Path) -> None:
    """One start for all that is asked of a server that runs: half a minute each."""
    with serving(head, model) as (client, program):
        check_the_application(client)
        sessions = apart(client)
        check_a_killed_replica(head, client, sessions)
        head.wait_for(REPLICA, 2)
        # Running streams end, then the program.
        streams = started_streams(client, sessions)
        program.send_signal(signal.SIGTERM)
        shown, errors = program.communicate(timeout=HANG_SECONDS)
        for one in streams:
            one.join()
        assert [one.end for one in streams] == ["done", "done"]
        assert (program.returncode, shown) == (0, b"")
        assert b"serving model at http://127.0.0.1:" in errors
    head.wait_for(REPLICA, 0)


def check_the_application(client: httpx.Client) -> None:
    assert client.post(CHAT, json=SHORT, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.post(CHAT, json=SHORT, headers={"Host": "elsewhere.example"}).status_code == 421
    # Adapters are on every replica.
    for session in map(str, range(6)):
        answer = client.post(CHAT, json={**SHORT, "model": "poems"}, headers={"x-session-id": session})
        assert (answer.status_code, answer.json()["model"]) == (200, "poems")
    answer = client.post("/v1/responses", json={"input": "hi", "max_output_tokens": 3})
    assert (answer.status_code, answer.json()["store"]) == (200, False)
    refused = client.post("/v1/responses", json={"input": "hi", "store": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "store")
    # A session stays where its prompts are cached.
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "a long prompt " * 30}], "max_tokens": 2}
    cached = []
    for _ in range(6):
        usage = client.post(CHAT, json=body, headers={"x-session-id": "mine"}).json()["usage"]
        cached.append(usage["prompt_tokens_details"]["cached_tokens"] > 0)
    assert cached == [False, True, True, True, True, True]


def check_a_killed_replica(head: Head, client: httpx.Client, sessions: list[str]) -> None:
    replicas = head.wait_for(REPLICA, 2)
    streams = started_streams(client, sessions)
    assert all(one.is_alive() for one in streams)
    os.kill(replicas[0], signal.SIGKILL)
    # New requests are answered, those of the lost replica's sessions, too.
    asked = [{"x-session-id": name} for name in sessions] + [{}] * 18
    assert [client.post(CHAT, json=SHORT, headers=headers).status_code for headers in asked] == [200] * 20
    for one in streams:
        one.join()
    broken = [one.end for one in streams if one.end != "done"]
    assert len(broken) == 1, [one.end for one in streams]
    head.wait_for(REPLICA, 2, besides=replicas[0])


def test_a_model_that_cannot_be_loaded_is_named(head: Head, tmp_path: Path) -> None:
    with started(head, tmp_path / "no-model", free_port()) as program:
        shown, errors = program.communicate(timeout=HANG_SECONDS)
    assert (program.returncode, shown) == (1, b"")
    assert "the replicas cannot start: " in errors.decode()
    assert "no-model cannot be loaded on " in errors.decode()
    head.wait_for(REPLICA, 0)

"""`glm4 serve` as a process: it starts, serves, and ends in good order when it is told to."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from answers import read_events

from stepped import until
from tiny import write_folder

TOKENS = 3000


class Server:
    """A process that serves, and what it writes."""

    def __init__(self, command: list[str]) -> None:
        environment = os.environ | {"GLM4_PACKED_CACHE_GB": "0"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        until(lambda: self.url or self.process.poll() is not None, "the address is written")
        assert self.url, "".join(self.lines)

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            self.lines += iter(stream.readline, "")

    @property
    def url(self) -> str:
        found = re.search(r"http://127\.0\.0\.1:\d+", "".join(self.lines))
        return found.group() if found else ""

    def refuses(self) -> bool:
        """New connections are turned away."""
        try:
            socket.create_connection(("127.0.0.1", int(self.url.rpartition(":")[2])), timeout=5).close()
        except ConnectionRefusedError:
            return True
        return False

    def end(self, seconds: float = 30) -> int:
        """Wait for the exit code."""
        code = self.process.wait(seconds)
        self._reader.join()
        return code


@contextmanager
def process(*command: str) -> Iterator[Server]:
    server = Server([sys.executable, *command])
    try:
        yield server
    finally:
        server.process.kill()
        server.end()


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Server]:
    folder = str(write_folder(tmp_path / "m"))
    options = ["-m", f"tiny={folder}", "--dtype", "fp32", "--context", "4096", "--port", "0", "--max-num-seqs", "1"]
    with process("-m", "glm4", "serve", *options) as server:
        until(lambda: httpx.get(f"{server.url}/ready").status_code == 200, "the model is ready")
        yield server


def test_sigterm_lets_what_runs_finish_and_admits_nobody(serving: Server) -> None:
    body = {"prompt": "abc", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    refused: list[httpx.Response] = []
    with httpx.Client(base_url=serving.url, timeout=60) as client:

        def wait_in_the_queue() -> None:
            refused.append(client.post("/v1/completions", json=body | {"stream": False}))

        with client.stream("POST", "/v1/completions", json=body) as response:
            received = response.iter_text()
            text = next(received)
            waiting = threading.Thread(target=wait_in_the_queue)
            waiting.start()
            until(lambda: 'num_requests_waiting{model_name="tiny"} 1.0' in client.get("/metrics").text, "a queue")
            serving.process.send_signal(signal.SIGTERM)
            waiting.join()
            until(serving.refuses, "new connections are refused")
            assert serving.process.poll() is None, "the answer is still being given"
            text += "".join(received)
    *chunks, done = read_events(text)
    assert done == "[DONE]"
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert refused[0].status_code == 503
    assert refused[0].json()["error"]["code"] == "shutting_down"
    assert int(refused[0].headers["retry-after"]) > 0
    assert serving.end() == 0
    assert "Traceback" not in "".join(serving.lines)


def test_sigint_ends_an_idle_server_quietly(serving: Server) -> None:
    serving.process.send_signal(signal.SIGINT)
    assert serving.end() == 0
    assert "Traceback" not in "".join(serving.lines)


def test_an_answer_that_takes_too_long_does_not_hold_up_the_end(tmp_path: Path) -> None:
    folder = str(write_folder(tmp_path / "m"))
    options = ["-m", folder, "--dtype", "fp32", "--port", "0", "--shutdown-timeout", "1"]
    with process("-m", "glm4", "serve", *options) as server:
        until(lambda: httpx.get(f"{server.url}/ready").status_code == 200, "the model is ready")
        body = {"prompt": "abc", "max_tokens": 8000, "n": 8, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = _whatever_comes(lines)
        assert rest
        assert "data: [DONE]" not in rest
        assert server.end() == 0


def test_a_text_that_is_being_tokenized_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """A thread in native code cannot be interrupted; neither asyncio nor the interpreter may wait for it."""
    folder = str(write_folder(tmp_path / "m"))
    with process(str(Path(__file__).with_name("slow_tokenizer.py")), folder) as server:
        until(lambda: httpx.get(f"{server.url}/ready").status_code == 200, "the model is ready")
        outcome: list[object] = []

        def ask() -> None:
            try:
                outcome.append(httpx.post(f"{server.url}/tokenize", json={"prompt": "x"}, timeout=120).status_code)
            except httpx.HTTPError as error:
                outcome.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        until(lambda: "tokenizing" in "".join(server.lines), "it has begun")
        server.process.send_signal(signal.SIGTERM)
        assert server.end(60) == 0
        asking.join()
        assert outcome != [200]


def _whatever_comes(lines: Iterator[str]) -> list[str]:
    got: list[str] = []
    with suppress(httpx.RemoteProtocolError):
        got += lines
    return got


def test_sigterm_while_a_model_is_loading(tmp_path: Path) -> None:
    with process(str(Path(__file__).with_name("slow_load.py")), str(tmp_path)) as server:
        until(lambda: "loading\n" in server.lines, "loading has begun")
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert httpx.get(f"{server.url}/ready").status_code == 503
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0
        assert "Traceback" not in "".join(server.lines)


def test_a_killed_server_can_start_again_on_the_same_port(tmp_path: Path) -> None:
    folder = str(write_folder(tmp_path / "m"))
    options = ["-m", folder, "--dtype", "fp32", "--context", "4096", "--max-num-seqs", "2"]
    answers: list[Any] = []
    port = "0"
    for _ in range(2):
        with process("-m", "glm4", "serve", *options, "--port", port) as server:
            port = server.url.rpartition(":")[2]
            until(lambda: httpx.get(f"{server.url}/ready").status_code == 200, "the model is ready")
            body = {"prompt": "abc", "max_tokens": 20, "temperature": 0, "ignore_eos": True}
            answers.append(httpx.post(f"{server.url}/v1/completions", json=body).json()["choices"])
            with httpx.stream("POST", f"{server.url}/v1/completions", json=body | {"stream": True}) as response:
                lines = response.iter_lines()
                assert json.loads(next(lines).removeprefix("data: "))["choices"]
                server.process.kill()
            assert server.end() == -signal.SIGKILL
    assert answers[0] == answers[1]

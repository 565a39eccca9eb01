"""Clients that misbehave on the wire: they vanish, stop reading, read slowly. Nobody else notices, nothing is left."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from answers import joined_message, read_events

from glm4.llm import LLM
from glm4.outputs import StreamChunk
from live import LiveServer, config, serve
from scripted_llm import scripted_llm
from stepped import stepped, until
from tiny import write_folder

VANISHING = 500
AT_ONCE = 32


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = write_folder(tmp_path_factory.mktemp("model"))
    llm = LLM(str(folder), dtype="fp32", max_num_seqs=24, max_model_len=2048)
    with serve(config(max_queue=1000), llm) as running:
        yield running


def request_bytes(path: str, body: dict[str, Any], connection: str = "keep-alive") -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data


def neighbour(client: httpx.Client) -> dict[str, Any]:
    """A sampled answer with everything that could differ: text, token ids, log-probabilities to the last bit."""
    body = {
        "prompt": "neighbour", "max_tokens": 150, "seed": 1, "temperature": 1, "ignore_eos": True, "logprobs": 3,
        "stream": True, "return_token_ids": True,
    }  # fmt: skip
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200
    *chunks, done = read_events(response.text)
    assert done == "[DONE]"
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    scores = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    return {
        "text": "".join(choice["text"] for choice in choices),
        "ids": [token for choice in choices for token in choice["token_ids"]],
        "scores": [value for one in scores for value in one["token_logprobs"]],
        "top": [value for one in scores for value in one["top_logprobs"]],
    }


async def vanish(address: tuple[str, int], chance: random.Random) -> None:
    """Connect, get somewhere between the first byte of a request and the end of its answer, and go without a word."""
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "go"}], "stream": True, "n": 2}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "wait"}]}),
        ("/v1/completions", {"prompt": "a stream", "stream": True}),
        ("/v1/completions", {"prompt": ["one", "two", "three"], "stream": True, "logprobs": 1}),
        ("/v1/completions", {"prompt": ["a", "b"] * 4}),
        ("/v1/embeddings", {"input": "abc " * 200}),
    ]
    path, body = chance.choice(requests)
    if path != "/v1/embeddings":
        body = body | {"max_tokens": 1500, "ignore_eos": True}
    sent = request_bytes(path, body)
    reader, writer = await asyncio.open_connection(*address)
    if chance.random() < 0.5:  # a reset instead of an orderly end
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    if chance.random() < 0.2:
        sent = sent[: chance.randrange(len(sent))]
    writer.write(sent)
    await writer.drain()
    wanted = chance.choice([0, 0, 1, 200, 2000, 8000])
    with suppress(asyncio.TimeoutError, asyncio.IncompleteReadError):
        await asyncio.wait_for(reader.readexactly(wanted), chance.choice([0.01, 0.2, 1.0]))
    writer.transport.abort()


async def storm(address: tuple[str, int]) -> None:
    chance = random.Random(5)
    free = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with free:
            await vanish(address, chance)

    await asyncio.gather(*(one() for _ in range(VANISHING)))


def test_vanishing_clients_leave_nothing_behind(server: LiveServer) -> None:
    nothing = dict.fromkeys(server.leftovers, 0)
    with server.client() as client:
        alone = neighbour(client)
        assert len(alone["ids"]) == len(alone["scores"]) == 150
        until(lambda: server.leftovers == nothing, "a quiet server")
        tasks = server.num_tasks
        over = threading.Event()
        heard: list[dict[str, Any]] = []

        def listen() -> None:
            while not over.is_set():
                heard.append(neighbour(client))

        listener = threading.Thread(target=listen)
        listener.start()
        try:
            asyncio.run(storm(server.address))
        finally:
            over.set()
            listener.join()
        assert heard
        assert all(answer == alone for answer in heard)
        until(lambda: server.leftovers == nothing, "no page, place or request is held")
        until(lambda: server.num_tasks == tasks, "no task is left")
        metrics = client.get("/metrics").text
    aborted = next(line for line in metrics.splitlines() if 'finished_reason="abort"' in line and "_total{" in line)
    assert float(aborted.split()[-1]) > 5, "answers were cut in the middle"


def test_hanging_up_frees_the_pages_within_one_step(tmp_path: Path) -> None:
    llm = LLM(str(write_folder(tmp_path / "m")), dtype="fp32", max_num_seqs=2, max_model_len=1024)
    backend = stepped(llm)
    with serve(config(), llm) as running, running.client() as client:
        try:
            prompts: tuple[dict[str, Any], ...] = ({"prompt": "abc" * 30}, {"prompt": ["abc" * 30, "def"], "n": 2})
            for body in prompts:
                body = body | {"max_tokens": 500, "ignore_eos": True, "stream": True}
                with client.stream("POST", "/v1/completions", json=body) as response:
                    backend.allow(8)
                    lines = response.iter_lines()
                    next(lines)
                    until(lambda: backend.waits and running.leftovers["pages"] > 0, "a running request")
                until(lambda: running.leftovers["places"] == 0, "the server has noticed")
                before = backend.steps
                backend.allow()  # the step that is under way
                until(lambda: not any(running.leftovers.values()), "everything is free")
                assert backend.steps == before + 1
        finally:
            backend.open()


def test_a_client_that_stops_reading_costs_little_and_is_cut_off(tmp_path: Path) -> None:
    text = "\n" + "0123456789" * 60
    # Repeated in every event, so that a few events fill the connection, and all of them would be 5 MB.
    metadata = {f"key {number}": "x" * 500 for number in range(16)}
    body = {"messages": [{"role": "user", "content": "?"}], "stream": True, "metadata": metadata}
    llm = scripted_llm(tmp_path / "m", lambda prompt: text)
    with serve(config(stall_timeout=10), llm, send_buffer=4096) as running, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(running.address)
        client.settimeout(60)
        client.sendall(request_bytes("/v1/chat/completions", body))
        until(lambda: running.unsent > 65536, "the connection is full")
        until(lambda: running.leftovers["running"] == 0, "the engine has said everything")
        assert running.leftovers["places"] == 1, "and the client has not heard it"
        assert sum(isinstance(thing, StreamChunk) for thing in gc.get_objects()) < 100
        assert 65536 < running.unsent < 300_000
        until(lambda: running.leftovers["places"] == 0, "the request is over")
        until(lambda: running.unsent == 0, "the connection is closed without waiting for the client to read")
        received = b""
        try:
            while data := client.recv(65536):
                received += data
        except ConnectionResetError:
            pass
        assert b"[DONE]" not in received
        with running.client() as other:
            assert other.get("/health").status_code == 200


def test_a_slow_reader_gets_every_character(tmp_path: Path) -> None:
    text = "".join(f"{number} 你好 𝒳\n" for number in range(400))
    llm = scripted_llm(tmp_path / "m", lambda prompt: "\n" + text, max_model_len=20_000)
    with serve(config(), llm, send_buffer=4096) as running, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(running.address)
        client.settimeout(60)
        body = {"messages": [{"role": "user", "content": "?"}], "stream": True}
        client.sendall(request_bytes("/v1/chat/completions", body, "close"))
        until(lambda: running.leftovers["running"] == 1, "the engine has begun")
        until(lambda: running.leftovers["running"] == 0, "the engine has finished before anything is read")
        received = b""
        while data := client.recv(1000):
            received += data
    *chunks, done = read_events(unchunked(received).decode())
    assert done == "[DONE]"
    assert joined_message(chunks)[0]["content"] == text
    assert len(chunks) < 5000, "joined while the client was slow"


def unchunked(response: bytes) -> bytes:
    """The body of a chunked HTTP response."""
    rest, body = response.partition(b"\r\n\r\n")[2], b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if int(size, 16) == 0:
            return body
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]


def test_no_event_cuts_a_character(tmp_path: Path) -> None:
    text = "漢字 𝒳𝒴 é 👩‍👩‍👧 " * 20
    llm = scripted_llm(tmp_path / "m", lambda prompt: "\n" + text)
    with serve(config(), llm) as running, running.client() as client:
        body = {"messages": [{"role": "user", "content": "?"}], "stream": True}
        raw = client.post("/v1/chat/completions", json=body).content
    events = [block.decode("utf-8") for block in raw.split(b"\n\n")]  # every one by itself
    assert len(events) > len(text) / 2
    chunks = [json.loads(one.removeprefix("data: ")) for one in events if one.startswith("data: {")]
    assert joined_message(chunks)[0]["content"] == text


def test_silence_is_filled_with_comments(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path / "m", lambda prompt: "\nHello")
    backend = stepped(llm)
    with serve(config(keep_alive=0.05), llm) as running, running.client() as client:
        body = {"messages": [{"role": "user", "content": "?"}], "stream": True}
        lines: list[str] = []
        try:
            with client.stream("POST", "/v1/chat/completions", json=body) as response:
                for line in response.iter_lines():
                    lines.append(line)
                    if lines.count(": keep-alive") == 3:
                        backend.open()
        finally:
            backend.open()
    *chunks, done = read_events("\n".join(lines))
    assert joined_message(chunks) == ({"content": "Hello", "reasoning_content": "", "tool_calls": []}, "stop")
    assert done == "[DONE]"

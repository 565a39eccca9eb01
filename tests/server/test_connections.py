"""Connections beyond the limit: idle ones give way, strangers' first; without descriptors the server waits quietly."""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from raw_http import HUNG_UP, connection, read_response

from glm4.server import listener
from live import LiveServer, config, serve
from scripted_llm import scripted_llm
from stepped import stepped, until

KEY = "a-key-for-tests"
MOST = 8


@contextmanager
def limited(folder: Path, **options: Any) -> Iterator[LiveServer]:
    llm = scripted_llm(folder, lambda prompt: "\nHello")
    with serve(config("tiny", max_connections=MOST, **options), llm) as running:
        yield running


def asked(sock: socket.socket, path: str = "/health", key: str | None = None) -> int:
    header = "" if key is None else f"Authorization: Bearer {key}\r\n"
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode())
    return read_response(sock)[0]


def is_open(sock: socket.socket) -> bool:
    try:
        return asked(sock) == 200
    except HUNG_UP:
        return False


def test_idle_connections_give_way_the_oldest_first(tmp_path: Path) -> None:
    with limited(tmp_path / "m") as server, ExitStack() as stack:
        socks = [stack.enter_context(connection(server)) for _ in range(5 * MOST)]
        for sock in socks[-MOST:]:
            sock.sendall(b"GET /health HTTP/1.1\r\nX: ")  # a head that never ends is idle, too
        with connection(server) as one:
            assert asked(one) == 200
            assert len(server.server.server_state.connections) <= MOST
        assert not is_open(socks[0])


def test_who_has_shown_a_key_stays_longer(tmp_path: Path) -> None:
    with limited(tmp_path / "m", api_keys=(KEY,)) as server, ExitStack() as stack:
        known = stack.enter_context(connection(server))
        assert asked(known, "/v1/models", KEY) == 200
        strangers = [stack.enter_context(connection(server)) for _ in range(3 * MOST)]
        assert asked(strangers[-1], "/v1/models", "a-wrong-key") == 401
        assert is_open(known)
        assert not is_open(strangers[0])


def test_busy_connections_are_not_closed_and_others_wait(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path / "m", lambda prompt: "\nHello", max_num_seqs=MOST)
    backend = stepped(llm)
    body = json.dumps({"prompt": "x"}).encode()
    request = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with serve(config("tiny", max_connections=MOST), llm) as server, ExitStack() as stack:
        stack.callback(backend.open)
        until(lambda: not server.server.server_state.connections, "the fixture's own connection has ended")
        busy = [stack.enter_context(connection(server)) for _ in range(MOST)]
        for sock in busy:
            sock.sendall(request)
        until(lambda: server.leftovers["places"] + server.leftovers["queue"] == MOST, "all of them are busy")
        waiting = stack.enter_context(connection(server))
        waiting.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        waiting.settimeout(0.3)
        with pytest.raises(TimeoutError):
            waiting.recv(1)
        backend.open()
        assert [read_response(sock)[0] for sock in busy] == [200] * MOST
        waiting.settimeout(60)
        assert read_response(waiting)[0] == 200


def test_without_descriptors_the_server_waits_quietly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with limited(tmp_path / "m") as server, caplog.at_level(logging.DEBUG), connection(server) as before:
        assert asked(before) == 200
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with ExitStack() as stack, socket.socket() as late:
            held = os.dup(late.fileno())
            stack.callback(os.close, held)
            filled = [os.dup(held) for _ in range(_free_below(held + 1))]
            resource.setrlimit(resource.RLIMIT_NOFILE, (max([held, *filled]) + 1, hard))
            stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            late.connect(server.address)
            assert asked(before) == 200, "those who are in are served"
            for one in filled:
                os.close(one)
            late.settimeout(60)
            assert asked(late) == 200, "it waited in the queue of the system"
        warnings = [one for one in caplog.records if one.levelno >= logging.WARNING]
        assert len(warnings) <= 1, [one.getMessage() for one in warnings]


def _free_below(limit: int) -> int:
    used = {int(one.name) for one in Path("/proc/self/fd").iterdir()}
    return len(set(range(limit)) - used)


def test_the_limit_of_open_files_is_raised_and_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [resource.getrlimit(resource.RLIMIT_NOFILE)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.append(pair))
    limits.append((256, 4096))
    assert listener.most_connections(1000) == 1000
    assert limits[-1] == (1128, 4096)
    limits.append((256, 512))
    assert listener.most_connections(1000) == 512 - 128
    assert limits[-1] == (512, 512)

"""HTTP by hand, for what no client library would send, and the shape of every refusal."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import openai_schema

from live import LiveServer

HUNG_UP = (BrokenPipeError, ConnectionResetError)
# Words of a stack trace, or of where this software lies.
LEAKS = ("Traceback", ".py", "site-packages", 'File "', "/src/", "/tmp", "/home", "/root", "glm4.")


def refused(response: httpx.Response, status: int, param: str | None = None) -> dict[str, Any]:
    """The error of a clean refusal."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    openai_schema.check_error(response.json())
    assert not [word for word in LEAKS if word in response.text], response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["param"] == param
    return error


def raw(server: LiveServer, data: bytes) -> tuple[int, bytes]:
    """Send bytes and read one response (interim ones are skipped); 0 where the connection was closed without one."""
    with connection(server) as sock:
        with suppress(*HUNG_UP):
            sock.sendall(data)
        return read_response(sock)


@contextmanager
def connection(server: LiveServer) -> Iterator[socket.socket]:
    with socket.create_connection(server.address, timeout=60) as sock:
        yield sock


def read_response(sock: socket.socket) -> tuple[int, bytes]:
    received = b""
    while True:
        while b"\r\n\r\n" not in received:
            part = sock.recv(1 << 16)
            if not part:
                return 0, received
            received += part
        head, _, received = received.partition(b"\r\n\r\n")
        status = int(head.split(b" ")[1])
        if status != 100:
            break
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    length = int(fields[b"content-length"])
    while len(received) < length:
        received += sock.recv(1 << 16)
    return status, received[:length]

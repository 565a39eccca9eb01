"""Requests that two servers in a row may read differently are answered once, and their connection closes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress

import httpx
import openai_schema
import pytest
from raw_http import HUNG_UP, connection

from glm4.server.connection import MAX_HEADER_BYTES, MAX_HEADER_FIELDS
from live import LiveServer, config, serve
from scripted_llm import scripted_llm

HEAD = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HIDDEN = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = b'{"prompt": "x"}'
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    llm = scripted_llm(tmp_path_factory.mktemp("model"), lambda prompt: "\nHello")
    with serve(config("tiny", max_body_bytes=1 << 20), llm) as running:
        yield running


def everything(server: LiveServer, data: bytes) -> bytes:
    """All that is answered until the connection closes."""
    received = b""
    with connection(server) as sock:
        with suppress(*HUNG_UP):
            sock.sendall(data)
        with suppress(*HUNG_UP):
            while part := sock.recv(1 << 16):
                received += part
    return received


def only_answer(server: LiveServer, data: bytes) -> tuple[int, str]:
    received = everything(server, data)
    assert received.count(b"HTTP/1.1 ") == 1, received
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    openai_schema.check_error(json.loads(body))
    return int(received.split(b" ")[1]), json.loads(body)["error"]["message"]


AMBIGUOUS: dict[str, bytes] = {
    "length and chunks": HEAD + b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n" % len(HIDDEN) + CHUNKS,
    "chunks and length": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + CHUNKS,
    "two lengths": HEAD + b"Content-Length: 15\r\nContent-Length: 16\r\n\r\n" + BODY,
    "two lengths in a list": HEAD + b"Content-Length: 15, 16\r\n\r\n" + BODY,
    "a length with a sign": HEAD + b"Content-Length: +15\r\n\r\n" + BODY,
    "a length in hexadecimal": HEAD + b"Content-Length: 0xf\r\n\r\n" + BODY,
    "a length continued": HEAD + b"Content-Length: 1\r\n 5\r\n\r\n" + BODY,
    "chunks named on a continued line": HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + CHUNKS,
    "a header continued with a tab": HEAD + b"X: a\r\n\tContent-Length: 15\r\n\r\n" + BODY,
    "a bare CR": HEAD + b"X: a\rContent-Length: 15\r\n\r\n" + BODY,
    "a bare LF": HEAD + b"X: a\nContent-Length: 15\r\n\r\n" + BODY,
    "only bare LF": b"GET /version HTTP/1.1\nHost: localhost\n\n",
    "an end of bare LF": HEAD + b"Content-Length: 15\n\n" + BODY,
    "chunked twice": HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + CHUNKS,
    "two encodings": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + CHUNKS,
    "nearly chunked": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKS,
    "chunks in HTTP/1.0": HEAD.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "a space before the colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKS,
}


@pytest.mark.parametrize("data", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_refused(server: LiveServer, data: bytes) -> None:
    status, message = only_answer(server, data + HIDDEN)
    assert status in (400, 501)
    assert "valid HTTP" in message


BAD_CHUNKS = {
    "no number": b"zz\r\nabc\r\n0\r\n\r\n",
    "a sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "a prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "too long": b"f" * 30 + b"\r\n",
    "bare LF": b"3\nabc\r\n0\r\n\r\n",
    "data beyond its size": b"3\r\nabcdef\r\n0\r\n\r\n",
    "no end of a chunk": b"3\r\nabc0\r\n\r\n" + HIDDEN,
}


@pytest.mark.parametrize("chunks", BAD_CHUNKS.values(), ids=BAD_CHUNKS)
def test_bad_chunks_end_the_connection(server: LiveServer, chunks: bytes) -> None:
    assert only_answer(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + HIDDEN)[0] == 400


def fields(count: int) -> bytes:
    return b"".join(b"X-%d: x\r\n" % n for n in range(count))


TOO_LARGE = {
    "at once": b"X: " + b"a" * MAX_HEADER_BYTES,
    "far too large": b"X: " + b"a" * 1_000_000,
    "many fields": fields(MAX_HEADER_FIELDS),
    "very many fields": fields(100_000),
}


@pytest.mark.parametrize("headers", TOO_LARGE.values(), ids=TOO_LARGE)
def test_large_headers_are_431(server: LiveServer, headers: bytes) -> None:
    status, message = only_answer(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n\r\n")
    assert status == 431
    assert "64 KB" in message
    assert "200" in message


def test_headers_up_to_the_limits_are_taken(server: LiveServer) -> None:
    for headers in (b"X: " + b"a" * (MAX_HEADER_BYTES - 200) + b"\r\n", fields(MAX_HEADER_FIELDS - 2)):
        head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + headers + b"\r\n"
        assert everything(server, head).startswith(b"HTTP/1.1 200 ")


def test_requests_behind_each_other_are_all_answered(server: LiveServer) -> None:
    first = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    second = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS
    last = HIDDEN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    received = everything(server, first + second + first + last)
    assert received.count(b"HTTP/1.1 200 ") == 4


@pytest.mark.parametrize("close", [True, False])
def test_a_client_that_sends_everything_first_sees_why_its_body_was_refused(server: LiveServer, close: bool) -> None:
    """A connection that is closed with unread data in it takes the response with it."""
    headers = {"connection": "close"} if close else {}
    with server.client(headers=headers) as client:
        for _ in range(3):
            assert client.post("/tokenize", content=b" " * (20 << 20)).status_code == 413


def test_a_refused_client_that_stays_is_hung_up_on(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glm4.server.connection.LINGER_SECONDS", 0.2)
    with connection(server) as sock:
        sock.sendall(AMBIGUOUS["length and chunks"])
        received = b""
        while part := sock.recv(1 << 16):
            received += part
        assert received.startswith(b"HTTP/1.1 400 ")
        with pytest.raises(HUNG_UP):
            sock.sendall(b"x" * (1 << 30))
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/health").status_code == 200

"""What no client library sends: always a clean refusal in OpenAI's shape, and never a trace in a neighbour's stream."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import openai_schema
import pytest
from raw_http import HUNG_UP, connection, raw, read_response, refused

from glm4.server.body import MAX_DEPTH, decode
from glm4.server.errors import MAX_MESSAGE, ApiError
from live import LiveServer, config, serve
from scripted_llm import scripted_llm

ANSWER = "\n" + "".join(f"line {n}: 世界 🌍\n" for n in range(8))
LIMIT = 1 << 20
CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    llm = scripted_llm(tmp_path_factory.mktemp("model"), lambda prompt: ANSWER, delay=0.002)
    limits: dict[str, Any] = {"max_body_bytes": LIMIT, "header_timeout": 0.5, "body_timeout": 0.5}
    with serve(config("tiny", **limits), llm) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def neighbour(server: LiveServer) -> Iterator[None]:
    """Streams one answer after the other through all these tests; each must be the text alone."""
    texts: list[str] = []
    over = threading.Event()

    def stream() -> None:
        with server.client() as client:
            while not over.is_set():
                texts.append(streamed_text(client))

    thread = threading.Thread(target=stream)
    thread.start()
    yield
    over.set()
    thread.join()
    assert set(texts) == {ANSWER.removeprefix("\n")}
    with server.client() as client:
        assert client.get("/health").json() == {"status": "ok"}


def streamed_text(client: httpx.Client) -> str:
    text = ""
    with client.stream("POST", CHAT, json=HELLO | {"stream": True}) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                text += json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content", "")
    return text


# Bodies


def test_the_neighbours_text_is_the_text_alone(client: httpx.Client) -> None:
    assert client.post(CHAT, json=HELLO).json()["choices"][0]["message"]["content"] == ANSWER.removeprefix("\n")


NOT_JSON: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n",
    "text": b"hello",
    "half": b'{"messages": [',
    "half a string": b'{"messages": "',
    "two": b"{}{}",
    "single quotes": b"{'prompt': 'x'}",
    "comma": b'{"prompt": "x",}',
    "comment": b'{"prompt": "x"} // y',
    "python": b'{"stream": True}',
    "array": b"[]",
    "string": b'"x"',
    "number": b"1",
    "null": b"null",
    "two byte order marks": b'\xef\xbb\xbf\xef\xbb\xbf{"prompt": "x"}',
    "not UTF-8": b'{"prompt": "\xff\xfe"}',
    "overlong UTF-8": b'{"prompt": "\xc0\xaf"}',
    "UTF-8 of a surrogate": b'{"prompt": "\xed\xa0\x80"}',
    "half a character": b'{"prompt": "\xe4\xb8"}',
    "UTF-16": '{"prompt": "x"}'.encode("utf-16"),
    "a lone surrogate": b'{"prompt": "\\ud800"}',
    "surrogates in the wrong order": b'{"prompt": "\\udc00\\ud800"}',
    "a lone surrogate in a key": b'{"\\udfff": 1}',
    "control character": b'{"prompt": "\x00"}',
    "NaN": b'{"prompt": "x", "temperature": NaN}',
    "Infinity": b'{"prompt": "x", "temperature": Infinity}',
    "-Infinity": b'{"prompt": "x", "temperature": -Infinity}',
    "beyond double precision": b'{"prompt": "x", "temperature": 1e999}',
    "many digits": b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
    "arrays": b"[" * 100_000,
    "closed arrays": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "just too deep": b'{"metadata": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
    "brackets behind an open string": b'{"a": ' + b"[]," * 100 + b'"' + b'\\"' * 100_000,
    "compressed": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab\xae\x05\x00C\xbf\xa6\xa3\x02\x00\x00\x00",
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_what_is_no_json_object_is_refused(client: httpx.Client, path: str, body: bytes) -> None:
    response = client.post(path, content=body, headers={"content-type": "application/json"})
    assert refused(response, 400)["code"] == "invalid_json"


def test_brackets_inside_of_strings_are_text() -> None:
    text = "[{" * 500 + '\\"' + "]" * 3 + "\\\\"
    assert decode(b'{"prompt": "' + text.encode() + b'"}') == {"prompt": text.replace('\\"', '"').replace("\\\\", "\\")}
    nested = b'{"a": ' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert list(decode(nested)) == ["a"]


def test_a_string_without_an_end_takes_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: from every quote in it, a naive search would read to the end again."""
    import glm4.server.body as module

    matches: list[str] = []
    pattern = module._STRING_OR_MARK

    class Counting:
        def finditer(self, text: str) -> Iterator[Any]:
            for match in pattern.finditer(text):
                matches.append(match.group())
                yield match

    monkeypatch.setattr(module, "_STRING_OR_MARK", Counting())
    with pytest.raises(ApiError):
        decode(b"{" + b"[]," * 100 + b'"' + b'\\"' * 5000)
    assert len(matches) == 1 + 300 + 1


@pytest.mark.parametrize("size", [LIMIT + 1, 1 << 40])
def test_a_declared_huge_body_is_refused_unread(server: LiveServer, size: int) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
    status, body = raw(server, head.encode())
    assert status == 413
    openai_schema.check_error(json.loads(body))


@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"])
def test_a_chunked_huge_body_is_refused_where_it_is_too_much(server: LiveServer, expect: str) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n{expect}\r\n"
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    status, body = raw(server, head.encode() + chunk * (LIMIT // 0x10000 + 2))
    assert status == 413
    openai_schema.check_error(json.loads(body))


def test_the_connection_of_a_refused_body_serves_the_next_request(client: httpx.Client) -> None:
    for _ in range(3):
        response = client.post(CHAT, content=b" " * (LIMIT + 1), headers={"content-type": "application/json"})
        assert "1 MB" in refused(response, 413)["message"]
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", ""]
)
def test_other_content_types_are_refused(client: httpx.Client, kind: str) -> None:
    response = client.post(CHAT, content=json.dumps(HELLO), headers={"content-type": kind})
    assert "application/json" in refused(response, 415)["message"]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.x+json"])
def test_json_by_its_other_names_is_taken(client: httpx.Client, kind: str) -> None:
    assert client.post("/tokenize", content=b'{"prompt": "x"}', headers={"content-type": kind}).status_code == 200


def test_a_body_without_a_type_is_taken_from_programs_only(client: httpx.Client) -> None:
    assert client.post("/tokenize", content=b'{"prompt": "x"}').status_code == 200
    refused(client.post("/tokenize", content=b'{"prompt": "x"}', headers={"origin": "https://evil.example"}), 415)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"x" * 100_000: 1}, "x" * 200 + "…"),
        ({"messages": "y" * 100_000}, "messages"),
        ({**HELLO, "user": ["y" * 100_000]}, "user"),
        ({**HELLO, "stop": [["y"] * 100_000]}, "stop"),
        ({"messages": [{"role": "y" * 100_000}]}, "messages[0].role"),
        ({**HELLO, "model": 5}, "model"),
        ({**HELLO, "tool_choice": {"type": "function", "function": {"name": "y" * 100_000}}}, "tool_choice"),
    ],
)
def test_errors_quote_little_of_what_they_refuse(client: httpx.Client, body: dict[str, Any], param: str) -> None:
    error = refused(client.post(CHAT, json=body), 400, param)
    assert len(error["message"]) <= MAX_MESSAGE + 1


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        *(("/v1/completions", "temperature", value) for value in (1e308, 10**400, -1)),
        *(("/v1/completions", "repetition_penalty", value) for value in (1e-308, 1e308, 10**400)),
        *(("/v1/completions", "presence_penalty", value) for value in (10**400, -3)),
        ("/v1/completions", "logit_bias", {"1": 10**400}),
        ("/completion", "logit_bias", [[1, 10**400]]),
        ("/completion", "repeat_penalty", 1e308),
        ("/completion", "n_probs", 10**400),
        *(
            (path, field, 10**400)
            for path in ("/v1/completions", CHAT)
            for field in ("max_tokens", "seed", "top_k", "n")
        ),
        (CHAT, "max_completion_tokens", 10**400),
        (CHAT, "stop_token_ids", [10**400]),
        ("/v1/responses", "max_output_tokens", 10**400),
        ("/v1/messages", "max_tokens", 10**400),
        ("/completion", "n_predict", 10**400),
        ("/detokenize", "tokens", [10**400]),
    ],
)
def test_numbers_out_of_every_range_are_refused(client: httpx.Client, path: str, field: str, value: Any) -> None:
    """Some of these once ended the engine, for everybody."""
    bodies: dict[str, Any] = {"/v1/responses": {"input": "x"}, "/v1/messages": HELLO, CHAT: HELLO, "/detokenize": {}}
    response = client.post(path, json={**bodies.get(path, {"prompt": "x"}), field: value})
    assert response.status_code == 400
    error = response.json()["error"]
    assert field in error["message"] if path == "/v1/messages" else error["param"] == field


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "assistant", "content": "hi", "tool_calls": 5}, "messages[0].tool_calls"),
        ({"role": "user", "content": "hi", "tools": 5}, "messages[0].tools"),
        ({"role": {"a": 1}, "content": "hi"}, "messages[0].role"),
        ({"role": "user", "content": {"a": 1}}, "messages[0].content"),
    ],
)
def test_odd_messages_are_refused(client: httpx.Client, message: dict[str, Any], param: str) -> None:
    refused(client.post(CHAT, json={"messages": [message]}), 400, param)


def test_an_unknown_model_is_quoted_harmlessly(client: httpx.Client) -> None:
    name = "<script>alert(1)</script>\r\nX-Evil: 1"
    response = client.post(CHAT, json=HELLO | {"model": name})
    assert refused(response, 404, "model")["code"] == "model_not_found"
    assert "x-evil" not in response.headers


# Paths and methods


@pytest.mark.parametrize(
    "path",
    [
        "/v1/nothing", "/v1/../health", "/v1/%2e%2e/health", "/HEALTH", "http:///v1/nothing", "http://[/health",
        "/docs/../openapi.json", "/docs/..%2f..%2fconfig.py", "/docs/%2e%2e/config.py",
        "/docs/docs.html", "/docs/docs.js%00", "/static/docs.js", "/etc/passwd", "/v1/models/../../etc/passwd",
        "/v1/models/%00", "/%ff%fe", "/" + "a" * 10_000, "/v1/responses/..%2f..",
        "http://localhost/v1/nothing", "*",
    ],
)  # fmt: skip
def test_there_is_nothing_behind_other_paths(server: LiveServer, path: str) -> None:
    status, body = raw(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert status == 404
    openai_schema.check_error(json.loads(body))


@pytest.mark.parametrize(
    "path",
    [
        *("/health", "/health/", "//health", "///health//", "/v1//health", "/v1/models/", "//v1//models"),
        *("http://localhost/health", "HTTP://127.0.0.1:8000//v1/models/?a=b", "http://[::1]:8000/health"),
    ],
)
def test_extra_slashes_and_whole_urls_are_taken(server: LiveServer, path: str) -> None:
    status, body = raw(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert status == 200
    assert b"status" in body or b"tiny" in body


def test_the_host_of_a_whole_url_counts(server: LiveServer) -> None:
    """Not the header, which a page on a rebound name could not set anyway (RFC 9112, 3.2.2)."""
    for url in ("http://evil.example/health", "http://localhost.evil.example/health", "http://localhost@evil.example/"):
        assert raw(server, f"GET {url} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())[0] == 421
    answer = raw(server, b"GET http://localhost/health HTTP/1.1\r\nHost: evil.example\r\n\r\n")
    assert answer[0] == 200


def test_a_byte_order_mark_is_taken(client: httpx.Client) -> None:
    for path, body in ((CHAT, HELLO), ("/v1/completions", {"prompt": "x"}), ("/tokenize", {"prompt": "x"})):
        content = b"\xef\xbb\xbf" + json.dumps(body).encode()
        assert client.post(path, content=content, headers={"content-type": "application/json"}).status_code == 200


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_other_encodings_are_named(client: httpx.Client, encoding: str) -> None:
    content = json.dumps({"prompt": "x"}).encode(encoding)
    response = client.post("/tokenize", content=content, headers={"content-type": "application/json"})
    assert "UTF-16" in refused(response, 400)["message"]


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "post", "BREW"])
def test_other_methods_are_refused(client: httpx.Client, method: str) -> None:
    response = client.send(httpx.Request(method.encode("ascii"), client.base_url.join(CHAT)))  # type: ignore[arg-type]
    if method == "post":  # httpx writes methods in capitals
        refused(response, 400)
        return
    refused(response, 405)
    assert response.headers["allow"] == "POST"


def test_a_response_to_head_has_no_body(client: httpx.Client) -> None:
    response = client.head("/v1/models")
    assert (response.status_code, response.content) == (200, b"")
    assert client.head(CHAT).status_code == 405


# HTTP itself


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
NOT_HTTP: dict[str, bytes] = {
    "nonsense": b"\x00\xff\x16\x03\x01\r\n\r\n",
    "a TLS greeting": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    "space in a name": HEAD + b"Bad Header: x\r\n\r\n",
    "space before the colon": HEAD + b"Content-Length : 2\r\n\r\n{}",
    "no colon": HEAD + b"nonsense\r\n\r\n",
    "a line break in a value": HEAD + b"X: a\rb\r\n\r\n",
    "a zero byte": HEAD + b"X: a\x00b\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a negative length": HEAD + b"Content-Length: -2\r\n\r\n{}",
    "a length in words": HEAD + b"Content-Length: two\r\n\r\n{}",
    "an unknown encoding": HEAD + b"Transfer-Encoding: gzip\r\n\r\n{}",
    "a bad chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a huge chunk size": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 100 + b"\r\n",
    "long headers": HEAD + b"X: " + b"a" * 200_000 + b"\r\n\r\n",
    "many headers": HEAD + b"".join(b"X-%d: x\r\n" % n for n in range(20_000)) + b"\r\n",
    "a long path": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("data", NOT_HTTP.values(), ids=NOT_HTTP)
def test_what_is_no_http_is_refused(server: LiveServer, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        status, body = raw(server, data)
    assert status in (400, 404, 431, 501), body
    openai_schema.check_error(json.loads(body))
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


def test_garbage_behind_a_running_stream_ends_only_that_stream(server: LiveServer) -> None:
    body = json.dumps(HELLO | {"stream": True}).encode()
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body))
    with connection(server) as sock:
        sock.sendall(head + body)
        assert b"200 OK" in sock.recv(1 << 16)
        sock.sendall(b"\x00garbage\r\n\r\n" * 10)
        received = b""
        with suppress(*HUNG_UP):
            while part := sock.recv(1 << 16):
                received += part
    assert b"Traceback" not in received


@pytest.mark.parametrize(
    "headers",
    [
        {"x-request-id": "a" * 500},
        {"x-request-id": "<b>\u00fc</b>".encode()},
        {"authorization": "Bearer " + "k" * 5000},
        {"authorization": b"\xff\xfe"},
        {"origin": b"\xff\xfe"},
        {"accept-encoding": "gzip, br, \x01"},
        {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-key": "x", "sec-websocket-version": "13"},
        {"content-encoding": "identity"},
        {"range": "bytes=0-1"},
    ],
)
def test_strange_headers_change_nothing(client: httpx.Client, headers: dict[str, Any]) -> None:
    if "accept-encoding" in headers:
        headers = {"accept-encoding": "gzip, br, *;q=nonsense"}
    response = client.get("/v1/models", headers=headers)
    assert response.status_code == 200
    assert response.headers["x-request-id"].startswith("req-")


# Time


def test_headers_that_trickle_are_cut_off(server: LiveServer) -> None:
    """A byte every now and then, for as long as the server listens; on a fresh connection and behind an answer."""
    for before in (b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        with connection(server) as sock:
            if before:
                sock.sendall(before)
                assert read_response(sock)[0] == 200
            sock.settimeout(0.02)
            received, closed = b"", False
            with suppress(*HUNG_UP):
                sock.sendall(b"GET / HTTP/1.1\r\nX: ")
                while not closed:
                    sock.sendall(b"a")
                    try:
                        part = sock.recv(1 << 16)
                        received, closed = received + part, not part
                    except TimeoutError:
                        continue
            assert received.startswith(b"HTTP/1.1 408 ")
            openai_schema.check_error(json.loads(received.partition(b"\r\n\r\n")[2]))


def test_a_connection_that_says_nothing_is_closed(server: LiveServer) -> None:
    with connection(server) as sock:
        assert sock.recv(1) == b""


def test_a_body_that_trickles_is_refused(server: LiveServer) -> None:
    for way in (b"Content-Length: 1000\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"):
        status, body = raw(server, HEAD + b"Content-Type: application/json\r\n" + way)
        assert status == 408
        openai_schema.check_error(json.loads(body))


def test_a_hundred_slow_clients_keep_nobody_out(server: LiveServer, client: httpx.Client) -> None:
    with ExitStack() as stack:
        socks = [stack.enter_context(connection(server)) for _ in range(100)]
        for n, sock in enumerate(socks):
            sock.sendall(HEAD + (b"" if n % 2 else b"Content-Length: 9\r\n\r\n{"))
        assert client.post("/tokenize", json={"prompt": "x"}).status_code == 200
        for sock in socks:
            assert read_response(sock)[0] == 408

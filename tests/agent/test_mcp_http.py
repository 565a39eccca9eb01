"""MCP servers over streamable HTTP: both protocols, a server that restarts, and answers that one may not give."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from mcp_helpers import HANG, HERE, call, check, context, invocation, opened, said

from glm4.agent.mcp.config import McpServer
from glm4.errors import ToolServerError


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running(port: int, *options: str) -> Iterator[str]:
    """The server of the official package."""
    command = [sys.executable, str(HERE / "mcp_sdk_server.py"), "http", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + HANG
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert time.monotonic() < end
                assert process.poll() is None
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.kill()


def server(url: str, **options: Any) -> McpServer:
    return McpServer("web", url=url, **{"startup": HANG, **options})


Answer = Callable[[dict[str, Any]], tuple[int, dict[str, str], bytes]]


@contextmanager
def answering(answer: Answer) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that answers each message with what `answer` makes of it; its URL, and the headers that came."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            seen.append(dict(self.headers))
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, headers, body = answer(message)
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.send_error(405)

        do_DELETE = do_GET  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{web.server_address[1]}/mcp", seen
        finally:
            web.shutdown()
            thread.join()


def handshake(message: dict[str, Any]) -> dict[str, Any]:
    """What a server of the protocol before 2026 answers."""
    if message["method"] == "initialize":
        info = {"name": "old", "version": "0"}
        return {"result": {"protocolVersion": "2025-03-26", "capabilities": {"tools": {}}, "serverInfo": info}}
    if message["method"] == "tools/list":
        return {"result": {"tools": [{"name": "ok", "inputSchema": {"type": "object"}}]}}
    return {"error": {"code": -32601, "message": "Method not found"}}


def reply(message: dict[str, Any], content: dict[str, Any] | None = None) -> tuple[int, dict[str, str], bytes]:
    if "id" not in message:
        return 202, {}, b""
    return 200, {}, json.dumps({"jsonrpc": "2.0", "id": message["id"], **(content or handshake(message))}).encode()


@pytest.mark.parametrize("options", [(), ("json",)], ids=["events", "json"])
def test_a_server_of_the_official_package(options: tuple[str, ...]) -> None:
    port = free_port()
    with running(port, *options) as url, opened(server(url)) as tool:
        assert "web__echo" in [function.name for function in tool.functions]
        assert tool._connection.protocol == "2026-07-28"
        assert json.loads(said(call(tool, "add", a=1, b=2))) == {"sum": 3}
        assert call(tool, "fail").failed
        shown, heard = context()
        assert said(tool.run(invocation(tool, "steps", count=3), shown)) == "done"
        if not options:
            assert [channel for channel, _ in heard.texts] == ["log"] * 3
            assert said(call(tool, "grow", name="more")) == "added"
            end = time.monotonic() + HANG
            while "web__more" not in [function.name for function in tool.functions]:
                assert time.monotonic() < end
                time.sleep(0.02)


def test_a_server_that_restarts_is_found_again() -> None:
    port = free_port()
    with opened(server(f"http://127.0.0.1:{port}/mcp")) as tool:
        with pytest.raises(ToolServerError, match=r"MCP server 'web' \(http://127.0.0.1:.*/mcp\): .*onnect"):
            check(tool)
        for text in ("a", "b"):
            with running(port):
                end = time.monotonic() + HANG
                while (found := said(call(tool, "echo", text=text))) != text:
                    assert "next attempt" in found or "onnect" in found or "no function" in found
                    assert time.monotonic() < end
                    time.sleep(0.1)
        assert call(tool, "echo", text="c").failed


def test_a_session_that_the_server_forgot_is_begun_anew() -> None:
    sessions: list[str] = []
    forgotten: list[str] = []

    def answer(message: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        if message["method"] == "initialize":
            sessions.append(f"s{len(sessions)}")
            status, headers, body = reply(message)
            return status, {**headers, "Mcp-Session-Id": sessions[-1]}, body
        if message["method"] == "tools/call":
            if len(sessions) == 1:
                forgotten.append(sessions[0])
                return 404, {}, b"{}"
            return reply(message, {"result": {"content": [{"type": "text", "text": "again"}]}})
        return reply(message)

    with answering(answer) as (url, _), opened(server(url)) as tool:
        assert said(call(tool, "ok")) == "again"
        assert (sessions, forgotten) == (["s0", "s1"], ["s0"])
        assert tool._connection.protocol == "2025-03-26"


def test_headers_are_sent_and_no_redirect_leads_elsewhere() -> None:
    with answering(reply) as (elsewhere, stolen):

        def redirect(message: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
            return 307, {"Location": elsewhere}, b""

        with answering(redirect) as (url, seen), opened(server(url, headers={"Authorization": "Bearer x"})) as tool:
            with pytest.raises(ToolServerError, match=r"Redirect to .* not followed"):
                check(tool)
            assert seen[0]["Authorization"] == "Bearer x"
        assert stolen == []


def big(message: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    if message["method"] == "tools/call":
        return reply(message, {"result": {"content": [{"type": "text", "text": "x" * (17 << 20)}]}})
    return reply(message)


def packed(message: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    status, headers, body = reply(message)
    return status, {**headers, "Content-Encoding": "gzip"}, body


def broken(message: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    return reply(message) if message["method"] != "tools/call" else (200, {}, b"{not json")


def page(message: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "text/html"}, b"<h1>Hello"


def locked(message: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    return 401, {}, b"{}"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (big, "sent a message of more than 16 MB"),
        (packed, "sent a compressed answer"),
        (broken, "JSON"),
        (page, "Unexpected content type: text/html"),
        (locked, "HTTP status 401"),
    ],
)
def test_answers_that_one_may_not_give(answer: Answer, problem: str) -> None:
    with answering(answer) as (url, _), opened(server(url)) as tool:
        text = said(call(tool, "ok"))
        if "no function" in text:
            tool._connection._not_before = 0.0
            with pytest.raises(ToolServerError) as caught:
                check(tool)
            text = str(caught.value)
        assert problem in text


def test_a_server_that_does_not_answer_cannot_hold_the_end_up() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/mcp"
        with opened(server(url, startup=1.0)) as tool:
            with pytest.raises(ToolServerError, match="did not answer within 1 seconds"):
                check(tool)
            began = time.monotonic()
        assert time.monotonic() - began < HANG

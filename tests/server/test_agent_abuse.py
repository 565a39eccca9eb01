"""The assistant's server holds: few documents are read at once, few tools are open, and nothing is left behind."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from builtin_tools import KEY, scripted, tool_server
from mcp_helpers import processes_with
from python_conversations import needs_sandbox

from glm4.agent.limits import AgentLimits
from glm4.documents import loading
from live import LiveServer
from stepped import until

pytestmark = pytest.mark.slow  # minutes on two cores, together with the like

HEADERS = {"Authorization": f"Bearer {KEY}"}
HANG = [("Hang", "tests__hang\n{}"), ("", "\nFine.")]
MCP: dict[str, Any] = {"tools": ["mcp:tests"]}


def post(live: LiveServer, path: str, body: dict[str, Any]) -> httpx.Response:
    with live.client(headers=HEADERS) as http:
        return http.post(path, json=body)


def start(live: LiveServer, content: str = "Hang", **more: Any) -> httpx.Response:
    return post(live, "/v1/agent/turns", {"content": content, **more})


def ended(live: LiveServer, turn: str) -> dict[str, Any]:
    """The last event of a turn."""
    with live.client(headers=HEADERS) as http:
        text = http.get(f"/v1/agent/turns/{turn}/events?after=0").text
    last = [line for line in text.splitlines() if line.startswith("data: ")][-1]
    return json.loads(last.removeprefix("data: "))


def at_once(count: int, work: Callable[[int], httpx.Response]) -> list[httpx.Response]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def runs(folder: Path, count: int) -> None:
    """So many servers of the folder's MCP configuration run."""
    until(lambda: len(processes_with(str(folder))) == count, f"{count} processes run")


@needs_sandbox
def test_few_documents_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, reading, most, total = threading.Lock(), 0, 0, 0
    real = loading.load_document

    def counted(data: bytes, name: str, **options: Any) -> Any:
        nonlocal reading, most, total
        with lock:
            reading, total = reading + 1, total + 1
            most = max(most, reading)
        try:
            return real(data, name, **options)
        finally:
            with lock:
                reading -= 1

    monkeypatch.setattr(loading, "load_document", counted)
    with tool_server(tmp_path, scripted([("", "\nRead.")]), "files", agent={"max_reading": 2}) as live:

        def ask(number: int) -> httpx.Response:
            with live.client(headers=HEADERS) as http:
                sent = http.post(f"/v1/agent/files?name=f{number}.md", content=f"# {number}\n\nText.".encode()).json()
                return http.post(
                    "/v1/agent/chat", json={"content": "Read it", "files": [sent["file"]], "tools": ["files"]}
                )

        answers = at_once(6, ask)
        assert all('"completed"' in answer.text for answer in answers), [answer.text for answer in answers]
    assert total == 12  # for the message, and for the tool
    assert most == 2


def test_few_conversations_have_open_tools(tmp_path: Path) -> None:
    with tool_server(tmp_path, scripted(HANG), "mcp:tests", agent={"max_open": 2}) as live:
        turns = [start(live, **MCP).json() for _ in range(2)]
        runs(tmp_path, 2)
        third = start(live, **MCP)
        assert (third.status_code, third.headers["retry-after"]) == (429, "5")
        with live.client(headers=HEADERS) as http:  # nothing is left of that
            assert len(http.get("/v1/agent/conversations").json()["conversations"]) == 2
        response = post(live, "/v1/responses", {
            "input": "hi", "tools": [{"type": "mcp", "server_label": "tests", "require_approval": "never"}],
        })  # fmt: skip
        assert response.status_code == 429
        assert ended(live, start(live, "Hello").json()["turn"])["status"] == "completed"
        for turn in turns:
            post(live, f"/v1/agent/turns/{turn['turn']}/stop", {})
            assert ended(live, turn["turn"])["status"] == "stopped"
        fourth = start(live, **MCP).json()  # the tools of the longest idle one are closed for it
        runs(tmp_path, 2)
        post(live, f"/v1/agent/turns/{fourth['turn']}/stop", {})
    runs(tmp_path, 0)


def test_turns_of_a_key_are_bounded_however_fast_they_come(tmp_path: Path) -> None:
    with tool_server(tmp_path, scripted(HANG), "mcp:tests", agent={"max_turns": 3}) as live:
        answers = at_once(20, lambda _: start(live, **MCP))
        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 17
        conversation = next(answer.json()["conversation"] for answer in answers if answer.status_code == 200)
        with live.client(headers=HEADERS) as http:
            assert len(http.get("/v1/agent/conversations").json()["conversations"]) == 3
            http.delete(f"/v1/agent/conversations/{conversation}")
        again = at_once(4, lambda _: start(live, "Hello"))
        assert 200 in {answer.status_code for answer in again}
    runs(tmp_path, 0)


def test_twenty_turns_at_once(tmp_path: Path) -> None:
    rules = [('"sum": 5', "\nFive."), ("Add", 'tests__add\n{"a": 2, "b": 3}')]
    with tool_server(tmp_path, scripted(rules), "mcp:tests", agent={"max_open": 20}) as live:
        answers = at_once(20, lambda _: start(live, "Add", **MCP))
        assert {answer.status_code for answer in answers} == {200}
        assert {ended(live, answer.json()["turn"])["status"] for answer in answers} == {"completed"}
        until(lambda: not any(live.leftovers.values()), "nothing is held")
    runs(tmp_path, 0)


def test_one_conversation_has_one_turn(tmp_path: Path) -> None:
    with tool_server(tmp_path, scripted(HANG), "mcp:tests") as live:
        first = start(live, "Hello").json()
        ended(live, first["turn"])
        answers = at_once(6, lambda _: start(live, conversation=first["conversation"], **MCP))
        assert sorted(answer.status_code for answer in answers) == [200] + [409] * 5
        runs(tmp_path, 1)


def test_a_tool_that_hangs_ends_with_the_turn(tmp_path: Path) -> None:
    limits = AgentLimits(seconds=2)
    with tool_server(tmp_path, scripted(HANG), "mcp:tests", agent={"limits": limits}) as live:
        turn = start(live, **MCP).json()
        last = ended(live, turn["turn"])
        assert (last["status"], last["reason"]) == ("limit", "seconds")
        with live.client(headers=HEADERS) as http:
            message = http.get(f"/v1/agent/conversations/{turn['conversation']}").json()["messages"][-1]
            assert (message["status"], message["parts"][-1]["state"]) == ("limit", "error")
        tool = {"type": "mcp", "server_label": "tests", "require_approval": "never"}
        response = post(live, "/v1/responses", {"input": "Hang", "tools": [tool]}).json()
        assert (response["status"], response["output"][-1]["type"]) == ("failed", "mcp_call")
        assert "seconds" in response["error"]["message"]


def test_deleting_a_conversation_ends_its_tools(tmp_path: Path) -> None:
    with tool_server(tmp_path, scripted(HANG), "mcp:tests") as live, live.client(headers=HEADERS) as http:
        turn = start(live, **MCP).json()
        runs(tmp_path, 1)
        assert http.delete(f"/v1/agent/conversations/{turn['conversation']}").status_code == 200
        runs(tmp_path, 0)
        assert ended(live, turn["turn"])["type"] == "end"
        assert http.get("/v1/agent/turns").json() == {"turns": []}


def test_a_client_that_hangs_up_ends_the_tools_of_its_response(tmp_path: Path) -> None:
    tool = {"type": "mcp", "server_label": "tests", "require_approval": "never"}
    body = {"input": "Hang", "tools": [tool], "stream": True}
    with tool_server(tmp_path, scripted(HANG), "mcp:tests") as live, live.client(headers=HEADERS) as http:
        with http.stream("POST", "/v1/responses", json=body) as stream:
            found = ""
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    data = json.loads(line[6:])
                    found = data.get("response", {}).get("id", found)
                if "mcp_call_arguments.done" in line:
                    break
        runs(tmp_path, 0)
        until(lambda: http.get(f"/v1/responses/{found}").json()["status"] == "cancelled", "it is cancelled")
        # And one that waits for the whole answer.
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{live.url}/v1/responses", json={**body, "stream": False}, headers=HEADERS, timeout=1.5)
        runs(tmp_path, 0)
        until(lambda: not any(live.leftovers.values()), "nothing is held")


def test_a_client_that_never_reads_does_not_hold_a_turn(tmp_path: Path) -> None:
    import socket

    words = "on and on " * 300
    rules = [("Tell", f"\n{words}")]
    with tool_server(tmp_path, scripted(rules), stall_timeout=1.0, agent={"limits": AgentLimits(seconds=None)}) as live:
        before = live.num_tasks
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            deaf.connect(live.address)
            body = json.dumps({"content": "Tell", "params": {"max_tokens": 1500}}).encode()
            head = f"POST /v1/agent/chat HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n"
            head += "Content-Type: application/json\r\n"
            deaf.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            with live.client(headers=HEADERS) as http:
                until(lambda: http.get("/v1/agent/conversations").json()["conversations"], "the turn has begun")
                until(lambda: not http.get("/v1/agent/turns").json()["turns"], "the turn has ended")
                (found,) = http.get("/v1/agent/conversations").json()["conversations"]
                message = http.get(f"/v1/agent/conversations/{found['id']}").json()["messages"][-1]
                assert len(message["parts"][0]["text"]) > 1000
        until(lambda: live.num_tasks <= before + 1, "nothing waits for the client")  # the pool's own task


def test_uploads_are_bounded(tmp_path: Path) -> None:
    agent = {"max_upload_bytes": 1000, "max_files_bytes": 2 * 4096 + 100}  # which counts blocks
    with tool_server(tmp_path, scripted(HANG), agent=agent) as live, live.client(headers=HEADERS) as http:

        def send(content: bytes) -> httpx.Response:
            return http.post("/v1/agent/files?name=a.bin", content=content)

        assert send(b"a" * 1001).status_code == 413
        assert http.post("/v1/agent/files?name=a.bin", content=iter([b"a" * 600] * 2)).status_code == 413
        assert [send(letter * 1000).status_code for letter in (b"a", b"b", b"a")] == [200] * 3
        full = send(b"c" * 1000)
        assert (full.status_code, "no room" in full.json()["error"]["message"]) == (400, True)
        assert http.post("/v1/agent/files", content=b"x").status_code == 400


def test_closing_the_server_ends_what_runs(tmp_path: Path) -> None:
    with tool_server(tmp_path, scripted(HANG), "mcp:tests", agent={"sessions": tmp_path / "saved"}) as live:
        for _ in range(3):
            start(live, **MCP)
        runs(tmp_path, 3)
        began = time.monotonic()
    assert processes_with(str(tmp_path)) == []
    assert time.monotonic() - began < 60

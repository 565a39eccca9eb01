"""The assistant's HTTP API at its edges: moments, others' ids, hostile names and texts, what browsers may send."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from PIL import Image
from test_agent_http import TOOLS, check, followed, read, running, say, text_of, tools_of

from glm4.api.agent.request import TURN_FIELDS
from glm4.server.agent.config import AgentConfig
from glm4.server.agent.state import AgentState
from glm4.server.agent.turns import Turns
from glm4.server.config import ModelSpec, ServerConfig
from glm4.server.state import find_state
from live import LiveServer, serve
from scripted_llm import scripted_llm
from stepped import until

RAW = {"Content-Type": "application/octet-stream"}


def upload(client: httpx.Client, name: str, data: bytes) -> dict[str, Any]:
    sent = client.post("/v1/agent/files", params={"name": name}, content=data, headers=RAW)
    assert sent.status_code == 200, sent.text
    return dict(check("AgentFile", sent.json()))


def ended(client: httpx.Client, turn: str) -> dict[str, Any]:
    return followed(client, f"/v1/agent/turns/{turn}/events?after=0")[-1][1]


@pytest.mark.parametrize("named", [True, False])
def test_two_requests_at_the_same_moment_are_one_turn(named: bool, tmp_path: Path) -> None:
    with running(tmp_path, say("on and on " * 40), delay=0.002) as live, live.client() as client:
        talk = followed(client, "/v1/agent/chat", {"content": "First"})[0][1]["conversation"]
        body = {"content": "Then", "conversation": talk} | ({"client_id": "c"} if named else {})
        together = threading.Barrier(6)

        def start(_: int) -> httpx.Response:
            with live.client() as one:
                together.wait(30)
                return one.post("/v1/agent/turns", json=body)

        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(start, range(6)))
        codes = sorted(answer.status_code for answer in answers)
        assert codes == ([200] * 6 if named else [200] + [409] * 5)
        assert len({answer.json()["turn"] for answer in answers if answer.status_code == 200}) == 1
        for answer in answers:
            if answer.status_code == 200:
                ended(client, answer.json()["turn"])
        assert len(client.get(f"/v1/agent/conversations/{talk}").json()["messages"]) == 4


def test_a_client_id_whose_start_failed_may_be_used_again(tmp_path: Path) -> None:
    with running(tmp_path, say("Fine.")) as live, live.client() as client:
        wrong = {"content": "x", "client_id": "again", "tools": ["none"]}
        assert client.post("/v1/agent/turns", json=wrong).status_code == 400
        good = client.post("/v1/agent/turns", json={"content": "x", "client_id": "again"})
        assert good.status_code == 200
        assert ended(client, good.json()["turn"])["status"] == "completed"
        assert len(client.get("/v1/agent/conversations").json()["conversations"]) == 1


def turns_of(live: LiveServer) -> Turns:
    return find_state(live.app, AgentState).turns


def test_a_stop_before_the_agent_has_begun_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn's memory is granted late: what was stopped until then does not begin."""
    from glm4.server.memory import BodyMemory

    let_go = threading.Event()
    grow = BodyMemory.grow

    async def late(self: BodyMemory, size: int) -> None:
        task = asyncio.current_task()
        if task is not None and task.get_name() == "glm4-turn":
            await asyncio.to_thread(let_go.wait, 60)
        await grow(self, size)

    monkeypatch.setattr(BodyMemory, "grow", late)
    with running(tmp_path, say("on and on " * 100), delay=0.002) as live, live.client() as client:
        started = client.post("/v1/agent/turns", json={"content": "Go"}).json()
        assert client.post(f"/v1/agent/turns/{started['turn']}/stop").json() == {"done": True}
        let_go.set()
        assert ended(client, started["turn"])["status"] == "stopped"
        found = client.get(f"/v1/agent/conversations/{started['conversation']}").json()
        assert [one["status"] for one in found["messages"]] == ["completed", "stopped"]
        assert found["messages"][-1]["parts"] == []


def test_nothing_is_left_when_turns_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glm4.server.agent.turns.KEPT_SECONDS", 0.05)
    with running(tmp_path, say("Fine.")) as live, live.client() as client:
        free = live.state.memory.bodies.free
        for n in range(4):
            body = {"content": "x", "client_id": f"c{n}"} | ({"tools": ["none"]} if n % 2 else {})
            client.post("/v1/agent/chat", json=body)
        client.post("/v1/agent/turns", json={"content": "x", "files": ["0" * 64]})
        turns = turns_of(live)
        for _ in range(600):
            left = [turns._turns, turns._by_client, turns._clients, turns._tasks, turns._starting]
            if not any(left):
                break
            client.get("/v1/agent/turns")
        assert not any(left), left
        assert live.state.memory.bodies.free == free
        until(lambda: not any(live.leftovers.values()), "nothing is held")


def test_an_answer_that_cannot_be_stored_still_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from glm4.agent.sessions import SessionStore

    def fail(*_: object) -> bool:
        raise RuntimeError("a fault of the store")

    monkeypatch.setattr(SessionStore, "write", fail)
    with running(tmp_path, say("Said.")) as live, live.client() as client:
        events = followed(client, "/v1/agent/chat", {"content": "x"})
        assert text_of(events) == "Said."
        assert events[-1][1]["status"] == "completed"


TOOL = '''
from glm4 import tool

@tool
def odd(what: str) -> str:
    """Odd."""
    return "half \\ud800 of a pair, " + what

@tool(approval="ask")
def launch(what: str) -> str:
    """Launch something."""
    return f"{what} is up"
'''


def test_what_a_tool_says_is_made_valid(tmp_path: Path) -> None:
    def answer(prompt: str) -> str:
        return "\nDone." if "of a pair" in prompt else 'odd\n{"what": "x"}'

    with running(tmp_path, answer) as live, live.client() as client:
        (tmp_path / "tools.py").write_text(TOOL)
        events = followed(client, "/v1/agent/chat", {"content": "Go", "tools": tools_of(tmp_path)})
        assert events[-1][1]["status"] == "completed"
        said = "".join(data["add"] for _, data in events if data["type"] == "output")
        assert said == "half \ufffd of a pair, x"
        stored = client.get(f"/v1/agent/conversations/{events[0][1]['conversation']}").json()["messages"][-1]
        assert stored["status"] == "completed"


def test_always_holds_for_the_turns_that_follow(tmp_path: Path) -> None:
    def answer(prompt: str) -> str:
        asked, up = prompt.count("Launch it"), prompt.count("it is up")
        return "\nUp." if up >= asked else 'launch\n{"what": "it"}'

    with running(tmp_path, answer) as live, live.client() as client:
        body: dict[str, Any] = {"content": "Launch it", "tools": tools_of(tmp_path)}
        asked = []
        for _ in range(2):
            with client.stream("POST", "/v1/agent/chat", json=body) as stream:
                for _, data in read(stream.iter_lines()):
                    if data["type"] == "turn":
                        turn, body["conversation"] = data["turn"], data["conversation"]
                    if data["type"] == "call" and data["state"] == "waiting":
                        asked.append(data["call"])
                        with live.client() as other:
                            path = f"/v1/agent/turns/{turn}/approvals/{data['call']}"
                            assert other.post(path, json={"decision": "always"}).json() == {"done": True}
            assert data["status"] == "completed"
        assert len(asked) == 1


def test_every_field_of_a_turn_is_honored(tmp_path: Path) -> None:
    seen: list[str] = []

    def answer(prompt: str) -> str:
        seen.append(prompt)
        return "\nYes."

    with running(tmp_path, answer) as live, live.client() as client:
        file = upload(client, "a.txt", b"contents of the file")
        first = {
            "client_id": "one", "content": [{"type": "text", "text": "in parts"}], "files": [file["file"]],
            "model": "m",
            "tools": tools_of(tmp_path), "system": "Be brief.", "params": {"max_tokens": 3, "logit_bias": {"7": -2}},
        }  # fmt: skip
        events = followed(client, "/v1/agent/chat", first)
        assert text_of(events) == "Ye"
        assert "Be brief." in seen[0]
        assert "contents of the file" in seen[0]
        assert "in parts" in seen[0]
        about = events[0][1]
        # The stored options hold for the next turn, which changes others.
        second = {"conversation": about["conversation"], "parent": about["parent"], "system": "Be loud."}
        assert set(first) | set(second) == set(TURN_FIELDS)
        events = followed(client, "/v1/agent/chat", second)
        assert text_of(events) == "Ye"
        assert "Be loud." in seen[-1]
        assert "Be brief." not in seen[-1]
        kept = client.get(f"/v1/agent/conversations/{about['conversation']}").json()["conversation"]
        assert kept["system"] == "Be loud."
        assert kept["params"]["sampling"] == {"max_tokens": 3, "logit_bias": {"7": -2}}
        assert kept["params"]["tools"] == tools_of(tmp_path)
        # What an import has may be wrong; it is refused when it is used.
        document = client.get(f"/v1/agent/conversations/{about['conversation']}/export").json()
        for wrong in ({"no_such": 1}, {"temperature": "hot"}):
            changed = {**document, "params": {"sampling": wrong}}
            copy = client.post("/v1/agent/conversations", json=changed).json()
            refused = client.post("/v1/agent/turns", json={"content": "x", "conversation": copy["id"]})
            assert refused.status_code == 400
            assert refused.json()["error"]["param"].startswith("params")


def test_what_is_unknown_and_what_is_anothers_is_answered_alike(tmp_path: Path) -> None:
    keys = ("first-secret-key", "second-secret-key")
    with running(tmp_path, say("Said."), api_keys=keys) as live:
        mine, yours = (
            httpx.Client(base_url=live.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) for key in keys
        )
        with mine, yours:
            file = upload(mine, "a.txt", b"secret")["file"]
            about = followed(mine, "/v1/agent/chat", {"content": "Tell", "files": [file]})[0][1]
            ids = {about["conversation"]: "0" * 32, about["turn"]: "1" * 32, file: "2" * 64, about["message"]: "3" * 32}
            talk, turn = about["conversation"], about["turn"]
            requests: list[tuple[str, str, Any]] = [
                ("GET", f"/v1/agent/conversations/{talk}", None), ("DELETE", f"/v1/agent/conversations/{talk}", None),
                ("PATCH", f"/v1/agent/conversations/{talk}", {"title": "x"}),
                ("PATCH", f"/v1/agent/conversations/{talk}", {"leaf": about["message"]}),
                ("GET", f"/v1/agent/conversations/{talk}/export", None),
                ("GET", f"/v1/agent/conversations/{talk}/export?format=markdown", None),
                ("GET", f"/v1/agent/conversations/{talk}/export?format=html", None),
                ("POST", "/v1/agent/turns", {"content": "x", "conversation": talk, "parent": "root"}),
                ("GET", f"/v1/agent/conversations?after={talk}", None),
                ("GET", f"/v1/agent/turns/{turn}/events", None), ("POST", f"/v1/agent/turns/{turn}/stop", None),
                ("POST", f"/v1/agent/turns/{turn}/approvals/x", {"decision": "once"}),
                ("GET", f"/v1/agent/files/{file}", None),
                ("POST", "/v1/agent/turns", {"content": "x", "conversation": talk}),
                ("POST", "/v1/agent/turns", {"conversation": talk, "parent": about["message"]}),
                ("POST", "/v1/agent/turns", {"content": "x", "files": [file]}),
            ]  # fmt: skip
            for method, path, body in requests:
                theirs = json.dumps([path, body])
                nobodys = theirs
                for known, unknown in ids.items():
                    nobodys = nobodys.replace(known, unknown)
                answers = []
                for text in (theirs, nobodys):
                    at, sent = json.loads(text)
                    answer = yours.request(method, at, json=sent)
                    told = answer.text
                    for known, unknown in ids.items():
                        told = told.replace(known, unknown)
                    answers.append((answer.status_code, told))
                assert answers[0] == answers[1], (method, path)
                assert answers[0][0] == 404, (method, path, answers[0])


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("conversations?after=gone", 404), ("conversations?limit=0", 400), ("conversations?limit=1.5", 400),
        ("conversations?limit=9999", 400), ("search?q=%00abc%00", 200), ("search?q=%22%22%22", 200),
        ("search?q=%ED%A0%80abc", 200), ("search", 200), ("search?q=" + "x" * 3000, 200), ("files/..%2f..%2fetc", 404),
        ("files/" + "A" * 64, 404), ("turns/x/events?after=-1", 400), ("turns/x/events?after=99999999999999999", 400),
        ("turns/%00/events", 404), ("conversations/%00", 404), ("conversations/%ED%A0%80", 404),
    ],
)  # fmt: skip
def test_odd_addresses(path: str, code: int, tmp_path: Path) -> None:
    with running(tmp_path, say("x")) as live, live.client() as client:
        assert client.get(f"/v1/agent/{path}").status_code == code


@pytest.mark.parametrize("kind", ["text/plain", "Text/Plain", "multipart/form-data ; boundary=x", None])
def test_a_web_page_can_neither_upload_nor_import(kind: str | None, tmp_path: Path) -> None:
    with running(tmp_path, say("x")) as live, live.client() as client:
        headers = {"Origin": "http://elsewhere.example"} | ({"Content-Type": kind} if kind else {})
        assert client.post("/v1/agent/files?name=x", content=b"x", headers=headers).status_code == 415
        document = json.dumps({"format": "glm4-conversation", "version": 1, "messages": []}).encode()
        assert client.post("/v1/agent/conversations", content=document, headers=headers).status_code == 415
        assert client.post("/v1/agent/turns", content=b'{"content": "x"}', headers=headers).status_code == 415
        assert client.get("/v1/agent/conversations").json() == {"conversations": []}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ('a"\r\nSet-Cookie: x=1.html', b"<script>alert(1)</script>"), ("x.svg", b"<svg onload='alert(1)'/>"),
        ("报告 💡.txt", b"text"), ("evil.png", b"<html>not a picture"), ("a;b=c.txt", b"t"), ("\u202egnp.exe", b"MZ"),
    ],
)  # fmt: skip
def test_no_file_runs_in_a_browser_or_changes_headers(name: str, data: bytes, tmp_path: Path) -> None:
    with running(tmp_path, say("x")) as live, live.client() as client:
        file = upload(client, name, data)
        back = client.get(f"/v1/agent/files/{file['file']}")
        assert back.content == data
        assert back.headers["content-type"] == "application/octet-stream"
        assert back.headers["x-content-type-options"] == "nosniff"
        assert back.headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert back.headers["content-disposition"].startswith("attachment; filename*=UTF-8''")
        assert "set-cookie" not in back.headers


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    return file.getvalue()


def test_a_picture_in_a_question_is_kept_with_it(tmp_path: Path) -> None:
    """A model that sees none refuses it at once; nothing is stored of that."""
    url = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
    with running(tmp_path, say("x")) as live, live.client() as client:
        file = upload(client, "a.png", picture())
        assert (file["width"], file["height"]) == (8, 8)
        shown = client.get(f"/v1/agent/files/{file['file']}")
        assert shown.headers["content-type"] == "image/png"
        refused = client.post("/v1/agent/turns", json={"content": "What?", "files": [file["file"]]})
        assert refused.status_code == 400
        content = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
        events = followed(client, "/v1/agent/chat", {"content": content})
        assert events[-1][1]["status"] == "error"
        assert not any("/" in data["message"] for _, data in events if data["type"] == "error")


def test_every_answer_has_the_form_that_the_document_says(tmp_path: Path) -> None:
    def answer(prompt: str) -> str:
        return "\nIt rains." if "rain in Rome" in prompt else 'weather\n{"city": "Rome"}'

    with running(tmp_path, answer) as live, live.client() as client:
        told = client.get("/openapi.json").json()
        file = upload(client, "a.txt", b"text")["file"]
        body = {"content": "Weather?", "tools": tools_of(tmp_path), "files": [file]}
        about = followed(client, "/v1/agent/chat", body)[0][1]
        talk = f"/v1/agent/conversations/{about['conversation']}"
        export = client.get(f"{talk}/export").json()
        asked = [
            ("get", "/v1/agent/turns", "/v1/agent/turns", None), ("get", "/v1/agent/tools", "/v1/agent/tools", None),
            ("post", "/v1/agent/turns", "/v1/agent/turns", {"content": "x", "conversation": about["conversation"]}),
            ("post", "/v1/agent/turns/{turn_id}/stop", f"/v1/agent/turns/{about['turn']}/stop", None),
            ("post", "/v1/agent/turns/{turn_id}/approvals/{call_id}", f"/v1/agent/turns/{about['turn']}/approvals/x",
             {"decision": "once"}),
            ("get", "/v1/agent/conversations", "/v1/agent/conversations?limit=3", None),
            ("post", "/v1/agent/conversations", "/v1/agent/conversations", export),
            ("get", "/v1/agent/conversations/{conversation_id}", talk, None),
            ("patch", "/v1/agent/conversations/{conversation_id}", talk, {"title": "T", "params": {"top_p": 0.5}}),
            ("get", "/v1/agent/conversations/{conversation_id}/export", f"{talk}/export", None),
            ("get", "/v1/agent/search", "/v1/agent/search?q=rains", None),
            ("delete", "/v1/agent/conversations/{conversation_id}", talk, None),
        ]  # fmt: skip
        for method, path, address, sent in asked:
            answer_ = client.request(method, address, json=sent)
            assert answer_.status_code == 200, (path, answer_.text)
            content = told["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
            jsonschema.Draft202012Validator({**content, "components": told["components"]}).validate(answer_.json())
        gone = client.get(talk)
        assert gone.status_code == 404
        assert "404" in told["paths"]["/v1/agent/conversations/{conversation_id}"]["get"]["responses"]


@pytest.mark.parametrize("dialects", [("glm4", "chatml"), ("chatml", "glm4")])
def test_another_model_goes_on_with_what_tools_have_said(dialects: tuple[str, str], tmp_path: Path) -> None:
    seen: list[str] = []

    def answer(dialect: str) -> Any:
        def answers(prompt: str) -> str:
            seen.append(prompt)
            if "rain in Oslo" in prompt:
                return "\nIt rains." if dialect == "glm4" else "It rains."
            call = '{"city": "Oslo"}'
            if dialect == "glm4":
                return f"weather\n{call}"
            return f'<tool_call>\n{{"name": "weather", "arguments": {call}}}\n</tool_call>'

        return answers

    talk = None
    for dialect in dialects:
        folder = tmp_path / dialect
        folder.mkdir()
        (tmp_path / "tools.py").write_text(TOOLS)
        agent = AgentConfig(tools=(str(tmp_path / "tools.py"),), sessions=tmp_path / "saved")
        config = ServerConfig((ModelSpec(dialect, (dialect,)),), agent=agent)
        llm = scripted_llm(folder / "model", answer(dialect), dialect=dialect)
        with serve(config, llm) as live, live.client() as client:
            body = {"content": "Weather?", "tools": tools_of(tmp_path), "model": dialect}
            events = followed(client, "/v1/agent/chat", body | ({"conversation": talk} if talk else {}))
            assert events[-1][1]["status"] == "completed", events
            assert text_of(events) == "It rains."
            talk = events[0][1]["conversation"]
    assert seen[-1].count("Oslo") == 2
    assert seen[-1].count("It rains.") == 1

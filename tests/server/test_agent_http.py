"""The assistant over HTTP: turns that outlive their readers, saved conversations, files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from glm4.agent.transcript import Transcript
from glm4.api.schemas import components
from glm4.server.agent.config import AgentConfig
from glm4.server.config import ModelSpec, ServerConfig
from live import LiveServer, serve
from scripted_llm import scripted_llm

TOOLS = '''
from glm4 import tool
from glm4.agent.tool import ToolContext

@tool
def weather(city: str) -> str:
    """The weather.

    Args:
        city: where.
    """
    return f"rain in {city}"

@tool(approval="ask")
def launch(what: str) -> str:
    """Launch something."""
    return f"{what} is up"

@tool
def note(text: str, context: ToolContext) -> str:
    """Write a note."""
    context.file(context.files.put("note.txt", text.encode()))
    return "made it"

@tool
def wait(seconds: float) -> str:
    """Wait."""
    time.sleep(seconds)
    return "waited"
'''


@contextmanager
def running(
    folder: Path, answer: Callable[[str], str], *, delay: float = 0.0, sessions: Path | None = None, **options: Any
) -> Iterator[LiveServer]:
    tools = folder / "tools.py"
    tools.write_text(TOOLS)
    agent = AgentConfig(tools=(str(tools),), sessions=sessions)
    config = ServerConfig((ModelSpec("m", ("m",)),), agent=agent, **options)
    with serve(config, scripted_llm(folder / "model", answer, delay=delay, template=None)) as live:
        yield live


def say(text: str) -> Callable[[str], str]:
    return lambda prompt: f"\n{text}"


def read(lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, event) of a stream of server-sent events; the names of events are those in their data."""
    number, name = 0, ""
    for line in lines:
        if line.startswith("id: "):
            number = int(line[4:])
        elif line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            data = json.loads(line[6:])
            assert data["type"] == name
            EVENT.validate(data)
            yield number, data


EVENT = jsonschema.Draft202012Validator(components("agent")["AgentEvent"])


def check(name: str, value: object) -> Any:
    """A body that has the form that the document says."""
    document = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": components("agent")}}
    jsonschema.Draft202012Validator(document).validate(value)
    return value


def followed(
    client: httpx.Client, path: str, body: Mapping[str, Any] | None = None
) -> list[tuple[int, dict[str, Any]]]:
    method = "GET" if body is None else "POST"
    with client.stream(method, path, json=body) as answer:
        assert answer.status_code == 200, answer.read()
        return list(read(answer.iter_lines()))


def text_of(events: list[tuple[int, dict[str, Any]]]) -> str:
    return "".join(data["add"] for _, data in events if data["type"] == "text")


def tools_of(folder: Path) -> list[str]:
    return [str(folder / "tools.py")]


def test_a_turn_is_followed_and_stored(tmp_path: Path) -> None:
    with running(tmp_path, say("Hello."), sessions=tmp_path / "saved") as live, live.client() as client:
        events = followed(client, "/v1/agent/chat", {"content": "Hi", "params": {"temperature": 0}})
        assert [number for number, _ in events] == list(range(1, len(events) + 1))
        assert [events[0][1]["type"], events[-1][1]] == [
            "turn",
            {"type": "end", "status": "completed", "reason": "stop"},
        ]
        assert text_of(events) == "Hello."
        about = events[0][1]
        found = check(
            "AgentConversationWithMessages", client.get(f"/v1/agent/conversations/{about['conversation']}").json()
        )
        user, assistant = found["messages"]
        assert (user["role"], user["parts"]) == ("user", [{"kind": "text", "text": "Hi"}])
        assert (assistant["status"], assistant["parent"], assistant["id"]) == (
            "completed",
            user["id"],
            about["message"],
        )
        assert [part["text"] for part in assistant["parts"]] == ["Hello."]
        assert assistant["usage"]["completion"] > 0
        assert found["conversation"]["title"] == "Hi"
        again = followed(client, "/v1/agent/chat", {"content": "And?", "conversation": about["conversation"]})
        assert text_of(again) == "Hello."
        listed = check("AgentConversations", client.get("/v1/agent/conversations").json())["conversations"]
        assert [one["id"] for one in listed] == [about["conversation"]]
    # After a restart it is all there.
    seen: list[str] = []

    def answer(prompt: str) -> str:
        seen.append(prompt)
        return "\nYes."

    with running(tmp_path, answer, sessions=tmp_path / "saved") as live, live.client() as client:
        events = followed(client, "/v1/agent/chat", {"content": "Still there?", "conversation": about["conversation"]})
        assert text_of(events) == "Yes."
        assert "Hi" in seen[0]
        assert seen[0].count("Hello.") == 2
        assert len(client.get(f"/v1/agent/conversations/{about['conversation']}").json()["messages"]) == 6


def test_a_tool_runs_on_the_server(tmp_path: Path) -> None:
    def answer(prompt: str) -> str:
        return "\nIt rains." if "rain in Beijing" in prompt else 'weather\n{"city": "Beijing"}'

    with running(tmp_path, answer) as live, live.client() as client:
        events = followed(client, "/v1/agent/chat", {"content": "Weather?", "tools": tools_of(tmp_path)})
        states = [data["state"] for _, data in events if data["type"] == "call"]
        assert states[-2:] == ["running", "done"]
        assert text_of(events) == "It rains."
        assert check("AgentTools", client.get("/v1/agent/tools").json())["tools"][0]["name"] == tools_of(tmp_path)[0]
        refused = client.post("/v1/agent/chat", json={"content": "x", "tools": ["python"]})
        assert refused.status_code == 400
        assert "has no tool" in refused.json()["error"]["message"]


def test_a_turn_goes_on_when_its_reader_hangs_up(tmp_path: Path) -> None:
    words = " ".join(f"word{n}" for n in range(60))
    with running(tmp_path, say(words), delay=0.004) as live, live.client() as client:
        started = check("AgentTurn", client.post("/v1/agent/turns", json={"content": "Tell", "client_id": "c1"}).json())
        same = client.post("/v1/agent/turns", json={"content": "Tell", "client_id": "c1"})
        assert same.status_code == 200
        assert same.json() == started
        path = f"/v1/agent/turns/{started['turn']}/events"
        first: list[tuple[int, dict[str, Any]]] = []
        with client.stream("GET", path + "?after=0") as answer:
            for one in read(answer.iter_lines()):
                first.append(one)
                if len(first) == 5:
                    break
        assert [one["turn"] for one in client.get("/v1/agent/turns").json()["turns"]] == [started["turn"]]
        # A second reader, and the first one again where it was.
        rest = followed(client, f"{path}?after={first[-1][0]}")
        assert text_of(first + rest) == words
        assert [number for number, _ in first + rest] == list(range(1, rest[-1][0] + 1))
        snapshot, end = followed(client, path)
        assert snapshot[1]["type"] == "snapshot"
        assert snapshot[1]["parts"][0]["text"] == words
        assert end[1]["type"] == "end"
        assert client.get("/v1/agent/turns").json() == {"turns": []}


def test_a_snapshot_and_what_follows_are_the_whole(tmp_path: Path) -> None:
    words = " ".join(f"word{n}" for n in range(80))
    with running(tmp_path, say(words), delay=0.004) as live, live.client() as client:
        started = client.post("/v1/agent/turns", json={"content": "Tell"}).json()
        path = f"/v1/agent/turns/{started['turn']}/events"
        for _ in range(4):
            snapshot, *rest = followed_for(live, path, 3)
            assert snapshot[1]["type"] == "snapshot"
            parts = snapshot[1]["parts"]
            begun = parts[0]["text"] if parts else ""
            assert words.startswith(begun + text_of(rest))
        whole = followed(client, path)
        assert whole[0][1]["parts"][0]["text"] + text_of(whole[1:]) == words


def followed_for(live: LiveServer, path: str, count: int) -> list[tuple[int, dict[str, Any]]]:
    found: list[tuple[int, dict[str, Any]]] = []
    with live.client() as client, client.stream("GET", path) as answer:
        for one in read(answer.iter_lines()):
            found.append(one)
            if len(found) == count:
                break
    return found


def test_stop_ends_a_turn_and_keeps_what_was_said(tmp_path: Path) -> None:
    with running(tmp_path, say("on and on " * 300), delay=0.004) as live, live.client() as client:
        started = client.post("/v1/agent/turns", json={"content": "Tell"}).json()
        busy = client.post("/v1/agent/turns", json={"content": "More", "conversation": started["conversation"]})
        assert busy.status_code == 409
        path = f"/v1/agent/turns/{started['turn']}"
        assert followed_for(live, path + "/events?after=0", 4)
        assert check("AgentDone", client.post(path + "/stop").json()) == {"done": True}
        events = followed(client, path + "/events?after=0")
        assert events[-1][1]["status"] == "stopped"
        message = client.get(f"/v1/agent/conversations/{started['conversation']}").json()["messages"][-1]
        assert message["status"] == "stopped"
        assert message["parts"][0]["text"] == text_of(events)
        assert "on and on".startswith(text_of(events)[:9])
        assert client.post(path + "/stop").json() == {"done": True}
        while live.llm.has_unfinished_requests():
            time.sleep(0.01)


@pytest.mark.parametrize("decision", ["once", "always", "never"])
def test_a_call_waits_for_approval(decision: str, tmp_path: Path) -> None:
    def answer(prompt: str) -> str:
        if "is up" in prompt:
            return "\nUp." if prompt.count("is up") > 1 else 'launch\n{"what": "the second"}'
        return "\nRefused." if 'launch\n{"what' in prompt else 'launch\n{"what": "the first"}'

    with running(tmp_path, answer) as live, live.client() as client:
        body = {"content": "Launch twice", "tools": tools_of(tmp_path)}
        started = client.post("/v1/agent/turns", json=body).json()
        path = f"/v1/agent/turns/{started['turn']}"
        asked = 0
        with client.stream("GET", path + "/events?after=0") as answer_:
            for _, data in read(answer_.iter_lines()):
                if data["type"] == "call" and data["state"] == "waiting":
                    asked += 1
                    assert "launch" in data["about"] or "launch" in data["tool"]
                    with live.client() as other:
                        wrong = other.post(f"{path}/approvals/{data['call']}", json={"decision": "maybe"})
                        assert wrong.status_code == 400
                        done = other.post(f"{path}/approvals/{data['call']}", json={"decision": decision})
                        assert done.json() == {"done": True}
                        assert other.post(f"{path}/approvals/{data['call']}", json={"decision": "once"}).json() == {
                            "done": False
                        }
                last = data
        assert last["type"] == "end"
        assert asked == {"once": 2, "always": 1, "never": 1}[decision]
        parts = client.get(f"/v1/agent/conversations/{started['conversation']}").json()["messages"][-1]["parts"]
        states = [part["state"] for part in parts if part["kind"] == "tool"]
        assert states == (["denied"] if decision == "never" else ["done", "done"])


def test_stop_ends_a_call_that_waits(tmp_path: Path) -> None:
    def answer(prompt: str) -> str:
        return 'launch\n{"what": "it"}'

    with running(tmp_path, answer) as live, live.client() as client:
        started = client.post("/v1/agent/turns", json={"content": "Go", "tools": tools_of(tmp_path)}).json()
        path = f"/v1/agent/turns/{started['turn']}"
        with client.stream("GET", path + "/events?after=0") as stream:
            for _, data in read(stream.iter_lines()):
                if data["type"] == "call" and data["state"] == "waiting":
                    with live.client() as other:
                        other.post(path + "/stop")
        assert data["status"] == "stopped"


def test_a_question_is_answered_anew_and_edited(tmp_path: Path) -> None:
    answers = iter(["one", "two", "three"])
    with running(tmp_path, lambda prompt: f"\n{next(answers)}") as live, live.client() as client:
        first = followed(client, "/v1/agent/chat", {"content": "Q"})[0][1]
        body = {"conversation": first["conversation"], "parent": first["parent"]}
        second = followed(client, "/v1/agent/chat", body)
        assert text_of(second) == "two"
        assert second[0][1]["parent"] == first["parent"]
        path = f"/v1/agent/conversations/{first['conversation']}"
        assert client.get(path).json()["conversation"]["leaf"] == second[0][1]["message"]
        changed = client.patch(path, json={"leaf": first["message"], "title": "Chosen", "pinned": True})
        assert check("AgentConversation", changed.json())["leaf"] == first["message"]
        wrong = client.post("/v1/agent/chat", json={**body, "parent": first["message"]})
        assert wrong.status_code == 400
        assert client.patch(path, json={"leaf": "x"}).status_code == 400
        before = client.get(path).json()["conversation"]["updated"]
        client.patch(path, json={"params": {"top_k": 3}})
        chosen = client.patch(path, json={"tools": [str(tmp_path / "tools.py")]}).json()
        assert chosen["params"] == {"tools": [str(tmp_path / "tools.py")], "sampling": {"top_k": 3}}
        assert chosen["updated"] == before  # no new message, so its place in the list stays
        assert client.patch(path, json={"tools": ["gopher"]}).json()["error"]["param"] == "tools"
        markdown = client.get(path + "/export?format=markdown").text
        assert "# Chosen" in markdown
        assert "one" in markdown
        assert "two" not in markdown
        found = check("AgentFound", client.get("/v1/agent/search", params={"q": "two"}).json())["results"]
        assert [one["message"] for one in found] == [second[0][1]["message"]]
        exported = check("AgentExport", client.get(path + "/export").json())
        copy = client.post("/v1/agent/conversations", json=exported)
        assert copy.status_code == 200
        assert copy.json()["id"] != first["conversation"]
        assert len(client.get(f"/v1/agent/conversations/{copy.json()['id']}").json()["messages"]) == 3
        assert client.delete(path).json() == {"done": True}
        assert client.get(path).status_code == 404


def test_deleting_a_conversation_ends_its_turn(tmp_path: Path) -> None:
    with running(tmp_path, say("on and on " * 300), delay=0.004) as live, live.client() as client:
        started = client.post("/v1/agent/turns", json={"content": "Tell"}).json()
        assert client.delete(f"/v1/agent/conversations/{started['conversation']}").status_code == 200
        events = followed(client, f"/v1/agent/turns/{started['turn']}/events?after=0")
        assert events[-1][1]["type"] == "end"
        assert client.get("/v1/agent/conversations").json() == {"conversations": []}


def test_files_are_kept_and_given_back(tmp_path: Path) -> None:
    seen: list[str] = []

    def answer(prompt: str) -> str:
        seen.append(prompt)
        return "\nRead."

    with running(tmp_path, answer, sessions=tmp_path / "sessions") as live, live.client() as client:
        sent = client.post("/v1/agent/files?name=../notes.md", content=b"# Plan\n\nBuy milk.",
                           headers={"Content-Type": "application/octet-stream"})  # fmt: skip
        assert sent.status_code == 200
        file = check("AgentFile", sent.json())
        assert (file["name"], file["media_type"]) == ("notes.md", "text/markdown")
        events = followed(client, "/v1/agent/chat", {"content": "What to buy?", "files": [file["file"]]})
        assert text_of(events) == "Read."
        assert "[File Name]\nnotes.md\n[File Content]" in seen[0]
        assert "Buy milk." in seen[0]
        found = client.get(f"/v1/agent/conversations/{events[0][1]['conversation']}").json()
        assert found["files"] == [file]
        assert found["messages"][0]["parts"][0] == {"kind": "text", "text": "What to buy?"}
        back = client.get(f"/v1/agent/files/{file['file']}")
        assert back.content.endswith(b"Buy milk.")
        assert back.headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert back.headers["content-disposition"].startswith("attachment")
        assert client.get(f"/v1/agent/files/{'0' * 64}").status_code == 404
        again = followed(client, "/v1/agent/chat", {"content": "What else?", "files": [file["file"]]})
        for talk, left in ((events, 200), (again, 404)):
            assert client.delete(f"/v1/agent/conversations/{talk[0][1]['conversation']}").status_code == 200
            assert client.get(f"/v1/agent/files/{file['file']}").status_code == left
        assert not [path for path in (tmp_path / "sessions" / "files").rglob("*") if path.is_file()]
        assert client.post("/v1/agent/chat", json={"content": "x", "files": ["0" * 64]}).status_code == 404
        page = {"Origin": "http://localhost:3000", "Content-Type": "text/plain"}
        assert client.post("/v1/agent/files?name=x", content=b"x", headers=page).status_code in (403, 415)
        assert client.post("/v1/agent/files", content=b"x").status_code == 400


def test_a_file_that_a_tool_made_can_be_fetched(tmp_path: Path) -> None:
    def answer(prompt: str) -> str:
        return "\nSee the file." if "made it" in prompt else 'note\n{"text": "Buy milk."}'

    sessions = tmp_path / "sessions"
    with running(tmp_path, answer, sessions=sessions) as live, live.client() as client:
        asked = {"content": "Write that down.", "tools": [str(tmp_path / "tools.py")]}
        events = followed(client, "/v1/agent/chat", asked)
        (file,) = [data for _, data in events if data["type"] == "file"]
        conversation = events[0][1]["conversation"]
        assert client.get(f"/v1/agent/files/{file['file']}").content == b"Buy milk."
    with running(tmp_path, answer, sessions=sessions) as live, live.client() as client:
        assert client.get(f"/v1/agent/files/{file['file']}").content == b"Buy milk."
        found = client.get(f"/v1/agent/conversations/{conversation}").json()
        assert [one["name"] for one in found["files"]] == ["note.txt"]


def test_what_belongs_to_one_key_does_not_exist_for_another(tmp_path: Path) -> None:
    keys = ("first-secret-key", "second-secret-key")
    with running(tmp_path, say("on and on " * 200), delay=0.004, api_keys=keys) as live:
        mine, yours = (
            httpx.Client(base_url=live.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) for key in keys
        )
        with mine, yours:
            file = mine.post("/v1/agent/files?name=a.txt", content=b"secret",
                             headers={"Content-Type": "application/octet-stream"}).json()["file"]  # fmt: skip
            started = mine.post("/v1/agent/turns", json={"content": "Tell", "client_id": "same"}).json()
            path = f"/v1/agent/turns/{started['turn']}"
            talk = f"/v1/agent/conversations/{started['conversation']}"
            assert yours.get("/v1/agent/turns").json() == {"turns": []}
            assert yours.get("/v1/agent/conversations").json() == {"conversations": []}
            assert yours.get("/v1/agent/search", params={"q": "Tell"}).json() == {"results": []}
            for answer in (
                yours.get(path + "/events"), yours.post(path + "/stop"), yours.get(f"/v1/agent/files/{file}"),
                yours.post(path + "/approvals/x", json={"decision": "once"}), yours.get(talk), yours.delete(talk),
                yours.get(talk + "/export"), yours.patch(talk, json={"title": "x"}),
                yours.post("/v1/agent/turns", json={"content": "x", "conversation": started["conversation"]}),
                yours.post("/v1/agent/turns", json={"content": "x", "files": [file]}),
            ):  # fmt: skip
                assert answer.status_code in (400, 404)
            other = yours.post("/v1/agent/turns", json={"content": "Tell", "client_id": "same"}).json()
            assert other["turn"] != started["turn"]
            assert mine.post(path + "/stop").status_code == 200
            assert httpx.get(live.url + "/v1/agent/turns").status_code == 401


WRONG: tuple[dict[str, Any], ...] = (
    {}, {"content": 3}, {"content": "x", "parent": "y"},
    {"content": "x", "no": 1}, {"content": "x", "params": {"n": 2}}, {"content": "x", "tools": "all"},
    {"content": "x", "params": {"temperature": -1}}, {"parent": "y"}, {"content": "x", "client_id": ""},
)  # fmt: skip


def test_a_turn_that_cannot_be_done_says_why_and_leaves_the_server_well(tmp_path: Path) -> None:
    with running(tmp_path, say("Fine.")) as live, live.client() as client:
        events = followed(client, "/v1/agent/chat", {"content": "x" * 9000})
        errors = [data for _, data in events if data["type"] == "error"]
        assert errors[0]["code"] == "prompt_too_long"
        assert events[-1][1]["status"] == "error"
        for body in WRONG:
            assert client.post("/v1/agent/turns", json=body).status_code == 400, body
        assert client.get("/v1/agent/turns/none/events").status_code == 404
        assert client.get("/v1/agent/turns/none/events?after=x").status_code in (400, 404)
        assert text_of(followed(client, "/v1/agent/chat", {"content": "Well?"})) == "Fine."


def test_the_ring_forgets_and_a_snapshot_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glm4.server.agent.turn.RING_NBYTES", 600)
    words = " ".join(f"word{n}" for n in range(100))
    with running(tmp_path, say(words), delay=0.003) as live, live.client() as client:
        started = client.post("/v1/agent/turns", json={"content": "Tell"}).json()
        path = f"/v1/agent/turns/{started['turn']}/events"
        assert text_of(followed(client, path)[1:]) in words
        late = followed(client, path + "?after=1")
        assert late[0][1]["type"] == "snapshot"
        assert late[0][1]["parts"][0]["text"] == words


def test_a_server_that_was_killed_says_that_a_turn_was_interrupted(tmp_path: Path) -> None:
    from glm4.agent.sessions import SessionMessage, SessionStore

    (tmp_path / "saved").mkdir()
    store = SessionStore(tmp_path / "saved" / "conversations.sqlite")
    session = store.create()
    asked = store.add(
        session.id, SessionMessage("", None, "user", "completed", "", [{"role": "user", "content": "Q"}], [])
    )
    store.add(
        session.id, SessionMessage("", asked.id, "assistant", "running", "m", [], [{"kind": "text", "text": "half"}])
    )
    store.close()
    with running(tmp_path, say("x"), sessions=tmp_path / "saved") as live, live.client() as client:
        messages = client.get(f"/v1/agent/conversations/{session.id}").json()["messages"]
        assert messages[-1]["status"] == "interrupted"


def test_shutting_down_stores_what_was_said(tmp_path: Path) -> None:
    with (
        running(tmp_path, say("on and on " * 300), delay=0.004, sessions=tmp_path / "saved") as live,
        live.client() as client,
    ):
        started = client.post("/v1/agent/turns", json={"content": "Tell"}).json()
        followed_for(live, f"/v1/agent/turns/{started['turn']}/events?after=0", 6)
    with running(tmp_path, say("x"), sessions=tmp_path / "saved") as live, live.client() as client:
        message = client.get(f"/v1/agent/conversations/{started['conversation']}").json()["messages"][-1]
        assert message["status"] in ("stopped", "error")
        assert message["parts"][0]["text"].startswith("on and on")


def test_transcripts_of_events_and_of_the_store_are_the_same(tmp_path: Path) -> None:
    """What a client adds up is what is stored: the wire loses nothing."""

    def answer(prompt: str) -> str:
        return "\nIt rains." if "rain in Paris" in prompt else 'Let me see.\x1eweather\n{"city": "Paris"}'

    with running(tmp_path, answer) as live, live.client() as client:
        events = followed(client, "/v1/agent/chat", {"content": "Weather?", "tools": tools_of(tmp_path)})
        stored = client.get(f"/v1/agent/conversations/{events[0][1]['conversation']}").json()["messages"][-1]["parts"]
        added: dict[int, str] = {}
        for _, data in events:
            if data["type"] == "text":
                added[data["part"]] = added.get(data["part"], "") + data["add"]
            if data["type"] == "call" and data["state"] == "writing":
                added[data["part"]] = added.get(data["part"], "") + data["add"]
        assert [part.get("text", part.get("arguments")) for part in stored] == [added[n] for n in sorted(added)]
        assert Transcript().as_dict()["parts"] == []

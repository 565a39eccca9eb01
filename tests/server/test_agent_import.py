"""Importing conversations over HTTP: one or several, ours or OpenAI's, also broken ones."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai_exports import trip
from test_agent_edges import upload
from test_agent_http import check, followed, running

from glm4.agent.sessions import MAX_SYSTEM

IMPORT = "/v1/agent/conversations"
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40)).decode()


def stored_files(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "files").glob("??/*"))


def test_one_of_openais_is_answered_like_one_of_ours_and_can_be_gone_on_with(tmp_path: Path) -> None:
    seen: list[str] = []

    def answer(prompt: str) -> str:
        seen.append(prompt)
        return "\nBy train."

    with running(tmp_path, answer) as live, live.client() as client:
        made = check("AgentConversation", client.post(IMPORT, json=trip()).json())
        assert (made["title"], made["created"], made["updated"]) == ("Trip to 杭州", 1700000000.5, 1700000900.25)
        check("AgentConversationWithMessages", client.get(f"{IMPORT}/{made['id']}").json())
        followed(client, "/v1/agent/chat", {"content": "How?", "conversation": made["id"]})
        assert "print(6 * 7)" in seen[0]
        assert "Zhejiang" not in seen[0]
        page = client.get(f"/ui/conversations/{made['id']}")
        assert page.status_code in (200, 404)  # where there is a page, it can show it


def test_a_list_says_what_came_in_and_what_failed(tmp_path: Path) -> None:
    with running(tmp_path, lambda prompt: "\nYes.") as live, live.client() as client:
        talk = followed(client, "/v1/agent/chat", {"content": "Mine"})[0][1]["conversation"]
        ours = client.get(f"{IMPORT}/{talk}/export").json()
        broken = trip() | {"title": "x" * 200, "current_node": "gone"}
        answer = client.post(IMPORT, json=[ours, trip(), broken, 5, {"title": 3}, []])
        assert answer.status_code == 200
        found = check("AgentImport", answer.json())
        assert [one["title"] for one in found["conversations"]] == ["Mine", "Trip to 杭州"]
        assert [(one["index"], one["title"]) for one in found["failed"]] == [(2, "x" * 80), (3, ""), (4, ""), (5, "")]
        assert "current_node" in found["failed"][0]["reason"]
        assert "neither a conversation that glm4 exported" in found["failed"][2]["reason"]
        listed = client.get(IMPORT).json()["conversations"]
        assert sorted(one["id"] for one in listed) == sorted([talk, *(one["id"] for one in found["conversations"])])
        assert listed[-1]["title"] == "Trip to 杭州"  # of 2023
        for wrong in (b"[]", b"5", b'"x"', b"null"):
            refused = client.post(IMPORT, content=wrong, headers={"Content-Type": "application/json"})
            assert refused.status_code == 400, wrong


HOSTILE_PARTS: tuple[dict[str, Any], ...] = (
    {"kind": "text"}, {"kind": "reasoning", "text": None}, {"kind": "tool"},
    {"kind": "tool", "tool": "python", "call": "c", "arguments": ""}, {"kind": "file", "name": "x"},
    {"kind": "tool", "tool": "p", "call": "c", "arguments": "", "state": 5}, {"kind": "text", "text": "", "output": {}},
    {"kind": "tool", "tool": "p", "output": [{"channel": "output"}]}, {"kind": "tool", "tool": "p", "files": [{}]},
    {"kind": "text", "text": "", "citations": [{"title": "t", "n": "7", "start": 0, "end": 1}]},
    {"kind": "text", "text": "", "citations": [{"title": "t", "n": 7, "start": 0}]},
)  # fmt: skip


@pytest.mark.parametrize("part", HOSTILE_PARTS, ids=str)
def test_parts_that_could_not_be_shown_are_refused(part: dict[str, Any], tmp_path: Path) -> None:
    with running(tmp_path, lambda prompt: "\nYes.") as live, live.client() as client:
        talk = followed(client, "/v1/agent/chat", {"content": "Mine"})[0][1]["conversation"]
        document = client.get(f"{IMPORT}/{talk}/export").json()
        document["messages"][1]["parts"] = [part]
        assert client.post(IMPORT, json=document).status_code == 400
        assert len(client.get(IMPORT).json()["conversations"]) == 1


def test_of_a_document_that_is_too_large_no_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second file does not fit; the first one is deleted again, unless it belongs to something else."""
    from glm4.agent.file_store import FolderFileStore

    saved = tmp_path / "saved"
    with running(tmp_path, lambda prompt: "\nYes.", sessions=saved) as live, live.client() as client:
        kept = upload(client, "kept.txt", b"belongs to an upload")["file"]
        talk = followed(client, "/v1/agent/chat", {"content": "Mine", "files": [kept]})[0][1]["conversation"]
        document = client.get(f"{IMPORT}/{talk}/export").json()
        document["files"] += [{"name": "a.png", "data": PNG}, {"name": "full.txt", "data": "eHl6"}]
        put = FolderFileStore.put

        def full(self: FolderFileStore, name: str, data: bytes, *, alt: str | None = None) -> Any:
            from glm4.errors import InvalidRequestError

            if name == "full.txt":
                raise InvalidRequestError("there is no room left for files; delete conversations", param="files")
            return put(self, name, data, alt=alt)

        monkeypatch.setattr(FolderFileStore, "put", full)
        refused = client.post(IMPORT, json=document)
        assert refused.status_code == 400
        assert "no room" in refused.json()["error"]["message"]
        assert stored_files(saved) == [kept]
        assert len(client.get(IMPORT).json()["conversations"]) == 1
        found = client.post(IMPORT, json=[document]).json()
        assert found["conversations"] == []
        assert "no room" in found["failed"][0]["reason"]
        assert stored_files(saved) == [kept]
        monkeypatch.undo()
        copy = client.post(IMPORT, json=document).json()["id"]
        picture = hashlib.sha256(base64.b64decode(PNG)).hexdigest()
        assert picture in stored_files(saved)
        client.delete(f"{IMPORT}/{copy}")
        assert stored_files(saved) == [kept]


def test_what_is_imported_belongs_to_its_key(tmp_path: Path) -> None:
    keys = ("first-secret-key", "second-secret-key")
    with running(tmp_path, lambda prompt: "\nx", api_keys=keys) as live:
        mine, yours = (
            httpx.Client(base_url=live.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) for key in keys
        )
        with mine, yours:
            (made,) = mine.post(IMPORT, json=[trip()]).json()["conversations"]
            assert yours.get(f"{IMPORT}/{made['id']}").status_code == 404
            assert yours.get(IMPORT).json() == {"conversations": []}
            assert yours.get("/v1/agent/search?q=Zhejiang").json() == {"results": []}
            assert mine.get("/v1/agent/search?q=Zhejiang").json()["results"]
            assert httpx.post(live.url + IMPORT, json=[trip()]).status_code == 401


def test_an_html_export_is_one_file_that_browsers_save(tmp_path: Path) -> None:
    with running(tmp_path, lambda prompt: "\nIt is **bold**.") as live, live.client() as client:
        file = upload(client, "a.png", base64.b64decode(PNG))["file"]
        talk = followed(client, "/v1/agent/chat", {"content": "Draw <b>"})[0][1]["conversation"]
        document = client.get(f"{IMPORT}/{talk}/export").json()
        # A file that the conversation does not have is not put into it, whatever its messages name.
        named = {"kind": "file", "file": file, "name": "a.png", "media_type": "image/png"}
        document["messages"][0]["parts"].append(named)
        copy = client.post(IMPORT, json=document).json()["id"]
        answer = client.get(f"{IMPORT}/{copy}/export?format=html")
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "attachment" in answer.headers["content-disposition"]
        assert "conversation.html" in answer.headers["content-disposition"]
        assert answer.headers["content-security-policy"] == "sandbox"
        assert "<strong>bold</strong>" in answer.text
        assert "Draw &lt;b&gt;" in answer.text
        assert PNG not in answer.text
        document["files"] = [{"name": "a.png", "data": PNG}]
        copy = client.post(IMPORT, json=document).json()["id"]
        assert f"data:image/png;base64,{PNG}" in client.get(f"{IMPORT}/{copy}/export?format=html").text
        assert client.get(f"{IMPORT}/{copy}/export?format=pdf").status_code == 400


def test_what_every_list_has_is_bounded(tmp_path: Path) -> None:
    with running(tmp_path, lambda prompt: "\nYes.") as live, live.client() as client:
        about = followed(client, "/v1/agent/chat", {"content": "Mine", "system": "é" * MAX_SYSTEM})[0][1]
        talk = f"{IMPORT}/{about['conversation']}"
        document = client.get(f"{talk}/export").json()
        assert client.post(IMPORT, json=document).json()["system"] == "é" * MAX_SYSTEM
        long = "x" * (MAX_SYSTEM + 1)
        for changes in ({"system": long}, {"model": long}, {"params": {"sampling": {"stop": long}}}):
            refused = client.post(IMPORT, json={**document, **changes})
            assert refused.status_code == 400, changes.keys()
            assert refused.json()["error"]["param"] == next(iter(changes))
        assert client.patch(talk, json={"system": long}).status_code == 400
        for turn in (
            {"content": "x", "system": long},
            {**{"content": "x", "system": long}, "conversation": talk[-32:]},
        ):
            assert client.post("/v1/agent/turns", json=turn).status_code == 400
        assert len(client.get(IMPORT).json()["conversations"]) == 2
        assert len(client.get(talk).json()["messages"]) == 2

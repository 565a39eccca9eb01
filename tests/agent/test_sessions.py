"""`SessionStore`: conversations that are saved, listed, branched, searched, exported and read again."""

import json
import sqlite3
import stat
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import pytest

from glm4.agent.files import StoredFile
from glm4.agent.session_export import as_document, as_markdown, from_document
from glm4.agent.sessions import Session, SessionMessage, SessionStore, title_of
from glm4.errors import InvalidRequestError, StoreError


def open_store(path: Path | None = None) -> SessionStore:
    return SessionStore(path, clock=map(float, count(1)).__next__)


def user(text: str, parent: str | None = None) -> SessionMessage:
    parts = [{"kind": "text", "text": text}]
    return SessionMessage("", parent, "user", "completed", "", [{"role": "user", "content": text}], parts)


def assistant(text: str, parent: str, status: Literal["running", "completed"] = "completed") -> SessionMessage:
    parts = [{"kind": "tool", "tool": "python", "arguments": "1 + 1"}, {"kind": "text", "text": text}]
    told: list[dict[str, Any]] = [{"role": "assistant", "content": text}]
    return SessionMessage("", parent, "assistant", status, "glm-4", told, parts, usage={"prompt": 3})


def talk(store: SessionStore, *texts: str, owner: str = "") -> tuple[Session, list[SessionMessage]]:
    session = store.create(owner, model="glm-4", params={"temperature": 0.5})
    added: list[SessionMessage] = []
    for index, text in enumerate(texts):
        parent = added[-1].id if added else None
        message = assistant(text, str(parent)) if index % 2 else user(text, parent)
        added.append(store.add(session.id, message, owner))
    return store.get(session.id, owner), added


def test_a_conversation_is_there_again_after_the_file_was_closed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "sessions.sqlite"
    store = open_store(path)
    session, added = talk(store, "How many?", "Two.")
    store.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = open_store(path)
    assert again.get(session.id) == session
    assert again.branch(session.id) == added
    assert session.title == "How many?"
    assert session.leaf == added[-1].id
    assert session.params == {"temperature": 0.5}
    again.close()


def test_branches(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    session, (question, first) = talk(store, "q", "first")
    second = store.add(session.id, assistant("second", question.id))
    assert [m.id for m in store.branch(session.id)] == [question.id, second.id]
    assert [m.id for m in store.branch(session.id, leaf=first.id)] == [question.id, first.id]
    store.change(session.id, changes={"leaf": first.id})
    assert store.branch(session.id)[-1] == first
    assert len(store.messages(session.id)) == 3
    other, _ = talk(store, "elsewhere")
    for wrong in (other.leaf, "no such"):
        with pytest.raises(InvalidRequestError, match="no message"):
            store.change(session.id, changes={"leaf": wrong})
        with pytest.raises(InvalidRequestError, match="no message"):
            store.add(session.id, user("x", wrong))
        with pytest.raises(InvalidRequestError, match="no message"):
            store.branch(session.id, leaf=wrong)


def test_lists_pinned_ones_first_and_then_the_latest() -> None:
    store = open_store()
    ids = [talk(store, name)[0].id for name in "abc"]
    store.change(ids[0], changes={"title": "A" * 200, "pinned": True})
    assert [s.id for s in store.sessions()] == [ids[0], ids[2], ids[1]]
    assert len(store.sessions()[0].title) == 80
    page = store.sessions(limit=2)
    assert [s.id for s in store.sessions(after=page[-1].id)] == [ids[1]]
    with pytest.raises(TypeError, match="unknown change"):
        store.change(ids[0], changes={"owner_": "x"})


def test_others_conversations_do_not_exist() -> None:
    store = open_store()
    session, added = talk(store, "mine", "yes", owner="me")
    store.add_file(session.id, StoredFile("aa", "a.png", "image/png", 3), "me")
    assert store.sessions("you") == []
    assert store.search("mine", "you") == []
    assert store.file("aa", "you") is None
    assert store.file("aa", "me") is not None
    for call in (
        lambda: store.get(session.id, "you"), lambda: store.messages(session.id, "you"),
        lambda: store.branch(session.id, "you"), lambda: store.change(session.id, "you", changes={"title": "x"}),
        lambda: store.delete(session.id, "you"), lambda: store.add(session.id, user("x", added[-1].id), "you"),
        lambda: store.files(session.id, "you"), lambda: as_document(store, session.id, "you"),
        lambda: store.add_file(session.id, StoredFile("bb", "b", "text/plain", 1), "you"),
    ):  # fmt: skip
        with pytest.raises(InvalidRequestError, match="no conversation"):
            call()
    assert store.get(session.id, "me").title == "mine"


@pytest.mark.parametrize(
    ("query", "found"),
    [("你好", 1), ("天气如何", 1), ("world", 1), ("WORLD", 1), ("wo", 1), ("100%", 1), ('say "hi"', 1), ("missing", 0),
     ("", 0), ("o* OR 1", 0), ("%", 1), ("_", 0), ("1 + 1", 0)],
)  # fmt: skip
def test_search_in_any_language(query: str, found: int) -> None:
    store = open_store()
    session, _ = talk(store, "你好，今天天气如何？", "Hello world", "100% sure", 'He did say "hi" to me')
    hits = store.search(query)
    assert len(hits) == found
    assert all(hit.conversation == session.id and query.lower() in hit.excerpt.lower() for hit in hits)


def test_what_was_found_changes_with_the_message() -> None:
    store = open_store()
    session, (question,) = talk(store, "question")
    turn = store.add(session.id, assistant("", question.id, "running"))
    assert store.write(replace(turn, parts=[{"kind": "text", "text": "an elephant"}], status="completed"))
    assert [hit.message for hit in store.search("elephant")] == [turn.id]
    store.delete(session.id)
    assert store.search("elephant") == []
    assert not store.write(turn)


def test_turns_of_a_process_that_is_gone_are_interrupted(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    session, (question,) = talk(store, "q")
    store.add(session.id, assistant("half an ans", question.id, "running"))
    again = open_store(tmp_path / "s")
    again.end_interrupted()
    assert again.branch(session.id)[-1].status == "interrupted"


class Files:
    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    def put(self, name: str, data: bytes, *, alt: str | None = None) -> StoredFile:
        self.data[f"of {name}"] = data
        return StoredFile(f"of {name}", name, "text/plain", len(data), alt=alt)

    def read(self, sha256: str) -> bytes:
        return self.data[sha256]


def test_export_and_import_keep_everything() -> None:
    store, files = open_store(), Files()
    session, (question, _) = talk(store, "q", "first", owner="me")
    store.add(session.id, assistant("second", question.id), "me")
    store.change(session.id, "me", changes={"leaf": question.id})
    store.add_file(session.id, files.put("a.txt", b"data"), "me")
    document = json.loads(json.dumps(as_document(store, session.id, "me", files)))
    other, theirs = open_store(), Files()
    copy = from_document(other, document, "you", theirs)
    assert theirs.data == files.data
    again = as_document(other, copy, "you", theirs)
    ids = {old["id"]: new["id"] for old, new in zip(document["messages"], again["messages"], strict=True)}
    assert not set(ids) & set(ids.values())
    assert again["leaf"] == ids[document["leaf"]]
    for old, new in zip(document["messages"], again["messages"], strict=True):
        assert new["parent"] == ids.get(old["parent"])
        assert new["parts"] == old["parts"]
        assert new["messages"] == old["messages"]
        assert new["usage"] == old["usage"]


def test_markdown_has_the_branch_that_is_shown() -> None:
    store = open_store()
    session, _ = talk(store, "How **many**?", "Two.")
    assert as_markdown(store, session.id) == (
        "# How **many**?\n\n## You\n\nHow **many**?\n\n## glm-4\n\n*python*\n\n```\n1 + 1\n```\n\nTwo.\n"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"}, {"version": 2}, {"title": 3}, {"params": []}, {"messages": {}}, {"leaf": "x"},
        {"messages": [1]}, {"messages": [{"id": "a", "parent": "b"}]}, {"files": [{"name": "x", "data": "?"}]},
        {"messages": [{"id": "a", "role": "king", "status": "completed", "messages": [], "parts": []}]},
        {"messages": [{"id": "a", "role": "user", "status": "completed", "messages": [{"role": "?"}], "parts": []}]},
    ],
)  # fmt: skip
def test_a_malformed_document_leaves_nothing(change: dict[str, Any]) -> None:
    store = open_store()
    session, _ = talk(store, "q")
    document = as_document(store, session.id)
    with pytest.raises(InvalidRequestError):
        from_document(store, {**document, **change}, "new", Files())
    assert store.sessions("new") == []
    with pytest.raises(InvalidRequestError):
        from_document(store, [document], "new")


def test_files_of_other_programs_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    with pytest.raises(StoreError, match="another program or version"):
        open_store(path)
    (tmp_path / "text").write_text("not a database, but longer than its header is, and so on and so forth" * 20)
    with pytest.raises(StoreError, match="move"):
        open_store(tmp_path / "text")


def test_title_is_the_first_words() -> None:
    assert title_of([{"kind": "text", "text": "  a\n b  "}]) == "a b"
    assert len(title_of([{"kind": "text", "text": "x" * 500}])) == 80
    assert title_of([{"kind": "file"}]) == ""

"""`SessionStore` and what others might do to it: long chains, odd searches, hostile documents, other processes."""

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glm4.agent.file_store import FolderFileStore
from glm4.agent.session_export import as_document, as_markdown, from_document
from glm4.agent.sessions import SessionMessage, SessionStore
from glm4.errors import InvalidRequestError, NotFoundError, StoreError


def asked(text: str, parent: str | None = None) -> SessionMessage:
    told = [{"role": "user", "content": text}]
    return SessionMessage("", parent, "user", "completed", "", told, [{"kind": "text", "text": text}])


def chain(store: SessionStore, length: int, owner: str = "") -> str:
    session = store.create(owner)
    parent = None
    for n in range(length):
        parent = store.add(session.id, asked(f"number {n} of the chain", parent), owner).id
    return session.id


def test_a_conversation_of_thousands_of_messages_can_be_read_found_and_deleted() -> None:
    store = SessionStore(None)
    session = chain(store, 2500)
    other = chain(store, 1)
    assert len(store.branch(session)) == 2500
    assert [one.excerpt for one in store.search("number 2417 of")] == ["number 2417 of the chain"]
    copy = from_document(store, as_document(store, session))
    store.delete(session)
    store.delete(copy)
    assert [one.id for one in store.sessions()] == [other]
    assert [one.conversation for one in store.search("number")] == [other]


@pytest.mark.parametrize(
    "query", ["a\0b", "\0", "number\0", '"', '""" OR 1', "NEAR(a b)", "body : x", "-x*", "\ud800ab"]
)
def test_no_search_fails(query: str) -> None:
    store = SessionStore(None)
    chain(store, 2)
    store.search(query)


def test_unknown_ids_and_those_of_others_are_not_found_in_the_same_words() -> None:
    store = SessionStore(None)
    theirs = chain(store, 1, "them")
    for name in (theirs, "0" * 32):
        with pytest.raises(NotFoundError) as raised:
            store.get(name, "me")
        assert str(raised.value).replace(name, "ID") == "there is no conversation 'ID'"
        assert raised.value.param == "conversation"


def test_pages_have_every_conversation_once_whatever_the_clock_says() -> None:
    ticks = iter([5.0] * 40 + [3.0] * 40 + [9.0] * 100)
    store = SessionStore(None, clock=ticks.__next__)
    ids = [chain(store, 1) for _ in range(23)]
    for name in ids[3:20:4]:
        store.change(name, changes={"pinned": True})
    for limit in (1, 2, 3, 7, 100):
        found: list[str] = []
        while page := store.sessions(limit=limit, after=found[-1] if found else None):
            found += [one.id for one in page]
        assert found == [one.id for one in store.sessions()]
        assert sorted(found) == sorted(ids)
    with pytest.raises(NotFoundError):
        store.sessions(after="gone")


def test_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    store = SessionStore(tmp_path / "s")
    session = store.create(title="a\ud800b")
    added = store.add(session.id, asked("half \udfff of a pair"))
    assert store.get(session.id).title == "a\ufffdb"
    assert store.branch(session.id)[0].parts == [{"kind": "text", "text": "half \ufffd of a pair"}]
    assert store.write(replace(added, parts=[{"kind": "text", "text": "\ud83d\ude00 whole \ud83d"}]))
    assert json.dumps(as_document(store, session.id), ensure_ascii=False).encode()
    assert store.search("whole \ufffd")


HOSTILE: tuple[dict[str, Any], ...] = (
    {"params": {"tools": 5}}, {"params": {"tools": [["x"]]}}, {"params": {"sampling": []}},
    {"title": None}, {"leaf": {"a": 1}}, {"leaf": []},
    {"messages": [{"id": "a", "parent": "a"}]}, {"messages": [{"id": "a", "parent": ["a"]}]},
    {"messages": [{"id": {}}]},
    {"files": [{"name": "x", "data": "eA==", "alt": 3}]}, {"files": [{"name": 3, "data": "eA=="}]},
)  # fmt: skip
HOSTILE_MESSAGES: tuple[dict[str, Any], ...] = (
    {"sources": [{"n": "7"}]}, {"sources": [{}]}, {"sources": [{"n": 7, "title": "t", "evil": 1}]},
    {"sources": [{"n": 7, "title": 3}]}, {"sources": [{"n": True, "title": "t"}]},
    {"sources": [{"n": 7, "title": "t", "page": "one"}]},
    {"parts": [{"kind": "text", "text": {"a": 1}}]}, {"parts": [{"kind": 3}]}, {"parts": [{}]}, {"parts": ["x"]},
    {"parts": [{"kind": "text", "text": None}]}, {"parts": [{"kind": "tool", "arguments": []}]},
    {"messages": [{"role": "system", "content": "obey"}]}, {"messages": [{"role": "user", "content": 5}]},
    {"messages": "x"}, {"usage": []}, {"status": "great"}, {"role": []}, {"model": 3}, {"id": None},
)  # fmt: skip


@pytest.mark.parametrize("change", [*HOSTILE, *({"message": one} for one in HOSTILE_MESSAGES)], ids=str)
def test_a_hostile_document_is_refused_whole(change: dict[str, Any], tmp_path: Path) -> None:
    store, files = SessionStore(None), FolderFileStore(tmp_path / "files")
    document = as_document(store, chain(store, 2))
    if "message" in change:
        document["messages"][1] |= change["message"]
    else:
        document |= change
    with pytest.raises(InvalidRequestError):
        from_document(store, document, "new", files)
    assert store.sessions("new") == []
    assert list(tmp_path.rglob("*")) == []


def test_an_import_that_finds_no_room_leaves_nothing(tmp_path: Path) -> None:
    store = SessionStore(None)
    session = chain(store, 3)
    document = {**as_document(store, session), "files": [{"name": "a", "data": "YWJjZGVm"}]}
    with pytest.raises(InvalidRequestError, match="room"):
        from_document(store, document, "new", FolderFileStore(tmp_path, quota=1))
    assert store.sessions("new") == []
    made = from_document(store, document, "new", FolderFileStore(tmp_path))
    assert [file.nbytes for file in store.files(made, "new")] == [6]


def test_an_import_is_one_commit(tmp_path: Path) -> None:
    """Thousands of commits, each on disk, would keep everybody else waiting."""
    store = SessionStore(None)
    document = as_document(store, chain(store, 300))
    other = SessionStore(tmp_path / "s")
    commits: list[str] = []
    other._file.connection.set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else None)
    from_document(other, document)
    assert len(commits) == 1


def test_a_deep_part_is_read_and_written(tmp_path: Path) -> None:
    store = SessionStore(None)
    document = as_document(store, chain(store, 1))
    deep: Any = "end"
    for _ in range(60):
        deep = [deep]
    document["messages"][0]["parts"].append({"kind": "odd", "deep": deep})
    made = from_document(store, document)
    assert as_document(store, made)["messages"][0]["parts"][1]["deep"] == deep
    assert as_markdown(store, made)


def test_markdown_stays_markdown_whatever_a_title_has() -> None:
    store = SessionStore(None)
    session = store.create(title="a\n# b\r\n```")
    assert as_markdown(store, session.id) == "# a # b ```\n"


@pytest.mark.parametrize("version", [0, 99])
def test_a_file_of_another_version_is_left_alone(version: int, tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = SessionStore(path)
    chain(store, 1)
    store.close()
    with sqlite3.connect(path) as other:
        other.execute(f"PRAGMA user_version = {version}")
    other.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="version"):
        SessionStore(path)
    assert path.read_bytes() == before


def test_a_second_process_does_not_end_the_turns_of_the_first(tmp_path: Path) -> None:
    first = SessionStore(tmp_path / "s")
    first.end_interrupted()
    session = first.create()
    question = first.add(session.id, asked("q"))
    turn = SessionMessage("", question.id, "assistant", "running", "m", [], [])
    first.add(session.id, turn)
    second = SessionStore(tmp_path / "s")
    second.end_interrupted()
    assert second.branch(session.id)[-1].status == "running"
    second.close()
    first.close()
    third = SessionStore(tmp_path / "s")
    third.end_interrupted()
    assert third.branch(session.id)[-1].status == "interrupted"
    third.close()


def test_the_clock_may_go_backwards() -> None:
    times = iter([100.0] * 3 + [float(n) for n in range(1, 30)])
    store = SessionStore(None, clock=times.__next__)
    session = store.create()
    first = store.add(session.id, asked("first"))
    second = store.add(session.id, asked("second", first.id))
    third = store.add(session.id, asked("third", second.id))
    assert [one.id for one in store.branch(session.id)] == [first.id, second.id, third.id]
    assert store.search("third")[0].message == third.id

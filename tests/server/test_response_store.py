"""Stored responses: bounds, durability, several writers, damaged files, conversations."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from glm4.errors import InvalidRequestError, StoreError
from glm4.server.app import create_app
from glm4.server.stores import responses
from glm4.server.stores.responses import ResponseStore, StoredResponse, ThreadedResponseStore
from live import config

MEGABYTE = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def response(name: str, previous: str | None = None, text: str = "", status: str = "completed") -> dict[str, Any]:
    output = [{"id": f"msg_{name}", "type": "message", "content": [{"type": "output_text", "text": text}]}]
    return {"id": name, "status": status, "previous_response_id": previous, "output": output}


def chain_of(store: ResponseStore, response_id: str) -> list[StoredResponse] | None:
    """A response and what it continues, oldest first; None if one of them is missing."""
    chain: list[StoredResponse] = []
    at: str | None = response_id
    while at is not None:
        found = store.get(at)
        if found is None:
            return None
        chain.insert(0, found)
        at = found.body["previous_response_id"]
    return chain


def asked(name: str) -> list[dict[str, Any]]:
    return [{"id": f"in_{name}", "type": "message", "role": "user", "content": []}]


def database(path: Path | None, max_bytes: int = MEGABYTE, max_age: float = 1e6, clock: Any = None) -> ResponseStore:
    return ResponseStore(path, max_bytes, max_age, clock or Clock())


@pytest.fixture(params=["file", "memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "responses.db" if request.param == "file" else None


@pytest.fixture
def small(path: Path | None) -> Iterator[ResponseStore]:
    with closing(database(path, max_bytes=20_000)) as made:
        yield made


def test_what_is_stored_comes_back_until_it_is_deleted(small: ResponseStore) -> None:
    small.insert(response("a", text="世界"), asked("a"))
    found = small.get("a")
    assert found is not None
    assert (found.body, found.items) == (response("a", text="世界"), asked("a"))
    assert small.output_item("msg_a") == found.body["output"][0]
    assert small.output_item("in_a") is None  # what a client sent is found by its response only
    assert small.delete("a")
    assert not small.delete("a")
    assert small.get("a") is None
    assert small.output_item("msg_a") is None


def test_a_conversation_is_read_from_its_beginning(small: ResponseStore) -> None:
    small.insert(response("a"), asked("a"))
    small.insert(response("b", "a"), asked("b"))
    small.insert(response("other", "a"), asked("other"))
    small.insert(response("c", "b"), asked("c"))
    chain = chain_of(small, "c")
    assert chain is not None
    assert [one.body["id"] for one in chain] == ["a", "b", "c"]
    small.delete("a")
    assert chain_of(small, "c") is None
    assert small.get("c") is not None
    assert chain_of(small, "nothing") is None


def test_an_unfinished_response_is_finished_in_place(small: ResponseStore) -> None:
    small.insert(response("a", status="in_progress") | {"output": []}, asked("a"))
    assert small.output_item("msg_a") is None
    assert small.finish(response("a", text="done"))
    found = small.get("a")
    assert found is not None
    assert (found.status, found.items) == ("completed", asked("a"))
    assert small.output_item("msg_a") is not None
    small.delete("a")
    assert not small.finish(response("a"))
    assert small.get("a") is None  # a deleted response does not come back


def test_the_oldest_go_first_when_it_becomes_too_large(small: ResponseStore) -> None:
    for index in range(40):
        small.insert(response(f"r{index}", text="x" * 1000), asked(f"r{index}"))
    kept = [index for index in range(40) if small.get(f"r{index}") is not None]
    assert kept == list(range(kept[0], 40))
    size = len(json.dumps([response("r10", text="x" * 1000), asked("r10")], separators=(",", ":"))) - 3
    assert len(kept) == 20_000 // size
    with pytest.raises(StoreError, match="larger than the store"):
        small.insert(response("huge", text="x" * 20_000), [])
    assert small.get("huge") is None
    assert small.get("r39") is not None


def test_a_conversation_that_goes_on_is_kept(small: ResponseStore) -> None:
    small.insert(response("begin", text="x" * 1000), asked("begin"))
    small.insert(response("idle", text="x" * 1000), asked("idle"))
    previous = "begin"
    for index in range(10):
        small.insert(response(f"r{index}", text="x" * 1000), asked(f"r{index}"))
        small.insert(response(f"next{index}", previous), asked(f"next{index}"))
        previous = f"next{index}"
    for index in range(5):
        small.insert(response(f"s{index}", text="x" * 1000), asked(f"s{index}"))
    assert small.get("idle") is None
    assert chain_of(small, previous) is not None


def test_age_ends_a_response_without_any_writing(path: Path | None) -> None:
    clock = Clock()
    with closing(database(path, max_age=100, clock=clock)) as made:
        made.insert(response("a"), asked("a"))
        made.insert(response("b"), asked("b"))
        clock.now += 60
        made.insert(response("c", "b"), asked("c"))
        assert made.get("a") is not None
        clock.now += 60
        assert made.get("a") is None
        assert made.output_item("msg_a") is None
        chain = chain_of(made, "c")  # continuing it has made its beginning young again
        assert chain is not None
        assert len(chain) == 2


def test_the_file_stays_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with closing(database(path, max_bytes=MEGABYTE)) as made:
        for index in range(400):
            made.insert(response(f"r{index}", text="x" * 20_000), asked(f"r{index}"))
    assert path.stat().st_size < 1.5 * MEGABYTE


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "s.db"
    with closing(database(path)) as made:
        made.insert(response("a"), asked("a"))
        files = [path, *path.parent.glob("s.db-*")]
        assert len(files) == 3
        assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    path.chmod(0o644)
    database(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_is_there_after_a_restart_and_what_was_interrupted_has_failed(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with closing(database(path)) as made:
        made.insert(response("a"), asked("a"))
        made.insert(response("half", "a", status="in_progress"), asked("half"))
    with closing(database(path)) as again:
        kept, half = again.get("a"), again.get("half")
    assert kept is not None
    assert kept.status == "completed"
    assert half is not None
    assert half.status == "failed"
    assert half.body["error"]["code"] == "server_error"


def test_writers_do_not_lose_each_others_responses(tmp_path: Path) -> None:
    path, failures = tmp_path / "s.db", []

    def write(writer: int) -> None:
        try:
            with closing(database(path)) as made:  # opened at the same time, too
                for index in range(25):
                    made.insert(response(f"w{writer}-{index}"), asked("x"))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with closing(database(path)) as made:
        assert all(made.get(f"w{writer}-{index}") is not None for writer in range(6) for index in range(25))
    with closing(sqlite3.connect(path)) as raw:
        ((total, summed),) = raw.execute("SELECT total.bytes, (SELECT sum(bytes) FROM responses) FROM total")
    assert total == summed


@pytest.mark.parametrize("damage", ["text", "middle", "header"])
def test_a_damaged_file_stops_the_start_and_says_what_to_do(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "s.db"
    with closing(database(path)) as made:
        for index in range(50):
            made.insert(response(f"r{index}", text="x" * 500), asked("x"))
    raw = bytearray(path.read_bytes())
    if damage == "text":
        raw = bytearray(b"this is no database, but it is long enough to look at " * 20)
    elif damage == "middle":
        raw[4096 : len(raw) // 2] = b"\xff" * (len(raw) // 2 - 4096)
    else:
        raw[100:200] = bytes(100)
    path.write_bytes(raw)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"move .*s\.db away") as caught:
        create_app(config("tiny", store_path=path))
    assert "cannot be opened" in str(caught.value)
    assert path.read_bytes() == before  # nothing of it was lost by trying


def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with closing(sqlite3.connect(path)) as theirs:
        theirs.execute("CREATE TABLE notes (text)")
    with pytest.raises(StoreError, match="another program"):
        database(path)
    with closing(sqlite3.connect(path)) as theirs:
        assert theirs.execute("SELECT name FROM sqlite_master").fetchall() == [("notes",)]


def test_a_path_that_cannot_be_a_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Is a directory"):
        database(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="name a file this user may read and write"):
        database(tmp_path / "file" / "s.db")


def test_a_write_that_fails_is_undone(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with closing(database(path)) as made:
        made.insert(response("a"), asked("a"))
        with closing(sqlite3.connect(path)) as other:
            other.execute("DROP TRIGGER stored")
            other.execute("DROP TABLE items")
        with pytest.raises(StoreError, match="cannot be written"):
            made.insert(response("b"), asked("b"))
        assert made.get("b") is None
        assert made.get("a") is not None


def test_the_asynchronous_store(tmp_path: Path) -> None:
    async def use(store: ThreadedResponseStore) -> None:
        await asyncio.gather(*(store.insert(response(f"r{index}"), asked("x")) for index in range(20)))
        assert all([await store.get(f"r{index}") is not None for index in range(20)])
        assert set(await store.output_items(["msg_r1", "msg_none"])) == {"msg_r1"}
        assert await store.delete("r3")
        await store.close()
        await store.close()
        with pytest.raises(StoreError, match="stopping"):
            await store.get("r1")

    asyncio.run(use(ThreadedResponseStore(partial(ResponseStore, tmp_path / "s.db", MEGABYTE, 1e6), now=True)))
    asyncio.run(use(ThreadedResponseStore(partial(ResponseStore, None, MEGABYTE, 1e6), now=False)))


def chained(store: ResponseStore, ids: Sequence[str], previous: str | None = None) -> None:
    """Responses that continue each other, in this order."""
    for one in ids:
        body: dict[str, Any] = {"id": one, "status": "completed", "previous_response_id": previous, "output": []}
        store.insert(body, [{"id": f"{one}-item"}])
        previous = one


async def conversation(path: Path, response_id: str) -> list[str] | None:
    stored = ThreadedResponseStore(lambda: ResponseStore(path, 1 << 28, 1e6), now=True)
    try:
        found = await stored.conversation(response_id)
    finally:
        await stored.close()
    return None if found is None else [one.body["id"] for one in found]


def test_responses_that_continue_each_other_are_refused(tmp_path: Path) -> None:
    """A file can be altered; none of this may go on for ever, or keep others waiting."""
    path = tmp_path / "store.sqlite"
    with closing(ResponseStore(path, 1 << 28, 1e6)) as store:
        chained(store, ["a", "b", "c"])
        for name, previous in (("a", "c"), ("self", "self")):
            body = {"id": name, "status": "completed", "previous_response_id": previous, "output": []}
            store.insert(body, [])
        with closing(sqlite3.connect(path)) as file, file:
            file.execute("UPDATE responses SET previous = 'c' WHERE id = 'a'")
        chained(store, ["d"], previous="c")  # its ancestors are kept as long as it is: they are a circle, too
    for one in ("a", "b", "c", "d", "self"):
        with pytest.raises(InvalidRequestError, match="continue each other") as refused:
            asyncio.run(conversation(path, one))
        assert refused.value.param == "previous_response_id"


def test_conversations_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.sqlite"
    monkeypatch.setattr(responses, "MAX_CHAIN", 5)
    monkeypatch.setattr(responses, "MAX_CHAIN_BYTES", 3000)
    with closing(ResponseStore(path, 1 << 28, 1e6)) as store:
        chained(store, [f"r{n}" for n in range(6)])
        chained(store, ["long-1", "long-2", "long-3" + "x" * 2000])
    assert asyncio.run(conversation(path, "r4")) == ["r0", "r1", "r2", "r3", "r4"]
    with pytest.raises(InvalidRequestError, match="more than 5 responses"):
        asyncio.run(conversation(path, "r5"))
    assert asyncio.run(conversation(path, "long-2")) == ["long-1", "long-2"]
    with pytest.raises(InvalidRequestError, match="longer than"):
        asyncio.run(conversation(path, "long-3" + "x" * 2000))


def test_a_long_conversation_does_not_keep_others_waiting(tmp_path: Path) -> None:
    """Every response of it is a call of its own, between which others have their turn."""

    async def both() -> list[str]:
        stored = ThreadedResponseStore(lambda: ResponseStore(tmp_path / "store.sqlite", 1 << 28, 1e6), now=True)
        for n in range(200):
            previous = f"r{n - 1}" if n else None
            await stored.insert(
                {"id": f"r{n}", "status": "completed", "previous_response_id": previous, "output": []}, []
            )
        order: list[str] = []

        async def long() -> None:
            await stored.conversation("r199")
            order.append("long")

        async def short() -> None:
            await stored.get("r0")
            order.append("short")

        await asyncio.gather(long(), short())
        await stored.close()
        return order

    assert asyncio.run(both()) == ["short", "long"]


def test_a_store_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with closing(ResponseStore(path, 1 << 28, 1e6)) as store:
        chained(store, ["a"])
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("ALTER TABLE responses DROP COLUMN owner")
        file.execute("PRAGMA user_version = 1")
    for shares_old, known in ((True, True), (False, False)):
        with closing(ResponseStore(path, 1 << 28, 1e6, shares_old=shares_old)) as store:
            assert (store.get("a", "somebody") is not None) == known
            assert store.get("a", "") is not None

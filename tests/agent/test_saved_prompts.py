"""Saved system prompts in the file of the conversations, and files that have no place for them yet."""

from __future__ import annotations

from pathlib import Path

import pytest
from old_session_files import write_old

from glm4.agent import prompts as saved
from glm4.agent.prompts import MAX_NAME, MAX_TEXT, add_prompt, change_prompt, delete_prompt, prompts
from glm4.agent.sessions import SessionStore
from glm4.agent.uploads import Paging, uploads
from glm4.errors import InvalidRequestError, NotFoundError


def test_prompts_are_kept_by_name(tmp_path: Path) -> None:
    store = SessionStore(tmp_path / "s")
    brief = add_prompt(store, " brief ", "Answer in one sentence.", "me")
    add_prompt(store, "Aloud", "讲故事。", "me")
    changed = change_prompt(store, brief.id, "me", text="Two sentences.")
    assert (changed.name, changed.text, changed.created) == ("brief", "Two sentences.", brief.created)
    assert change_prompt(store, brief.id, "me", name="Zoo").text == "Two sentences."
    store.close()
    store = SessionStore(tmp_path / "s")
    assert [(one.name, one.text) for one in prompts(store, "me")] == [("Aloud", "讲故事。"), ("Zoo", "Two sentences.")]
    delete_prompt(store, brief.id, "me")
    assert [one.name for one in prompts(store, "me")] == ["Aloud"]


def test_prompts_of_others_do_not_exist() -> None:
    store = SessionStore(None)
    mine = add_prompt(store, "n", "t", "me")
    assert prompts(store, "you") == []
    for name in (mine.id, "0" * 32):
        with pytest.raises(NotFoundError) as changing:
            change_prompt(store, name, "you", text="x")
        with pytest.raises(NotFoundError) as deleting:
            delete_prompt(store, name, "you")
        assert str(changing.value) == str(deleting.value) == f"there is no saved prompt {name!r}"
    assert prompts(store, "me") == [mine]


def test_there_is_a_bound_on_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    store = SessionStore(None)
    for name, text, param in (("", "t", "name"), (" \n", "t", "name"), ("n" * (MAX_NAME + 1), "t", "name"),
                              ("n", "t" * (MAX_TEXT + 1), "text")):  # fmt: skip
        with pytest.raises(InvalidRequestError) as raised:
            add_prompt(store, name, text)
        assert raised.value.param == param
    made = add_prompt(store, "n" * MAX_NAME, "t" * MAX_TEXT)
    with pytest.raises(InvalidRequestError):
        change_prompt(store, made.id, name="")
    monkeypatch.setattr(saved, "MAX_PROMPTS", 2)
    add_prompt(store, "half \ud800 of a pair", "")
    with pytest.raises(InvalidRequestError, match="delete some"):
        add_prompt(store, "third", "")
    add_prompt(store, "of another", "", "you")
    assert [one.name for one in prompts(store)] == ["half \ufffd of a pair", "n" * MAX_NAME]


UPLOAD = """
INSERT INTO uploads (id, owner, purpose, sha256, file, created) VALUES ('file-1', 'me', 'assistants', 'bb',
    '{"sha256":"bb","name":"b.txt","media_type":"text/plain","nbytes":3}', 150.0);
"""


@pytest.mark.parametrize(("version", "more"), [(1, ()), (2, (UPLOAD,))])
def test_files_of_earlier_versions_are_upgraded_with_all_they_have(
    version: int, more: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "old" / "conversations.sqlite"
    write_old(path, version, *more)
    store = SessionStore(path)
    (session,) = store.sessions("me")
    assert (session.id, session.title, session.system, session.pinned) == ("c1", "Rivers", "Be brief.", True)
    assert (session.created, session.updated, session.leaf) == (100.0, 200.0, "m2")
    assert [one.id for one in store.branch("c1", "me")] == ["m1", "m2"]
    assert [one.message for one in store.search("yangtze", "me")] == ["m2"]
    assert [file.name for file in store.files("c1", "me")] == ["a.txt"]
    found, _ = uploads(store, "me", Paging(10))
    assert [one.id for one in found] == (["file-1"] if more else [])
    made = add_prompt(store, "Brief", "Be brief.", "me")
    store.close()
    store = SessionStore(path)
    assert store.database.run("PRAGMA user_version").fetchone() == (3,)
    assert prompts(store, "me") == [made]
    assert store.delete("c1", "me") == ["aa"]
    assert store.search("yangtze", "me") == []


def test_an_upgraded_file_has_the_tables_of_a_new_one(tmp_path: Path) -> None:
    write_old(tmp_path / "old", 2)
    names = []
    for path in (tmp_path / "old", tmp_path / "new"):
        store = SessionStore(path)
        names.append(store.database.run("SELECT type, name FROM sqlite_master ORDER BY 1, 2").fetchall())
        store.close()
    assert names[0] == names[1]

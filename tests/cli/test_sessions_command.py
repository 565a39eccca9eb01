"""`glm4 sessions`: saved conversations at the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from openai_exports import trip
from processes import run

from glm4.agent.sessions import SessionMessage, SessionStore
from glm4.cli import main


def said(role: str, text: str, parent: str | None) -> SessionMessage:
    told = [{"role": role, "content": text}]
    return SessionMessage("", parent, role, "completed", "glm-4", told, [{"kind": "text", "text": text}])  # type: ignore[arg-type]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLM4_HOME", str(tmp_path))
    store = SessionStore(tmp_path / "sessions" / "conversations.sqlite")
    for question in ("How is the weather?", "今天天气怎么样？"):
        session = store.create(model="glm-4")
        asked = store.add(session.id, said("user", question, None))
        store.add(session.id, said("assistant", f"\x1b[31mAn answer to {question}", asked.id))
    store.close()
    return tmp_path


def test_list_find_export_import_delete(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def out(*args: str) -> str:
        assert main(["sessions", *args]) == 0
        return capsys.readouterr().out

    listed = json.loads(out("--json"))
    assert [one["title"] for one in listed] == ["今天天气怎么样？", "How is the weather?"]
    shown = out()
    assert listed[0]["id"][:8] in shown
    assert "How is the weather?" in shown
    found = out("find", "天气")
    assert listed[0]["id"][:8] in found
    assert listed[1]["id"][:8] not in found
    assert "\x1b[31m" not in found
    ident = listed[0]["id"]
    markdown = out("export", ident[:8], "--format", "markdown")
    assert "# 今天天气怎么样？" in markdown
    assert "\x1b" not in markdown
    page = out("export", ident[:8], "--format", "html")
    assert page.startswith("<!DOCTYPE html>")
    assert "An answer to 今天天气怎么样？" in page
    assert "\x1b" not in page
    (tmp_path / "talk.json").write_text(out("export", ident))
    new = out("import", str(tmp_path / "talk.json")).strip()
    assert len(json.loads(out("--json"))) == 3
    out("delete", new)
    assert [one["id"] for one in json.loads(out("--json"))] == [one["id"] for one in listed]
    assert len(json.loads(out("--json", "--limit", "1"))) == 1


@pytest.mark.parametrize(
    "args",
    [
        ("show",),
        ("export",),
        ("list", "x"),
        ("export", "zzz"),
        ("export", ""),
        ("--format", "pdf"),
        ("import", "/no/such"),
    ],
)  # fmt: skip
def test_mistakes_are_usage_errors(args: tuple[str, ...], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sessions", *args]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_openais_export_is_imported_as_far_as_it_can_be_read(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = tmp_path / "conversations.json"
    export.write_text(json.dumps([trip(), trip() | {"title": "\x1b[31mBroken", "mapping": 5}, trip()]))
    assert main(["sessions", "import", str(export)]) == 2
    said = capsys.readouterr()
    assert len(said.out.split()) == 2
    assert "1 of 3 conversations could not be imported" in said.err
    assert "number 2" in said.err
    assert "Broken): mapping must be an object" in said.err
    assert "\x1b" not in said.err
    export.write_text(json.dumps([trip()]))
    assert main(["sessions", "import", str(export)]) == 0
    name = capsys.readouterr().out.strip()
    assert main(["sessions", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["title"] for one in listed[2:]] == ["Trip to 杭州"] * 3  # behind those that are newer
    assert main(["sessions", "export", name, "--format", "markdown"]) == 0
    assert "It is 42 km." in capsys.readouterr().out


def test_what_is_not_a_conversation_is_refused(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("{", "[]", '{"format": "x"}'):
        (tmp_path / "bad.json").write_text(text)
        assert main(["sessions", "import", str(tmp_path / "bad.json")]) == 2
        assert "error: " in capsys.readouterr().err


def test_an_empty_store_is_no_error(tmp_path: Path) -> None:
    done = run("sessions", home=tmp_path)
    assert done.returncode == 0
    assert b"no saved conversations" in done.stderr

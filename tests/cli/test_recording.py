"""`Recording`: conversations of `glm4 chat --tools` are saved turn by turn, and gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glm4.agent.file_store import FolderFileStore
from glm4.agent.sessions import SessionStore
from glm4.agent.tool import Sources
from glm4.chat.messages import Message, ToolCall
from glm4.chat.parts import ImagePart, TextPart
from glm4.cli.conversation.recording import Recording, open_recording, record_quietly
from glm4.cli.parameters import UsageError


def told(text: str, status: str = "completed", **file: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"kind": "text", "text": text}]
    if file:
        parts.append({"kind": "tool", "tool": "python", "arguments": "1", "files": [file]})
    return {
        "parts": parts,
        "files": [],
        "usage": {"rounds": 1},
        "errors": [],
        "end": {"status": status, "reason": "stop"},
    }


def read(sha256: str) -> bytes:
    return b"data of " + sha256.encode()


class Chat:
    """What the REPL does with its messages."""

    def __init__(self, folder: Path, resume: str | None = None) -> None:
        self.store = SessionStore(folder / "s.sqlite")
        session = None if resume is None else self.store.get(resume)
        self.recording = Recording(self.store, FolderFileStore(folder / "files"), "glm-4", session)
        self.messages = self.recording.messages
        self.sources = self.recording.sources()

    def say(self, text: str, answer: str, **file: Any) -> None:
        self.messages.append(Message("user", text))
        before = list(self.messages)
        call = ToolCall("c", "python", "1 + 1")
        added = [
            Message("assistant", tool_calls=(call,)),
            Message("tool", "2", tool_call_id="c"),
            Message("assistant", answer),
        ]
        self.messages += added
        self.recording.turn(before, added, told(answer, **file), self.sources, read)

    def branch(self) -> list[str]:
        (session,) = self.store.sessions(limit=1)
        return [str(message.parts[0]["text"]) for message in self.store.branch(session.id)]


def test_a_conversation_is_saved_and_gone_on_with(tmp_path: Path) -> None:
    chat = Chat(tmp_path)
    chat.messages = [Message("system", "Be brief.")]
    chat.say("One?", "1", file="aa", name="plot.png", alt="a plot")
    source = chat.sources.add("Page", url="http://x")
    chat.say("Two?", "2")
    (session,) = chat.store.sessions()
    assert (session.title, session.system, session.model) == ("One?", "Be brief.", "glm-4")
    (file,) = chat.store.files(session.id)
    assert (file.name, file.alt) == ("plot.png", "a plot")
    chat.recording.close()

    again = Chat(tmp_path, resume=session.id)
    assert again.messages == chat.messages
    assert again.sources.all() == [source]
    again.say("Three?", "3")
    assert again.branch() == ["One?", "1", "Two?", "2", "Three?", "3"]
    assert len(again.store.sessions()) == 1


def test_undo_and_retry_begin_another_branch(tmp_path: Path) -> None:
    chat = Chat(tmp_path)
    chat.say("One?", "1")
    chat.say("Two?", "2")
    del chat.messages[4:]
    chat.say("Other?", "3")
    assert chat.branch() == ["One?", "1", "Other?", "3"]
    del chat.messages[:]
    chat.say("Anew?", "4")
    assert chat.branch() == ["Anew?", "4"]
    (session,) = chat.store.sessions()
    assert len(chat.store.messages(session.id)) == 8


def test_clear_begins_a_new_conversation(tmp_path: Path) -> None:
    chat = Chat(tmp_path)
    chat.say("One?", "1")
    chat.recording.forget()
    del chat.messages[:]
    chat.say("Two?", "2")
    assert [session.title for session in chat.store.sessions()] == ["Two?", "One?"]


def test_what_was_loaded_from_elsewhere_is_saved_too(tmp_path: Path) -> None:
    chat = Chat(tmp_path)
    chat.messages = [Message("user", "Before?"), Message("assistant", "0")]
    chat.say("One?", "1")
    assert chat.branch() == ["Before?", "0", "One?", "1"]


def test_pictures_are_not_written_into_the_store(tmp_path: Path) -> None:
    chat = Chat(tmp_path)
    chat.messages = [Message("user", [ImagePart(data=b"\x89PNG" + b"x" * 1000), TextPart("What?")])]
    before = list(chat.messages)
    chat.recording.turn(before, [Message("assistant", "A cat")], told("A cat"), chat.sources, read)
    assert b"x" * 100 not in (tmp_path / "s.sqlite").read_bytes()
    assert chat.branch() == ["What?", "A cat"]


def test_a_store_that_fails_is_only_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = Chat(tmp_path)
    chat.recording.close()
    with pytest.raises(Exception, match="closed"):
        chat.say("One?", "1")
    chat = Chat(tmp_path)
    chat.store._file.connection.execute("DROP TABLE messages")
    record_quietly(chat.recording, [Message("user", "x")], [Message("assistant", "y")], told("y"), Sources(), read)
    assert "warning: the conversation is not saved" in capsys.readouterr().err


def test_an_unknown_conversation_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM4_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="no conversation"):
        open_recording("m", "abc")
    assert open_recording("m").messages == []

"""Saved conversations: what is written is read back; anything else is refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glm4.chat.messages import Message, ToolCall
from glm4.chat.parts import ImagePart, TextPart
from glm4.cli.conversation import conversation
from glm4.cli.conversation.conversation import Conversation, Turn
from glm4.errors import InvalidRequestError


def example() -> Conversation:
    turns = [
        Turn(Message("system", "Be brief.")),
        Turn(Message("user", "你好 \u2028")),
        Turn(Message("assistant", "", reasoning="hm", tool_calls=(ToolCall("c1", "f", '{"a": 1}'),))),
        Turn(Message("tool", "3", tool_call_id="c1")),
        Turn(Message("assistant", "It is"), interrupted=True),
    ]
    return Conversation(turns, {"temperature": 0.2, "stop": ["x"], "seed": None})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    conversation.save(example(), "starter", path)
    loaded, model = conversation.load(path)
    assert (loaded, model) == (example(), "starter")
    document = json.loads(path.read_text(encoding="utf-8"))
    assert list(document) == ["model", "messages", "params"]
    assert document["messages"][-1] == {"role": "assistant", "content": "It is", "interrupted": True}
    assert [entry.name for entry in tmp_path.iterdir()] == ["talk.json"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_conversation_edited_on_windows_is_loaded(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "talk.json"
    conversation.save(example(), "starter", path)
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    assert conversation.load(path) == (example(), "starter")


def test_pictures_are_saved_with_the_conversation(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    image = ImagePart(b"png", media_type="image/png")
    talk = Conversation(
        [Turn(Message("user", [TextPart("What is this?"), image])), Turn(Message("assistant", "A cat."))]
    )
    conversation.save(talk, "starter", path)
    loaded, _ = conversation.load(path)
    assert loaded == talk
    assert loaded.drop_last_exchange() == talk.messages[0]
    document = json.loads(path.read_text())
    assert document["messages"][0]["content"][1]["image_url"] == {"url": "data:image/png;base64,cG5n"}
    path.write_text(path.read_text().replace("cG5n", "cG5"))
    with pytest.raises(InvalidRequestError, match=r"not a saved conversation: messages\[0\]\.content\[1\]: .*base64"):
        conversation.load(path)


def test_saving_again_replaces_a_conversation_but_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    conversation.save(Conversation(), "starter", path)
    conversation.save(example(), "starter", path)
    assert conversation.load(path)[0] == example()
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    with pytest.raises(InvalidRequestError, match="choose another name"):
        conversation.save(example(), "starter", other)
    assert other.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", '"model", "messages" and "params"'),
        ('{"model": "m", "messages": []}', '"model", "messages" and "params"'),
        ('{"model": 1, "messages": [], "params": {}}', "must be a string"),
        ('{"model": "m", "messages": [1], "params": {}}', "every message must be an object"),
        ('{"model": "m", "messages": [{"role": "boss", "content": ""}], "params": {}}', "role must be"),
        ('{"model": "m", "messages": [{"role": "user", "colour": ""}], "params": {}}', "'colour'"),
        ('{"model": "m", "messages": [{"role": "user", "interrupted": 1}], "params": {}}', '"interrupted"'),
        ('{"model": "m", "messages": [{"role": "user"}, {"role": "system"}], "params": {}}', "may only come first"),
        ('{"model": "m", "messages": [], "params": {"n": 2}}', "unknown parameter 'n'"),
        ('{"model": "m", "messages": [], "params": {"temperature": "hot"}}', "temperature must be"),
        ('{"model": "m", "messages": [], "params": {"stop": 1}}', "stop"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(InvalidRequestError) as caught:
        conversation.load(path)
    assert reason in str(caught.value)
    assert "bad.json is not a saved conversation" in str(caught.value)


def test_system_message_clear_and_undo() -> None:
    talk = example()
    assert talk.system == "Be brief."
    talk.system = "New."
    assert [turn.message.role for turn in talk.turns][:2] == ["system", "user"]
    assert talk.drop_last_exchange() == Message("user", "你好 \u2028")
    assert talk.drop_last_exchange() is None
    assert talk.system == "New."
    talk.turns += example().turns[1:]
    talk.clear()
    assert talk.messages == [Message("system", "New.")]
    talk.system = None
    assert talk.turns == []

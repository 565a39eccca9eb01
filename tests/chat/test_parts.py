"""Messages with parts: what is read, what is refused and where, and that plain text is as easy as ever."""

from __future__ import annotations

import base64
import hashlib
import pickle
from dataclasses import replace
from typing import Any

import pytest

from glm4 import AudioPart, ImagePart, Message, TextPart
from glm4.chat import parts
from glm4.chat.dialects.table import DIALECTS
from glm4.chat.messages import as_messages
from glm4.errors import InvalidRequestError
from glm4.tokenizer import Tokenizer
from rendering import loss_mask, render, render_text
from vocabularies import tiny_chatml

PNG = b"\x89PNG\r\n\x1a\n and so on"
DATA_URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
WAV = base64.b64encode(b"RIFF....WAVE").decode()
TEXT, IMAGE = {"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": DATA_URL}}
AUDIO = {"type": "input_audio", "input_audio": {"data": WAV, "format": "wav"}}


def read(*content: Any) -> Message:
    return as_messages([{"role": "user", "content": list(content)}])[0]


def test_plain_text_is_one_part() -> None:
    message = Message("user", "hi")
    assert message.content == (TextPart("hi"),)
    assert message.text == "hi"
    assert message == Message("user", [TextPart("hi")]) == Message.from_dict({"role": "user", "content": "hi"})
    assert repr(message).startswith("Message(role='user', content=(TextPart(text='hi'),), reasoning=None")
    assert {message: 1}[Message("user", "hi")] == 1
    assert pickle.loads(pickle.dumps(message)) == message
    assert replace(message, role="system") == Message("system", "hi")
    assert replace(message, content="ho").text == "ho"
    for empty in (Message("assistant"), Message("assistant", ""), Message.from_dict({"role": "assistant"})):
        assert (empty.content, empty.text) == ((), "")
    with pytest.raises(AttributeError):
        message.content = "other"  # type: ignore[misc]


def test_texts_are_joined_by_line_breaks_and_pictures_are_not_text() -> None:
    message = read(TEXT, IMAGE, {"type": "text", "text": "b"})
    assert message.text == "a\nb"
    assert [part.kind for part in message.content] == ["text", "image", "text"]
    assert Message("user", message.content) == message


def test_a_picture_is_its_bytes() -> None:
    (image,) = read(IMAGE).content
    assert isinstance(image, ImagePart)
    assert (image.data, image.url, image.media_type) == (PNG, None, "image/png")
    assert image.digest == hashlib.sha256(PNG).hexdigest()
    assert image == ImagePart(PNG)  # the name of a format is a hint
    assert image != AudioPart(PNG)  # type: ignore[comparison-overlap]
    assert "and so on" not in repr(image)


def test_a_picture_may_be_an_address() -> None:
    detailed = {"url": "https://example.com/a.png", "detail": "high"}
    (image,) = read({"type": "image_url", "image_url": detailed}).content
    assert image == ImagePart(url="https://example.com/a.png")
    assert isinstance(image, ImagePart)
    assert image.digest is None


def test_sound_alike() -> None:
    (sound,) = read(AUDIO).content
    assert sound == AudioPart(b"RIFF....WAVE")
    assert isinstance(sound, AudioPart)
    assert sound.media_type == "audio/wav"
    heard = {"type": "audio_url", "audio_url": {"url": "http://example.com/a.mp3"}}
    assert read(heard).content == (AudioPart(url="http://example.com/a.mp3"),)


def test_python_callers_may_put_parts_into_dictionaries() -> None:
    assert read(TextPart("a"), ImagePart(PNG)) == Message("user", [TextPart("a"), ImagePart(PNG)])


@pytest.mark.parametrize("part", [TextPart("a\u2028"), ImagePart(PNG), AudioPart(b"x", media_type="audio/mp3"),
                                  ImagePart(url="http://example.com/")], ids=lambda part: part.kind)  # fmt: skip
def test_what_is_written_is_read_back(part: Any) -> None:
    assert read(part.as_dict()).content == (part,)


@pytest.mark.parametrize(
    ("part", "place", "problem"),
    [
        ("a", "", "must be an object, not str"),
        ({"type": "video_url"}, "", "type 'video_url' are not supported; text,"),
        ({"type": ["text"]}, "", "not supported"),
        ({"type": "x" * 100_000}, "", "not supported"),
        ({"type": "text"}, ".text", "must be a string"),
        ({"type": "image_url"}, ".image_url", "must be an object"),
        ({"type": "image_url", "image_url": DATA_URL}, ".image_url", "must be an object"),
        ({"type": "image_url", "image_url": {}}, ".image_url.url", "must be a string"),
        ({"type": "image_url", "image_url": {"url": None}}, ".image_url.url", "must be a string"),
        ({"type": "image_url", "image_url": {"url": DATA_URL, "size": "1"}}, ".image_url.size", "not supported"),
        ({"type": "image_url", "image_url": {"url": DATA_URL, "detail": "huge"}}, ".image_url.detail", "must be auto"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "", "begin with http"),
        ({"type": "image_url", "image_url": {"url": "https://e.com/" + "x" * 9000}}, "", "longer than 8192"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,abc"}}, "", "malformed data URL"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64"}}, "", "malformed data URL"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}, "", "is empty"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,A"}}, "", "not valid base64"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA\nAA"}}, "", "not valid base64"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,äAAA"}}, "", "not valid base64"),
        ({"type": "image_url", "image_url": {"url": "data:text/html;base64,AAAA"}}, "", "must be image/…"),
        ({"type": "image_url", "image_url": {"url": "data:;base64,AAAA"}}, "", "must be image/…"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "flac"}}, ".input_audio.format", "wav"),
        ({"type": "input_audio", "input_audio": {"format": "wav"}}, ".input_audio.data", "must be a string"),
        ({"type": "input_audio", "input_audio": {"data": "?", "format": "wav"}}, "", "not valid base64"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_malformed_is_named(part: Any, place: str, problem: str) -> None:
    with pytest.raises(InvalidRequestError, match=problem) as caught:
        as_messages([Message("system", "s"), {"role": "user", "content": [TEXT, part]}])
    assert caught.value.param == f"messages[1].content[1]{place}"
    assert str(caught.value).startswith(f"messages[1].content[1]{place}: ")
    assert len(str(caught.value)) < 300


def test_sizes_are_limited_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_MEDIA_NBYTES", 1 << 20)
    for length in ((1 << 20) - 2, 1 << 20):
        data = bytes(length)
        assert read(IMAGE | {"image_url": {"url": url(data)}}).content == (ImagePart(data),)
    for length in ((1 << 20) + 1, 1 << 21):
        data = bytes(length)
        with pytest.raises(InvalidRequestError, match="larger than 1 MB"):
            ImagePart(data)
        with pytest.raises(InvalidRequestError, match="larger than 1 MB"):
            read(IMAGE | {"image_url": {"url": url(data)}})


def url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def test_a_part_is_data_or_an_address() -> None:
    wrong: tuple[dict[str, Any], ...] = ({}, {"data": PNG, "url": "http://example.com"})
    for options in wrong:
        with pytest.raises(InvalidRequestError, match="either data or url"):
            ImagePart(**options)


@pytest.mark.parametrize("name", list(DIALECTS))
def test_a_text_model_refuses_them_by_type_and_place(name: str, glm4: Tokenizer) -> None:
    tokenizer = tiny_chatml() if name == "chatml" else glm4
    for draw in (render, render_text, loss_mask):
        turns: list[Any] = [Message("system", "s"), Message("user", "a"), {"role": "user", "content": [TEXT, IMAGE]}]
        with pytest.raises(InvalidRequestError) as caught:
            draw(DIALECTS[name], turns, tokenizer=tokenizer)
        assert str(caught.value) == (
            "messages[2].content[1]: this model takes text only; cannot use a content part of type 'image_url'"
        )
        assert caught.value.param == "messages[2].content[1]"
    with pytest.raises(InvalidRequestError, match=r"messages\[0\]\.content\[0\]: .* of type 'audio'"):
        render(DIALECTS[name], [Message("user", [AudioPart(b"x")])], tokenizer=tokenizer)

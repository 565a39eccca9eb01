"""Pictures as Python programs give them, and that no request over HTTP can name a file of the server."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glm4 import ImagePart, Message, SamplingParams, TextPart
from glm4.api.anthropic import parse_message
from glm4.api.openai import parse_chat, parse_completion
from glm4.api.responses.request import parse_responses
from glm4.chat import parts
from glm4.chat.chat_request import ChatRequest
from glm4.chat.messages import as_messages
from glm4.errors import InvalidRequestError
from glm4.multimodal.image import ImageDecoder
from glm4.requests.local_images import with_local_images

PIXELS = np.random.RandomState(3).randint(0, 256, (40, 30, 3), np.uint8)


def png(pixels: Any = PIXELS) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


PNG = png()
ENCODED = base64.b64encode(PNG).decode()
DATA_URL = f"data:image/png;base64,{ENCODED}"
URL = "https://example.com/a.png"


def read(part: Any) -> ImagePart:
    (message,) = as_messages(with_local_images([{"role": "user", "content": [{"type": "text", "text": "a"}, part]}]))
    text, image = message.content
    assert text == TextPart("a")
    assert isinstance(image, ImagePart)
    assert (image.where, image.type) == ("messages[0].content[1]", "image")
    return image


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "eine Katze.png"
    path.write_bytes(PNG)
    return path


def test_files_and_bytes_are_taken_as_they_are(file: Path) -> None:
    for value in (file, str(file), PNG, bytearray(PNG), memoryview(PNG), DATA_URL, ImagePart(PNG)):
        part = {"type": "image", "image": value}
        image = read(part) if not isinstance(value, ImagePart) else with_local_images([{"content": [part]}])[0]
        assert getattr(image, "data", PNG) == PNG
    for form in ({"path": file}, {"path": str(file)}, {"base64": ENCODED}, {"url": DATA_URL}, {"image_url": DATA_URL},
                 {"image_url": {"url": DATA_URL}}):  # fmt: skip
        assert read({"type": "image", **form, "other": None}).data == PNG


def test_addresses_stay_addresses() -> None:
    for form in ({"image": URL}, {"url": URL}, {"image_url": URL}):
        assert read({"type": "image", **form}).url == URL


def test_pixels_become_a_file_with_the_same_pixels() -> None:
    gray, alpha = PIXELS[:, :, 0], np.dstack([PIXELS, PIXELS[:, :, 0]])
    for pixels in (PIXELS, gray, gray[:, :, None], alpha):
        data = read({"type": "image", "image": pixels}).data
        assert data is not None
        shown = np.asarray(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(shown, pixels.squeeze())
    for mode in ("RGB", "L", "CMYK", "P", "RGBA"):
        picture = Image.fromarray(PIXELS).convert(mode)
        data = read({"type": "image", "image": picture}).data
        assert data is not None
        assert Image.open(io.BytesIO(data)).size == (30, 40)
    same = [read({"type": "image", "image": PIXELS.copy()}).digest for _ in range(2)]
    assert same[0] == same[1]


def test_the_demos_form() -> None:
    picture = Image.fromarray(PIXELS)
    (message,) = as_messages(with_local_images([{"role": "user", "image": picture, "content": "描述这张图片"}]))
    text, image = message.content
    assert text == TextPart("描述这张图片")
    assert isinstance(image, ImagePart)
    (bare,) = as_messages(with_local_images([{"role": "user", "image": PNG}]))
    assert bare.content == (ImagePart(PNG),)
    (none,) = as_messages(with_local_images([{"role": "user", "image": None, "content": "a"}]))
    assert none == Message("user", "a")
    mixed = [{"role": "user", "image": PNG, "content": [{"type": "text", "text": "a"}, {"type": "video"}]}]
    with pytest.raises(InvalidRequestError) as caught:
        as_messages(with_local_images(mixed))
    assert caught.value.param == "messages[0].content[1]"


def test_everything_else_passes_unchanged() -> None:
    given: list[Any] = [Message("user", "a"), {"role": "user", "content": "b"}, 7, {"content": None}, {"content": b"x"}]
    assert with_local_images(given) == given
    for wrong in ("text", b"bytes", None, {"role": "user"}, 5):
        assert with_local_images(wrong) is wrong


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ({"image": "/no/such/file.png"}, "'/no/such/file.png' cannot be read: No such file or directory"),
        ({"image": "a\0b"}, "cannot be read: "),
        ({"image": Path("/")}, "cannot be read: Is a directory"),
        ({"path": 7}, "the path of an image must be a string or a path, not int"),
        ({"base64": "?"}, "not valid base64"),
        ({"base64": 7}, "must be a string"),
        ({"url": 7}, "must be a string"),
        ({"url": "/etc/passwd"}, "must be a data: URL or begin with http"),
        ({"image": b""}, "is empty"),
        ({"image": 7}, "not int"),
        ({"image": np.zeros((4, 4, 3), np.float32)}, "uint8"),
        ({"image": np.zeros((4, 4, 5), np.uint8)}, "[4, 4, 5]"),
        ({"image": np.zeros((0, 4), np.uint8)}, "no pixels"),
        ({}, "needs exactly one of image, url, image_url, path, base64"),
        ({"image": PNG, "path": "a"}, "needs exactly one of"),
        ({"picture": PNG}, "needs exactly one of"),
    ],
)
def test_what_cannot_be_read_says_why_and_where(part: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read({"type": "image", **part})
    assert caught.value.param == "messages[0].content[1]"
    assert str(caught.value).startswith("messages[0].content[1]: ")
    assert problem in str(caught.value)


def test_a_large_file_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_MEDIA_NBYTES", 1 << 20)
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(InvalidRequestError, match="larger than 1 MB"):
        ImagePart.open(path)


def test_no_request_can_name_a_file(file: Path) -> None:
    """Bodies go to `ChatRequest.of`, which knows no paths, whatever they call them."""
    named = str(file)
    forms: list[Any] = [
        {"type": "image", "image": named},
        {"type": "image", "path": named},
        {"type": "image", "url": named},
        {"type": "image", "url": f"file://{named}"},
        {"type": "image_url", "image_url": {"url": named}},
        {"type": "image_url", "image_url": {"url": f"file://{named}"}},
        {"type": "image", "source": {"type": "file", "path": named}},
        {"type": "image", "source": {"type": "url", "url": f"file://{named}"}},
    ]
    for form in forms:
        messages = [{"role": "user", "content": [form]}]
        with pytest.raises(InvalidRequestError):
            ChatRequest.of(messages)
        with pytest.raises(InvalidRequestError):
            parse_chat({"messages": messages}, SamplingParams())
        with pytest.raises(InvalidRequestError):
            parse_message({"messages": messages, "max_tokens": 5}, SamplingParams())
    for url in (named, f"file://{named}"):
        item = {"role": "user", "content": [{"type": "input_image", "image_url": url}]}
        asked = parse_responses({"input": [item]}, SamplingParams(), thinks=False)
        with pytest.raises(InvalidRequestError, match="must be a data: URL or begin with http"):
            asked.chat([], asked.items)
    with pytest.raises(InvalidRequestError, match="unknown message field 'image'"):
        parse_chat({"messages": [{"role": "user", "image": named, "content": "a"}]}, SamplingParams())
    with pytest.raises(InvalidRequestError, match=r"'image' are not supported; .*; pictures are sent as image_url"):
        parse_chat({"messages": [{"role": "user", "content": [forms[0]]}]}, SamplingParams())
    for prompt in ({"prompt": "a", "multi_modal_data": {"image": named}}, [{"prompt": "a"}]):
        with pytest.raises(InvalidRequestError):
            parse_completion({"prompt": prompt}, SamplingParams())


def test_they_decode() -> None:
    decoder = ImageDecoder(28)
    try:
        first = decoder.decode(PNG)
        for value in (PIXELS, Image.fromarray(PIXELS)):
            data = read({"type": "image", "image": value}).data
            assert data is not None
            np.testing.assert_array_equal(decoder.decode(data), first)
    finally:
        decoder.close()

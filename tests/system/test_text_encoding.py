"""Texts as editors and shells write them: marks, UTF-16, and what is refused rather than guessed."""

from __future__ import annotations

import codecs

import pytest

from glm4.system.text_encoding import HEAD_NBYTES, TextEncodingError, decode_text, find_encoding

TEXTS = ("Sum up: hi\r\n", "你好，世界\n", "日本語 text\u3000", "a", '{"a": "naïve 👩‍💻"}', "🙂 “long” 你\n" * 3000)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_what_windows_writes_is_read(text: str, encoding: str) -> None:
    assert decode_text(text.encode(encoding)) == text
    assert decode_text(codecs.BOM_UTF16_BE + text.encode("utf-16-be")) == text


@pytest.mark.parametrize("shift", [0, 1, 2, 3])
def test_a_head_that_ends_inside_a_character_decides_the_same(shift: int) -> None:
    text = "x" * shift + "🙂" * HEAD_NBYTES + "\n"
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        # A newline first, so that there is a NUL within the head.
        assert decode_text(("\n" + text).encode(encoding)) == "\n" + text


def test_utf8_with_nul_stays_utf8() -> None:
    for data in (b"foo\0bar\0", b"ab\0cd\0ef\0gh\0", b"\0" * 8, "é\0".encode() * 3000):
        assert find_encoding(data[:HEAD_NBYTES]) == ("utf-8", 0)
        assert decode_text(data) == data.decode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"caf\xe9", r"is not UTF-8 text \(byte 0xe9 at offset 3\); save it as UTF-8, or convert"),
        (codecs.BOM_UTF8 + b"\xd6\xd0", r"byte 0xd6 at offset 3"),
        (codecs.BOM_UTF16_LE + b"a", "damaged UTF-16"),
        (codecs.BOM_UTF16_LE + b"a\0\0\xd8b\0", r"damaged UTF-16 text \(byte 0x00 at offset 4\)"),
        ("plain".encode("utf-16-le") * 1000 + b"\0\xdc\0\0", "damaged UTF-16"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not UTF-8"),
    ],
)
def test_anything_else_is_an_error_that_says_what_to_do(data: bytes, reason: str) -> None:
    with pytest.raises(TextEncodingError, match=reason) as caught:
        decode_text(data)
    assert "save it as UTF-8" in str(caught.value)

"""Bytes that a person's editor or shell wrote, as text: UTF-8, and what Windows programs write instead.

Notepad puts a byte order mark before UTF-8 and can write UTF-16; PowerShell 5 writes UTF-16 for `>`. Other encodings
(GBK, Latin-1) cannot be told apart with certainty, so they are an error and never guessed.
"""

from __future__ import annotations

import codecs
import unicodedata
from pathlib import Path

_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SHOWN = {"utf-8": "UTF-8", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16", "utf-32-le": "UTF-32", "utf-32-be": "UTF-32"}
HEAD_NBYTES = 4096  # enough for `find_encoding`
_SPACES = "\t\n\f\r"
_NOT_IN_TEXT = ("Cc", "Cn", "Co")  # controls, characters that do not exist, private ones


class TextEncodingError(ValueError):
    """Bytes that are not text we can read; the message says at which byte, and what to do."""


def decode_text(data: bytes) -> str:
    """The text without its byte order mark.

    Raises:
        TextEncodingError: neither UTF-8, nor UTF-16 or UTF-32 that has a mark or is evident.
    """
    encoding, skipped = find_encoding(data[:HEAD_NBYTES])
    try:
        return data[skipped:].decode(encoding)
    except UnicodeDecodeError as error:
        raise encoding_error(error, encoding, skipped) from None


def read_text(path: Path) -> str:
    """The text of a file; errors as `decode_text`, and OSError."""
    return decode_text(path.read_bytes())


def find_encoding(head: bytes) -> tuple[str, int]:
    """(encoding, bytes of its mark) of a text by its first bytes, `HEAD_NBYTES` or all if there are fewer."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding, len(mark)
    # Text has no NUL; UTF-16 has one in every ASCII character, on the same side.
    for encoding, high, low in (("utf-16-le", head[1::2], head[::2]), ("utf-16-be", head[::2], head[1::2])):
        if high.count(0) > low.count(0) and _is_text(head, encoding, zeros=high.count(0)):
            return encoding, 0
    return "utf-8", 0


def encoding_error(error: UnicodeDecodeError, encoding: str, skipped: int = 0) -> TextEncodingError:
    """What to tell about text that is not in the encoding it seemed to be in."""
    place = f"byte {error.object[error.start]:#04x} at offset {error.start + skipped}"
    if encoding == "utf-8":
        advice = "save it as UTF-8, or convert it first (for example `iconv -f GBK -t UTF-8`)"
        return TextEncodingError(f"is not UTF-8 text ({place}); {advice}")
    return TextEncodingError(f"is damaged {_SHOWN[encoding]} text ({place}); save it as UTF-8")


def _is_text(head: bytes, encoding: str, *, zeros: int) -> bool:
    """Whether UTF-16 without a mark is evident: it decodes to what texts are made of.

    Bytes that are UTF-8 as well (names separated by NUL, say) must be mostly ASCII characters of UTF-16.
    """
    try:
        text = head[: len(head) & ~1].decode(encoding)
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # the head may end inside a pair
            return False
        text = head[: error.start].decode(encoding)
    if any(unicodedata.category(char) in _NOT_IN_TEXT and char not in _SPACES for char in text):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return True
    return 2 * zeros > len(text)


def well_formed(text: str) -> str:
    """Text with every lone surrogate (legal in JSON strings, not in UTF-8) replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text

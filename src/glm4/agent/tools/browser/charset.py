"""`decode_html`: the bytes of a web page as text, whatever it says about its encoding."""

from __future__ import annotations

import codecs
import re

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_META = re.compile(rb"<meta[^>]{0,512}?charset\s*=\s*[\"']?\s*([a-zA-Z0-9_:.-]{1,40})", re.IGNORECASE)
_HEAD_NBYTES = 4096
_SAMPLE_NBYTES = 64 << 10

# The encodings of the web; Python has further codecs, some of which are no character sets at all. Browsers read the
# names of subsets as the larger set, and so do we.
_LARGER = {
    "gb2312": "gb18030", "gbk": "gb18030", "hz": "hz", "iso8859-1": "cp1252", "ascii": "cp1252", "iso8859-9": "cp1254",
    "iso8859-11": "cp874", "tis-620": "cp874", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs",
}  # fmt: skip
_KNOWN = frozenset(
    {
        "utf-8", "utf-16", "utf-16-le", "utf-16-be", "gb18030", "hz", "big5hkscs", "cp932", "euc_jp", "iso2022_jp",
        "cp949", "cp866", "koi8-r", "koi8-u", "mac-roman", "cp874",
        *(f"cp125{n}" for n in range(9)), *(f"iso8859-{n}" for n in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)),
    }
)  # fmt: skip


def decode_html(data: bytes, declared: str = "") -> str:
    """The text; what cannot be decoded becomes U+FFFD.

    A byte order mark decides; then whether it is UTF-8 with something beyond ASCII, as nothing else looks like it; then
    what the server says (`declared`), what the page says in `<meta>`, and what the bytes look like.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    if not data.isascii() and _is_utf8(data):
        return data.decode("utf-8", "replace")
    meta = _META.search(data[:_HEAD_NBYTES])
    for name in (declared, meta[1].decode("ascii") if meta else ""):
        known = _known(name)
        # A page that says UTF-16 in ASCII letters, or UTF-8 and is not (that was tried), is wrong about itself.
        if known is not None and known != "utf-8" and (not known.startswith("utf-16") or b"\0" in data[:64]):
            return data.decode(known, "replace")
    return data.decode(_guessed(data), "replace")


def _is_utf8(data: bytes) -> bool:
    """The last bytes may be a half character, of a page that was cut."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return True


def _known(name: str) -> str | None:
    try:
        found = codecs.lookup(name).name if name else ""
    except (LookupError, ValueError):
        return None
    found = _LARGER.get(found, found)
    return found if found in _KNOWN else None


def _guessed(data: bytes) -> str:
    if data.isascii():
        return "utf-8"
    from charset_normalizer import from_bytes

    best = from_bytes(data[:_SAMPLE_NBYTES]).best()
    return (None if best is None else _known(best.encoding)) or "gb18030"

"""`parse_form`: multipart/form-data (RFC 7578) as clients of HTTP APIs send it. Strict: what is unusual is refused.

The whole body is there, so nothing can wait; every byte is looked at once. Parts are few and their headers short.

Not covered, and refused: nested multipart, transfer encodings, two fields of one name, text before the first boundary.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from glm4.errors import InvalidRequestError, shown

MAX_PARTS = 16
MAX_HEADERS_NBYTES = 8192
"""Of one part."""
MAX_FIELD_NBYTES = 4096
"""Of a field that is not a file."""
_BOUNDARY = re.compile(r"""[0-9A-Za-z'()+_,./:=?-]{1,70}""")
_PARAMETER = re.compile(r';[ \t]*([A-Za-z*]{1,32})=("(?:[^"\\\r\n]|\\[^\r\n])*"|[^\s";]+)[ \t]*')
_HEADER = re.compile(r"([A-Za-z0-9-]{1,64}):[ \t]*(.*)")


@dataclass(frozen=True)
class FormFile:
    """A file of a form.

    Attributes:
        name: what the sender calls it: any text, never a path.
    """

    name: str
    data: bytes = field(repr=False)


def boundary_of(content_type: str) -> bytes:
    """What separates the parts of a form.

    Raises:
        InvalidRequestError: the body is no form, or the boundary is missing or malformed.
    """
    kind, _, _ = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        raise InvalidRequestError("send a form: Content-Type: multipart/form-data; boundary=…")
    boundary = _parameters(content_type[len(kind) :]).get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise InvalidRequestError("the Content-Type has no valid boundary, of 1 to 70 characters")
    return boundary.encode()


def parse_form(body: bytes, boundary: bytes) -> dict[str, str | FormFile]:
    """The fields of a form, by name.

    Raises:
        InvalidRequestError: malformed, cut off, or beyond the limits; says what.
    """
    form: dict[str, str | FormFile] = {}
    mark = b"--" + boundary
    if not body.startswith(mark):
        raise InvalidRequestError("the form does not begin with its boundary")
    at = len(mark)
    while not body.startswith(b"--", at):
        if not body.startswith(b"\r\n", at):
            raise InvalidRequestError("a boundary in the form is not followed by a line break")
        if len(form) == MAX_PARTS:
            raise InvalidRequestError(f"the form has more than {MAX_PARTS} fields")
        end = body.find(b"\r\n\r\n", at, at + MAX_HEADERS_NBYTES)
        if end < 0:
            raise InvalidRequestError(f"a field's headers do not end within {MAX_HEADERS_NBYTES} bytes")
        name, file = _field(body[at + 2 : end])
        at = body.find(b"\r\n" + mark, end + 4)
        if at < 0:
            raise InvalidRequestError("the form is cut off: its last boundary is missing")
        data = body[end + 4 : at]
        if name in form:
            raise InvalidRequestError(f"the form has two fields {shown(name)}", param=name)
        form[name] = FormFile(file, data) if file is not None else _text(name, data)
        at += 2 + len(mark)
    if body[at + 2 :].strip(b"\r\n"):
        raise InvalidRequestError("something follows the last boundary of the form")
    return form


def _field(raw: bytes) -> tuple[str, str | None]:
    """The name in a part's headers, and the file's name if it is one."""
    headers: dict[str, str] = {}
    for line in _decoded(raw).split("\r\n"):
        match = _HEADER.fullmatch(line)
        if match is None or match[1].lower() in headers:
            raise InvalidRequestError("the headers of a field in the form are malformed")
        headers[match[1].lower()] = match[2]
    kind, semicolon, rest = headers.get("content-disposition", "").partition(";")
    given = _parameters(semicolon + rest)
    if kind.strip().lower() != "form-data" or not given.get("name"):
        raise InvalidRequestError("a part of the form is not a field with a name")
    if headers.get("content-type", "").lower().startswith("multipart/"):
        raise InvalidRequestError("a form inside of a form is not supported; send one file", param=given["name"])
    if headers.get("content-transfer-encoding", "binary").lower() not in ("binary", "8bit", "7bit"):
        raise InvalidRequestError("send files as they are, without a transfer encoding", param=given["name"])
    extended = given.get("filename*")
    if extended is not None:
        charset, _, encoded = extended.partition("'")
        if charset.lower() != "utf-8" or "'" not in encoded:
            raise InvalidRequestError("filename* must be UTF-8''…", param=given["name"])
        return given["name"], _decoded(unquote_to_bytes(encoded.partition("'")[2]))
    # Clients write these three as the HTML standard has it; other percent signs mean themselves.
    name = given.get("filename")
    return given["name"], None if name is None else re.sub("%(22|0D|0A)", _unescaped, name)


def _parameters(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    at = 0
    while at < len(text.rstrip()):
        match = _PARAMETER.match(text, at)
        if match is None or match[1].lower() in found:
            raise InvalidRequestError("the parameters of a header in the form are malformed")
        value = match[2]
        found[match[1].lower()] = re.sub(r'\\(["\\])', r"\1", value[1:-1]) if value.startswith('"') else value
        at = match.end()
    return found


def _unescaped(match: re.Match[str]) -> str:
    return chr(int(match[1], 16))


def _text(name: str, data: bytes) -> str:
    if len(data) > MAX_FIELD_NBYTES:
        raise InvalidRequestError(f"{shown(name)} is longer than {MAX_FIELD_NBYTES} bytes", param=name)
    return _decoded(data)


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidRequestError("a name or a text in the form is not UTF-8") from None

"""Files in conversations: OpenAI's `input_file` and `file` parts, and Anthropic's `document` blocks.

A file is there in base64, or named by its id. Addresses of files are not fetched.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from glm4.errors import InvalidRequestError, shown

INPUT_FILE = "input_file"
MOST = 32
"""Files of one request."""
_MEMBERS = ("file_id", "file_data", "filename", "file_url", "detail", "prompt_cache_breakpoint")
_ENDINGS = {"application/pdf": ".pdf", "text/plain": ".txt", "text/markdown": ".md", "text/html": ".html"}


@dataclass(frozen=True)
class SentFile:
    """A file in a conversation.

    Attributes:
        where: its place in the request, for errors.
        id: of a stored file; otherwise `data` is there.
        name: None for the stored file's own.
    """

    where: str
    id: str | None = None
    data: bytes | None = field(default=None, repr=False)
    name: str | None = None


def read_file(given: Mapping[str, Any], where: str) -> SentFile:
    """What `input_file` parts and the `file` of chat completions have.

    Raises:
        InvalidRequestError: malformed; `.param` is `where` or a place inside it.
    """
    known = {key: value for key, value in given.items() if value is not None and key != "type"}
    for key, value in known.items():
        if key not in _MEMBERS:
            raise _refusal(f"{where}.{str(key)[:80]}", "this field is not supported")
        if key != "prompt_cache_breakpoint" and not isinstance(value, str):
            raise _refusal(f"{where}.{key}", "must be a string")
    if "file_url" in known:
        raise _refusal(f"{where}.file_url", "files are not fetched here; send file_data, or a file to /v1/files")
    if ("file_id" in known) == ("file_data" in known):
        raise _refusal(where, "a file needs either file_id or file_data with filename")
    if "file_id" in known:
        return SentFile(where, known["file_id"], name=known.get("filename"))
    if not known.get("filename"):
        raise _refusal(f"{where}.filename", "name the file: its ending says what a text is")
    return SentFile(where, data=_decoded(known["file_data"], f"{where}.file_data"), name=known["filename"])


def _decoded(text: str, where: str) -> bytes:
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise _refusal(where, "malformed data URL; expected data:application/pdf;base64,…")
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise _refusal(where, "is not valid base64") from None
    if not data:
        raise _refusal(where, "the file is empty")
    return data


def responses_file(part: Any, where: str) -> SentFile | None:
    """The file that a part of an item is; None for other parts."""
    return read_file(part, where) if isinstance(part, Mapping) and part.get("type") == INPUT_FILE else None


def chat_file(part: Any, where: str) -> SentFile | None:
    """The file that a part of a chat message is; None for other parts."""
    if not isinstance(part, Mapping) or part.get("type") not in ("file", INPUT_FILE):
        return None
    if part["type"] == INPUT_FILE:
        return read_file(part, where)
    if not isinstance(part.get("file"), Mapping):
        raise _refusal(f"{where}.file", "must be an object")
    return read_file(part["file"], f"{where}.file")


def anthropic_file(block: Any, where: str) -> SentFile | None:
    """The file of a `document` block, if it is one and has no text yet; the block's other members are read later."""
    source = block.get("source") if isinstance(block, Mapping) and block.get("type") == "document" else None
    if not isinstance(source, Mapping) or source.get("type") not in ("base64", "file"):
        return None
    names = ("media_type", "data") if source["type"] == "base64" else ("file_id",)
    for key in (*source, *names):
        if key not in ("type", *names):
            raise _refusal(f"{where}.source.{str(key)[:80]}", "this field is not supported")
        if not isinstance(source.get(key), str):
            raise _refusal(f"{where}.source.{key}", "must be a string")
    title = block.get("title") if isinstance(block.get("title"), str) else None
    if source["type"] == "file":
        return SentFile(where, source["file_id"], name=title)
    ending = _ENDINGS.get(source["media_type"])
    if ending is None:
        kinds = " or ".join(_ENDINGS)
        raise _refusal(f"{where}.source.media_type", f"must be {kinds}, not {shown(source['media_type'])}")
    name = title or "document"
    return SentFile(
        where, data=_decoded(source["data"], f"{where}.source.data"), name=name if ending in name else name + ending
    )


@dataclass(frozen=True)
class PartForm:
    """How an API has files, text and pictures in a message.

    Attributes:
        file: (part, place) → the file it is, or None.
        text: a text → a part.
        picture: a data URL → a part.
    """

    file: Callable[[Any, str], SentFile | None]
    text: Callable[[str], dict[str, Any]]
    picture: Callable[[str], dict[str, Any]]


RESPONSES = PartForm(
    responses_file,
    lambda text: {"type": "input_text", "text": text},
    lambda url: {"type": "input_image", "image_url": url, "detail": "auto"},
)
CHAT = PartForm(
    chat_file,
    lambda text: {"type": "text", "text": text},
    lambda url: {"type": "image_url", "image_url": {"url": url}},
)


def _refusal(where: str, text: str) -> InvalidRequestError:
    return InvalidRequestError(f"{where}: {text}", param=where)

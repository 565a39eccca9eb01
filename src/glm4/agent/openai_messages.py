"""One message of OpenAI's data export: what of it people see, and what a model reads.

Its `content_type` says how the content is told: text, multimodal_text, code, execution_output, thoughts …; those that
are not known are read as far as they have text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from glm4.agent.session_checks import as_date, as_list, as_object, as_text
from glm4.errors import InvalidRequestError

_HIDDEN = ("user_editable_context", "model_editable_context", "reasoning_recap", "app_pairing_content")
_MARKS = re.compile("\ue200[^\ue200\ue201]{0,4000}\ue201|[\ue200-\ue206]")  # references that only its own page can show
_STATUSES = {"finished_partial_completion": "stopped", "in_progress": "interrupted"}


@dataclass(frozen=True)
class Piece:
    """A message.

    Attributes:
        parts: as people see them; of a tool: a call without output, or an output.
        told: what a model reads.
        created: seconds since the epoch; 0 if it is not known.
    """

    role: Literal["user", "assistant"]
    parts: list[dict[str, Any]]
    told: str
    created: float
    model: str
    status: str


def read_piece(message: Mapping[str, Any], where: str) -> Piece | None:
    """What a message has to show; None if that is nothing.

    Raises:
        InvalidRequestError: it is malformed; says where.
    """
    author = as_object(message.get("author"), f"{where}.author")
    role = author.get("role")
    if role not in ("system", "user", "assistant", "tool"):
        raise InvalidRequestError(f"{where}.author.role is not a known one", param=where)
    metadata = as_object(message.get("metadata") or {}, f"{where}.metadata")
    content = as_object(message.get("content"), f"{where}.content")
    kind = as_text(content.get("content_type"), f"{where}.content.content_type")
    created = 0.0 if message.get("create_time") is None else as_date(message["create_time"], f"{where}.create_time")
    if role == "system" or kind in _HIDDEN or _is_hidden(message, metadata):
        return None
    text = _KINDS.get(kind, _text)(content, f"{where}.content")
    recipient = message.get("recipient") or "all"
    slug = metadata.get("model_slug")
    parts, told = _shown(role, kind, text.strip(), str(author.get("name") or ""), str(recipient), content)
    if notes := _attached(metadata, f"{where}.metadata"):
        parts.append({"kind": "text", "text": notes})
        told = f"{told}\n\n{notes}".strip()
    if not parts:
        return None
    status = _STATUSES.get(str(message.get("status")), "completed")
    model = slug if isinstance(slug, str) else ""
    return Piece("user" if role == "user" else "assistant", parts, told, created, model, status)


def _is_hidden(message: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    return metadata.get("is_visually_hidden_from_conversation") is True or message.get("weight") == 0


def _shown(
    role: str, kind: str, text: str, name: str, recipient: str, content: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], str]:
    """The parts, and what a model reads of them."""
    if not text:
        return [], ""
    if role == "tool":
        failed = kind == "system_error"
        output = [{"channel": "error" if failed else "output", "text": text}]
        part = {"kind": "tool", "tool": name or "tool", "state": "error" if failed else "done", "arguments": "",
                "output": output}  # fmt: skip
        return [part], _fenced(text, "")
    if kind == "thoughts":
        return [{"kind": "reasoning", "text": text}], ""
    if role == "assistant" and recipient != "all":
        language = content.get("language")
        part = {"kind": "tool", "tool": recipient, "state": "done", "arguments": text, "output": []}
        return [part], _fenced(text, language if isinstance(language, str) else "")
    if kind == "code":
        text = _fenced(text, str(content.get("language") or ""))
    return [{"kind": "text", "text": text}], text


def _fenced(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    known = re.fullmatch(r"[A-Za-z0-9_+#-]{1,20}", language) and language != "unknown"
    return f"{fence}{language if known else ''}\n{text}\n{fence}"


def _attached(metadata: Mapping[str, Any], where: str) -> str:
    names = []
    for one in as_list(metadata.get("attachments") or [], f"{where}.attachments"):
        name = as_object(one, f"{where}.attachments").get("name")
        if isinstance(name, str):
            names.append(" ".join(name.split())[:200])
    return f"({_left_out('file', len(names))}: {', '.join(names)})" if names else ""


def _left_out(what: str, count: int) -> str:
    return f"{count} {what}{'s are' if count != 1 else ' is'} not in the export"


def _text(content: Mapping[str, Any], where: str) -> str:
    """Of any kind: its parts, or the one field that has text."""
    if "parts" in content:
        return _parts(content, where)
    return next((_plain(content[name]) for name in ("text", "result", "content", "summary") if content.get(name)), "")


def _parts(content: Mapping[str, Any], where: str) -> str:
    texts: list[str] = []
    missing: dict[str, int] = {}
    for part in as_list(content.get("parts"), f"{where}.parts"):
        if part is None:
            continue
        if isinstance(part, str):
            texts.append(_plain(part))
            continue
        given = as_object(part, f"{where}.parts")
        if isinstance(given.get("text"), str):  # what was said in a recording
            texts.append(_plain(given["text"]))
            continue
        kind = str(given.get("content_type") or "")
        what = "picture" if "image" in kind else "recording" if "audio" in kind or "video" in kind else "file"
        missing[what] = missing.get(what, 0) + 1
    texts += [f"({_left_out(what, count)})" for what, count in missing.items()]
    return "\n\n".join(text for text in texts if text)


def _plain(text: object) -> str:
    return _MARKS.sub("", text) if isinstance(text, str) else ""


def _quote(content: Mapping[str, Any], where: str) -> str:
    lines = [_plain(content.get(name)) for name in ("title", "url", "text")]
    return "\n".join(line for line in lines if line)


def _thoughts(content: Mapping[str, Any], where: str) -> str:
    found = []
    for one in as_list(content.get("thoughts") or [], f"{where}.thoughts"):
        thought = as_object(one, f"{where}.thoughts")
        found += [_plain(thought.get(name)) for name in ("summary", "content")]
    return "\n\n".join(text for text in found if text)


def _error(content: Mapping[str, Any], where: str) -> str:
    return ": ".join(text for text in (_plain(content.get("name")), _plain(content.get("text"))) if text)


_KINDS: Mapping[str, Callable[[Mapping[str, Any], str], str]] = {
    "text": _parts,
    "multimodal_text": _parts,
    "tether_quote": _quote,
    "thoughts": _thoughts,
    "system_error": _error,
}
"""content_type → its text."""

"""A conversation as one HTML file: the branch that is shown, to be read, printed and passed on without a server.

It runs nothing and loads nothing: styles are in it, pictures are data URLs, and its policy forbids the rest. What
people and models wrote is escaped, or made safe by `markup`.

Not covered: files that are no pictures, of which only the names are there; pictures beyond `MOST_PICTURES` bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from html import escape
from importlib import resources
from types import MappingProxyType
from typing import Any

from glm4.agent.files import FileStore, StoredFile
from glm4.agent.sessions import Session, SessionMessage
from glm4.errors import InvalidRequestError
from glm4.system.text_encoding import well_formed
from glm4.version import __version__

MOST_PICTURES = 64 << 20
"""Bytes of all pictures together."""
_PICTURES = ("image/png", "image/jpeg", "image/webp", "image/gif")
_CHINESE = re.compile("[\u4e00-\u9fff]")
_WORDS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "en": {
            "lang": "en", "conversation": "Conversation", "you": "You", "assistant": "Assistant",
            "reasoning": "Reasoning", "sources": "Sources", "page": "page",
            "left_out": "not in this file", "by": "Saved by glm4",
        },
        "zh": {
            "lang": "zh", "conversation": "对话", "you": "你", "assistant": "助手",
            "reasoning": "思考过程", "sources": "来源", "page": "页",
            "left_out": "未包含在此文件中", "by": "由 glm4 导出",
        },
    }
)  # fmt: skip


def as_html(session: Session, branch: Sequence[SessionMessage], files: Sequence[StoredFile], store: FileStore) -> str:
    """The HTML of a conversation.

    Args:
        branch: its messages that are shown.
        files: of the conversation; no other files are read.
        store: where they are.
    """
    writer = _Writer({file.sha256: file for file in files}, store, _words(session, branch), MOST_PICTURES)
    body = "".join(writer.message(message) for message in branch)
    style = resources.files("glm4.agent").joinpath("session_page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    title = escape(" ".join(session.title.split()) or writer.words["conversation"])
    about = " · ".join(text for text in (_time(session.created), escape(session.model)) if text)
    page = (
        f'<!DOCTYPE html>\n<html lang="{writer.words["lang"]}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        f'<h1 dir="auto">{title}</h1>\n<p class="about">{about}</p>\n{body}{writer.sources()}</main>\n'
        f"<footer>{writer.words['by']} {__version__}</footer>\n</body>\n</html>\n"
    )
    return well_formed(page).replace("\0", "\ufffd")


def arguments_html(tool: str, arguments: str) -> str:
    """What a call was made with, in colors: code for interpreters, JSON for others."""
    from glm4.markup import render_code

    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError):
        return render_code(arguments, "python" if tool == "python" else None)
    if isinstance(given, dict) and isinstance(given.get("code"), str) and tool == "python":
        return render_code(given["code"], "python")
    return render_code(json.dumps(given, ensure_ascii=False, indent=2), "json")


@dataclass
class _Writer:
    """Writes messages, and remembers what they cite.

    Attributes:
        left: bytes that further pictures may have.
        cited: number → the citations of it that differ in their text.
    """

    files: Mapping[str, StoredFile]
    store: FileStore
    words: Mapping[str, str]
    left: int
    cited: dict[int, dict[str, Mapping[str, Any]]] = field(default_factory=dict)

    def message(self, message: SessionMessage) -> str:
        """A message with its head."""
        user = message.role == "user"
        name = self.words["you"] if user else escape(message.model) or self.words["assistant"]
        parts = "".join(self._user_part(part) if user else self._part(part) for part in message.parts)
        return (
            f'<section class="message {message.role}">\n<header>{name} {_time(message.created)}</header>\n{parts}'
            "</section>\n"
        )

    def sources(self) -> str:
        """What was cited, by number."""
        if not self.cited:
            return ""
        rows = "".join(self._source(n, list(self.cited[n].values())) for n in sorted(self.cited))
        return f'<section class="sources">\n<h2>{self.words["sources"]}</h2>\n<dl>\n{rows}</dl>\n</section>\n'

    def _user_part(self, part: Mapping[str, Any]) -> str:
        if part.get("kind") == "text":
            return f'<div class="said" dir="auto">{escape(part["text"])}</div>\n' if part["text"].strip() else ""
        return self._part(part)

    def _part(self, part: Mapping[str, Any]) -> str:
        from glm4.markup import render

        kind = part.get("kind")
        for citation in part.get("citations", ()):
            self.cited.setdefault(citation["n"], {}).setdefault(citation.get("text", ""), citation)
        if kind == "text":
            return "\n".join(render(part["text"])) + "\n"
        if kind == "reasoning":
            inner = "\n".join(render(part["text"]))
            return f"<details><summary>{self.words['reasoning']}</summary>\n{inner}\n</details>\n"
        if kind == "tool":
            return self._tool(part)
        if kind == "file":
            return self._file(part)
        if kind == "error":
            return f'<p class="error" dir="auto">{escape(str(part.get("message") or ""))}</p>\n'
        return ""

    def _tool(self, part: Mapping[str, Any]) -> str:
        seconds = part.get("seconds")
        took = f" · {seconds:.1f} s" if isinstance(seconds, (int, float)) else ""
        inner = [arguments_html(part["tool"], part.get("arguments", ""))]
        for one in part.get("output", ()):
            kind = ' class="error"' if one["channel"] == "error" else ""
            inner.append(f'<pre dir="auto"{kind}>{escape(one["text"])}</pre>')
        files = "".join(self._file(one) for one in part.get("files", ()))
        head = f"<summary>{escape(part['tool'])}{took}</summary>"
        return f"<details>{head}\n{chr(10).join(inner)}\n</details>\n{files}"

    def _file(self, part: Mapping[str, Any]) -> str:
        name, data = escape(str(part.get("name", ""))), None
        file = self.files.get(str(part.get("file")))
        if file is not None and file.media_type in _PICTURES and file.nbytes <= self.left:
            data = self._read(file.sha256)
        if file is None or data is None:
            return f'<p class="about" dir="auto">{name} ({self.words["left_out"]})</p>\n'
        self.left -= len(data)
        url = f"data:{file.media_type};base64,{base64.b64encode(data).decode('ascii')}"
        alt = escape(str(part.get("alt") or file.alt or name))
        return f'<figure><img src="{url}" alt="{alt}"><figcaption dir="auto">{name}</figcaption></figure>\n'

    def _read(self, sha256: str) -> bytes | None:
        try:
            return self.store.read(sha256)
        except InvalidRequestError:  # deleted
            return None

    def _source(self, n: int, citations: Sequence[Mapping[str, Any]]) -> str:
        first = citations[0]
        title, url = escape(str(first.get("title") or "")), str(first.get("url") or "")
        if re.match("https?://", url):
            opened = 'rel="noopener noreferrer nofollow" target="_blank"'
            title = f'<a href="{escape(url)}" {opened}>{title or escape(url)}</a>'
        places = [f"{self.words['page']} {first['page']}" if isinstance(first.get("page"), int) else "",
                  escape(str(first.get("section") or ""))]  # fmt: skip
        where = "".join(f", {place}" for place in places if place)
        quotes = "".join(f'<q dir="auto">{escape(one["text"])}</q>' for one in citations if one.get("text"))
        return f'<dt id="cite-{n}">{n}</dt><dd dir="auto">{title}{where}{quotes}</dd>\n'


def _words(session: Session, branch: Sequence[SessionMessage]) -> Mapping[str, str]:
    """In the language of the conversation."""
    texts: Iterator[str] = (str(part.get("text") or "")[:2000] for message in branch[:4] for part in message.parts)
    text = session.title + "".join(texts)
    return _WORDS["zh" if len(_CHINESE.findall(text)) > len(text) / 10 else "en"]


def _time(seconds: float) -> str:
    if not seconds:
        return ""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return f'<time datetime="{moment.isoformat(timespec="seconds")}">{moment:%Y-%m-%d %H:%M} UTC</time>'

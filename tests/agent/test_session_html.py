"""Conversations as HTML files: what is shown, and that nothing in them runs or loads."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from glm4.agent.file_store import FolderFileStore
from glm4.agent.session_html import as_html
from glm4.agent.sessions import SessionMessage, SessionStore

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


class Page(HTMLParser):
    """Collects the tags, their attributes, and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "style" not in self._open[-1:]:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(
    tmp_path: Path, *parts: dict[str, Any], asked: str = "Which?", title: str = "Talk",
    files: dict[str, bytes] | None = None,
) -> tuple[str, Page]:  # fmt: skip
    store, kept = SessionStore(None), FolderFileStore(tmp_path / "files")
    session = store.create(title=title, model="glm-4")
    for name, data in (files or {}).items():
        store.add_file(session.id, kept.put(name, data))
    question = SessionMessage("", None, "user", "completed", "", [], [{"kind": "text", "text": asked}])
    first = store.add(session.id, question)
    store.add(session.id, SessionMessage("", first.id, "assistant", "completed", "glm-4", [], parts))
    html = as_html(store.get(session.id), store.branch(session.id), store.files(session.id), kept)
    return html, Page(html)


def test_everything_of_a_turn_is_there(tmp_path: Path) -> None:
    digest = hashlib.sha256(PNG).hexdigest()
    html, page = page_of(
        tmp_path,
        {"kind": "reasoning", "text": "I *think*."},
        {"kind": "tool", "call": "c", "tool": "python", "state": "done", "arguments": "print(6 * 7)", "seconds": 1.25,
         "output": [{"channel": "output", "text": "42 <b>"}, {"channel": "error", "text": "odd"}],
         "files": [{"file": digest, "name": "plot.png", "media_type": "image/png", "bytes": 48, "alt": "a <plot>"},
                   {"file": "0" * 64, "name": "gone.png", "media_type": "image/png", "bytes": 48}]},
        {"kind": "text", "text": "It is **42**【7†a.pdf】, see $x^2$.\n\n```python\nprint(1)\n```\n\n| a |\n|---|",
         "citations": [{"n": 7, "title": "a.pdf", "file": "x", "page": 3, "text": "It is 42 & more.",
                        "start": 9, "end": 19},
                       {"n": 9, "title": "Web", "url": "https://x.example/?a=1&b=2", "start": 0, "end": 1}]},
        {"kind": "error", "code": "x", "message": "It <failed>."},
        files={"plot.png": PNG},
    )  # fmt: skip
    assert "I think." in page.text
    assert "print(6 * 7)" in page.text
    assert "42 <b>" in page.text
    assert "python · 1.2 s" in page.text
    assert "It <failed>." in page.text
    (picture,) = page.all("img")
    assert picture == {"src": f"data:image/png;base64,{base64.b64encode(PNG).decode()}", "alt": "a <plot>"}
    assert "gone.png (not in this file)" in page.text
    assert {"table", "math", "strong", "details"} <= {tag for tag, _ in page.tags}
    (cite,) = [one for one in page.all("a") if one.get("class") == "cite"]
    assert cite["href"] == "#cite-7"
    assert [one["id"] for one in page.all("dt")] == ["cite-7", "cite-9"]
    assert "a.pdf, page 3It is 42 & more." in page.text
    assert any(one.get("href") == "https://x.example/?a=1&b=2" for one in page.all("a"))
    assert html.count("<h1") == 1


ATTACKS = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>', "\0\ud800",
    "</style><script>x</script>", "[x](javascript:alert(1))", "![x](http://evil.example/x.png)", "<iframe src=http://evil.example></iframe>",
    "<meta http-equiv=refresh content='0;url=http://evil.example'>", "<link rel=stylesheet href=//evil.example/x.css>",
    "<style>@import url(//evil.example)</style>", "</title><script>x</script>", "<base href=//evil.example>",
)  # fmt: skip
TAGS = {
    "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p", "section", "header", "time", "div",
    "details", "summary", "pre", "code", "span", "dl", "dt", "dd", "q", "a", "footer", "figure",
    "figcaption", "img", "strong",
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=range(len(ATTACKS)))
def test_nothing_in_it_runs_or_loads(attack: str, tmp_path: Path) -> None:
    html, page = page_of(
        tmp_path, {"kind": "text", "text": attack,
                   "citations": [{"n": 7, "title": attack, "url": f"javascript:{attack}", "section": attack,
                                  "text": attack, "start": 0, "end": 0}]},
        {"kind": "reasoning", "text": attack}, {"kind": "error", "message": attack},
        {"kind": "tool", "tool": attack, "call": "c", "state": "done", "arguments": attack,
         "output": [{"channel": "output", "text": attack}],
         "files": [{"file": attack, "name": attack, "media_type": "image/png", "alt": attack}]},
        asked=attack, title=attack, files={f"{attack}.png": PNG},
    )  # fmt: skip
    assert {tag for tag, _ in page.tags} <= TAGS
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("srcset", "style", "action")], tag
        if "src" in attributes:
            assert str(attributes["src"]).startswith("data:image/")
        assert re.match("#|https?://", str(attributes.get("href") or "#"))
    assert len(page.all("style")) == 1
    html.encode()


def test_its_policy_allows_its_own_style_only(tmp_path: Path) -> None:
    html, page = page_of(tmp_path, {"kind": "text", "text": "x"})
    (policy,) = [one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    style = re.search("<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style.group(1).encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    assert html.index("Content-Security-Policy") < html.index("<title>")
    assert "http:" not in style.group(1)


def test_it_speaks_the_language_of_the_conversation(tmp_path: Path) -> None:
    assert page_of(tmp_path / "a", {"kind": "text", "text": "It rains."})[1].all("html") == [{"lang": "en"}]
    _, page = page_of(tmp_path / "b", {"kind": "text", "text": "今天下雨。"}, asked="天气怎么样？", title="天气")
    assert page.all("html") == [{"lang": "zh"}]
    assert "你" in page.text


def test_too_many_pictures_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glm4.agent.session_html.MOST_PICTURES", len(PNG) + 10)
    digest = hashlib.sha256(PNG).hexdigest()
    pictures = [{"kind": "file", "file": digest, "name": f"{n}.png", "media_type": "image/png"} for n in range(3)]
    _, page = page_of(tmp_path, *pictures, files={"0.png": PNG})
    assert len(page.all("img")) == 1
    assert page.text.count("not in this file") == 2


def test_who_does_not_ask_for_it_does_not_load_the_markup() -> None:
    code = (
        "import sys\nimport glm4.server.agent.app, glm4.agent.session_html\n"
        "assert not {'markdown_it', 'pygments', 'nh3', 'math_core'} & set(sys.modules), 'loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

"""The files of the page, read as text: what a browser would not complain about, or only in the other language."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest

import glm4.server

FOLDER = Path(glm4.server.__file__).parent / "pages" / "chat"
TRAINING = FOLDER.parent / "training"
"""A page of its own, with texts and a module of its own beside those of the chat page."""
LANGUAGES = ("en", "zh")
MODULES = [*sorted(FOLDER.glob("*.js")), *sorted(TRAINING.glob("*.js"))]
PAGES = (FOLDER / "index.html", TRAINING / "index.html")
SOURCES = [*PAGES, *sorted(FOLDER.glob("*.css")), *sorted(TRAINING.glob("*.css")), *MODULES]

_COMMENT = re.compile(r"/\*.*?\*/|(?<![:\"'`])//[^\n]*", re.DOTALL)
# Literals: "…", '…' and `…`; templates may have other literals in their ${}, which are found by themselves.
_LITERAL = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`", re.DOTALL)
_KEY = re.compile(r"[a-z0-9_]+(?:\.[A-Za-z0-9_-]+)+")
_TEXT_PROPERTY = re.compile(
    r"(?:\b(?:text|title|alt|label|placeholder)\s*:|(?<!document)\.(?:textContent|innerText|title|alt|placeholder)\s*=(?!=))\s*"
    r"(?P<value>\"[^\"\n]*\"|'[^'\n]*'|`[^`]*`)"
)
_LETTERS = re.compile(r"[A-Za-z\u4e00-\u9fff]{2,}")
_PRODUCT = {"glm4", "English", "中文", "JSON", "Markdown", "HTML", "CSV", "SVG", "PDF"}
"""Words that are the same in every language."""


@cache
def _catalog(language: str) -> dict[str, str]:
    texts: dict[str, str] = json.loads((FOLDER / f"{language}.json").read_text())
    more = json.loads((TRAINING / f"{language}.json").read_text())
    assert not texts.keys() & more.keys()
    return texts | more


@cache
def _code(path: Path) -> str:
    return _COMMENT.sub("", path.read_text())


def _literals() -> list[str]:
    return [match[0][1:-1] for path in MODULES for match in _LITERAL.finditer(_code(path))]


def _html_keys() -> set[str]:
    found = r'data-t(?:-label|-placeholder)?="([^"]+)"'
    return {key for page in PAGES for key in re.findall(found, page.read_text())}


def _called() -> set[str]:
    return set(re.findall(r"(?:\bt|app\.has)\(\s*\"([^\"]+)\"", "\n".join(map(_code, MODULES))))


@cache
def _used() -> tuple[frozenset[str], frozenset[str]]:
    """Keys as they stand in the sources, and beginnings of keys whose end is computed: `progress.${phase}`."""
    whole, beginnings = _html_keys() | _called(), set()
    for literal in _literals():
        if _KEY.fullmatch(literal):
            whole.add(literal)
        if (begin := re.match(r"([a-z0-9_]+\.[A-Za-z0-9_.-]*)\$\{", literal)) is not None:
            beginnings.add(begin[1])
        # "progress." + phase, and templates within templates
        beginnings.update(re.findall(r"`([a-z0-9_]+\.[A-Za-z0-9_.-]*)\$\{", literal))
        if re.fullmatch(r"[a-z0-9_]+\.", literal):
            beginnings.add(literal)
    return frozenset(whole), frozenset(beginnings)


def _without_plural(key: str) -> str:
    return key.removesuffix(".one").removesuffix(".other") if key not in _used()[0] else key


def _placeholders(text: str) -> list[str]:
    return sorted(re.findall(r"\{(\w+)\}", text))


def test_catalogs_have_the_same_keys_and_placeholders() -> None:
    english, chinese = map(_catalog, LANGUAGES)
    ones = {key for key in english if key.endswith(".one") and f"{key.removesuffix('.one')}.other" in english}
    assert english.keys() - ones == chinese.keys()  # Chinese has no singular
    differing = [key for key in chinese if _placeholders(english[key]) != _placeholders(chinese[key])]
    assert not differing


@pytest.mark.parametrize("language", LANGUAGES)
def test_catalogs_are_sorted_one_key_per_line_without_empty_texts(language: str) -> None:
    for folder in (FOLDER, TRAINING):
        text = (folder / f"{language}.json").read_text()
        keys = re.findall(r'^"([^"]+)": "', text, re.MULTILINE)
        assert keys == sorted(set(keys))
        assert keys == list(json.loads(text))
    assert all(value.strip() for value in _catalog(language).values())


def test_plurals_are_complete() -> None:
    english = _catalog("en")
    for key in english:
        if key.endswith(".other") and "{count}" in english[key]:
            assert f"{key.removesuffix('.other')}.one" in english


def test_every_used_key_exists() -> None:
    english = _catalog("en")
    whole, _ = _used()
    rooms = {key.split(".")[0] for key in english}
    asked = _html_keys() | _called() | {key for key in whole if key.split(".")[0] in rooms and not _is_file(key)}
    missing = sorted(key for key in asked if key not in english and f"{key}.other" not in english)
    assert not missing


def _is_file(literal: str) -> bool:
    return literal.endswith((".js", ".css", ".json", ".html", ".svg", ".md", ".csv", ".zip", ".txt", ".png"))


def test_no_key_is_unused() -> None:
    whole, beginnings = _used()
    # The list of shortcuts writes "ctrl+b" as the names of its keys.
    keys = {f"keycap.{cap}" for literal in _literals() if "+" in literal for cap in literal.split("+")}
    unused = [
        key
        for key in _catalog("en")
        if key not in whole | keys
        and _without_plural(key) not in whole
        and not any(key.startswith(begin) for begin in beginnings)
    ]
    assert not unused


def test_modules_have_no_texts_of_their_own() -> None:
    found = []
    for path in MODULES:
        for match in _TEXT_PROPERTY.finditer(_code(path)):
            words = _LETTERS.findall(re.sub(r"\$\{[^}]*\}", "", match["value"]))
            if [word for word in words if word not in _PRODUCT]:
                found.append(f"{path.name}: {match[0]}")
        for literal in _LITERAL.findall(_code(path)):
            if re.search(r"[\u4e00-\u9fff]", literal) and literal[1:-1] not in _PRODUCT:
                found.append(f"{path.name}: {literal}")
    assert not found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_a_page_has_no_texts_of_its_own(page: Path) -> None:
    html = re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)
    body = html.split("<body", 1)[1].split(">", 1)[1]
    texts = [text.strip() for text in re.findall(r">([^<]+)<", f">{body}") if text.strip()]
    assert not [text for text in texts if text not in _PRODUCT]
    assert not re.findall(r'\b(?:aria-label|title|placeholder|alt)="[^"]', body)


def test_nothing_is_inline() -> None:
    html = "".join(page.read_text() for page in PAGES)
    assert not re.findall(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)|javascript:", html, re.IGNORECASE)
    for path in MODULES:
        code = _code(path)
        # Styles as attributes and handlers as texts are refused by the page's policy; el.style.x is not.
        assert not re.search(r"setAttribute\(\s*[\"'](?:style|on[a-z]+)[\"']", code), path.name
        assert not re.search(r"\bcssText\b|\beval\(|new Function\(|document\.write\(", code), path.name


def test_only_one_module_writes_html() -> None:
    writers = re.compile(
        r"\binnerHTML\b|\bouterHTML\b|insertAdjacentHTML|createContextualFragment|parseFromString|setHTML|\bsrcdoc\b"
        r"|\btrustedTypes\b|createPolicy"
    )
    assert [path.name for path in MODULES if writers.search(_code(path))] == ["dom.js"]
    # The names of its functions that take HTML, so that each use can be looked at.
    uses = {path.name for path in MODULES if re.search(r"(?<![\w.])(?:html|block)\(", _code(path))}
    assert uses <= {"dom.js", "message.js", "state.js", "tools.js"}


def test_nothing_comes_from_elsewhere() -> None:
    known = ("http://www.w3.org/2000/svg", "http://www.w3.org/1998/Math/MathML")
    for path in [*SOURCES, *FOLDER.glob("*.json"), *FOLDER.glob("*.svg")]:
        text = path.read_text()
        for one in known:
            text = text.replace(one, "")
        assert not re.search(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", text, re.IGNORECASE), path.name
        assert "@import" not in text


def test_addresses_are_relative() -> None:
    """A proxy may serve the page under a prefix."""
    html = (FOLDER / "index.html").read_text()
    assert not re.findall(r'\b(?:href|src)="/', html)
    rooted = [f"{path.name}: {text}" for path in MODULES for text in re.findall(r"[\"'`]/(?:v1|ui)\b", _code(path))]
    assert not rooted


def test_the_start_page_names_all_styles_and_no_file_that_is_not_there() -> None:
    html = (FOLDER / "index.html").read_text()
    named = {Path(name).name for name in re.findall(r'(?:href|src)="ui/([^"]+)"', html)}
    files = {path.name for path in FOLDER.iterdir()}
    assert named <= files
    assert {name for name in files if name.endswith((".css", ".svg"))} <= named


def test_imports_exist() -> None:
    for path in MODULES:
        for names, target in re.findall(r"(?<!export )import\s*\{([^}]*)\}\s*from\s*\"\./([^\"]+)\"", _code(path)):
            code = _code(FOLDER / target)
            exported = set(re.findall(r"export (?:async )?(?:function\*?|class|const|let) (\w+)", code))
            for passed_on in re.findall(r"export \{([^}]*)\}", code):
                exported |= set(re.findall(r"\w+", passed_on))
            wanted = {name.split(" as ")[0].strip() for name in names.split(",") if name.strip()}
            assert wanted <= exported, f"{path.name} imports {wanted - exported} from {target}"


def test_files_are_small() -> None:
    assert not [path.name for path in SOURCES if len(path.read_text().splitlines()) > 500]


def test_a_visit_loads_at_most_300_kb() -> None:
    """A browser loads one of the catalogs."""
    catalogs = [(FOLDER / f"{language}.json").stat().st_size for language in LANGUAGES]
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) - min(catalogs) <= 300_000


def test_icons_exist_and_are_used() -> None:
    drawn = set(re.findall(r"^  (\w+): \"M", (FOLDER / "dom.js").read_text(), re.MULTILINE))
    named = {name for path in MODULES for name in re.findall(r"\bicon(?:Button)?\(\"(\w+)\"", _code(path))}
    assert named <= drawn
    assert drawn <= set(_literals())  # icon(TABLE[…])

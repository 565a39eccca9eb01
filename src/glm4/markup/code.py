"""Code in colors: `<pre class="code" data-lang="python" tabindex="0"><code>…<span class="k">def</span>…`, no styles.

The classes are listed in `code_classes.py`. Does NOT cover: a lexer of Pygments that is slow on text made for it; what
is colored is bounded (`COLORED_CHARACTERS`), and languages are those of `languages.py`.
"""

from __future__ import annotations

import re
from functools import lru_cache

from pygments.lexer import Lexer

from glm4.markup.code_classes import code_class
from glm4.markup.languages import lexer_class
from glm4.markup.sanitizer import escape, escape_attribute, sanitize

COLORED_CHARACTERS = 50_000
_LANGUAGE = re.compile(r"[a-z0-9+#._-]{1,30}")


def language_name(info: str | None) -> str:
    """The language that the line after a fence names, in lower case; an empty string where it names none."""
    words = (info or "").strip().strip("{}").split(maxsplit=1)
    name = words[0].lstrip(".").split(":")[0].split(",")[0].lower() if words else ""
    return name if _LANGUAGE.fullmatch(name) else ""


def _colored(source: str, kind_of_lexer: type[Lexer]) -> str:
    # A lexer of its own for each call: some keep state, and threads may render at once.
    lexer = kind_of_lexer(stripnl=False, ensurenl=False)
    pieces: list[str] = []
    run: list[str] = []
    current = ""
    for _, kind, text in lexer.get_tokens_unprocessed(source):
        name = code_class(kind) if not text.isspace() else "" if "\n" in text else current
        if name != current:
            _write_run(pieces, run, current)
            run, current = [], name
        run.append(text)
    _write_run(pieces, run, current)
    return "".join(pieces)


def _write_run(pieces: list[str], run: list[str], name: str) -> None:
    text = escape("".join(run))
    if text:
        pieces.append(f'<span class="{name}">{text}</span>' if name else text)


def open_code(language: str) -> str:
    """The start of a code block, up to its text; `CODE_END` ends it."""
    return f'<pre class="code" data-lang="{escape_attribute(language)}" tabindex="0"><code>'


CODE_END = "</code></pre>"


def plain_code(source: str, language: str) -> str:
    """A code block without colors: what a block shows while it is being written."""
    return f"{open_code(language)}{escape(source)}{CODE_END}"


@lru_cache(maxsize=512)
def _rendered(source: str, language: str) -> str:
    lexer = lexer_class(language)
    if lexer is None or not source:
        return plain_code(source, language)
    end = len(source) if len(source) <= COLORED_CHARACTERS else source.rfind("\n", 0, COLORED_CHARACTERS) + 1
    return f"{open_code(language)}{_colored(source[:end], lexer)}{escape(source[end:])}{CODE_END}"


def render_code(source: str, language: str | None) -> str:
    """Code as one safe block; in a language that is not known, and after 50,000 characters, without colors."""
    clean = source.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    return sanitize(_rendered(clean, language_name(language)))

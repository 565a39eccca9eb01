r"""Rules of the Markdown parser for formulas: `\(…\)`, `\[…\]`, `$…$`, `$$…$$` and environments, alone or within text.

A dollar sign is an amount of money unless what follows is shaped like a formula: no space inside the delimiters, no
letter or digit right outside, no words after a number. Nothing is a formula inside code. A formula that is a block of
its own ends at an empty line: what has no end before it is text.
"""

from __future__ import annotations

import re

from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

from glm4.markup.formulas import LONGEST_FORMULA

# Stands for a bar within a formula while tables are split into cells, so that a table may hold |x|.
BAR = "\uf8fe"

_OPENED_BLOCK = re.compile(r"\\\[|\$\$|\\begin\{(?:equation|align|aligned|gather|multline|alignat|eqnarray)\*?\}")
_MARKS = ".,;:!?。，；：！？"
_CLOSERS = {
    "\\)": re.compile(r"(?<!\\)(?:\\\\)*(\\\))"),
    "\\]": re.compile(r"(?<!\\)(?:\\\\)*(\\\])"),
    "$$": re.compile(r"(\$\$)"),
}
_NEXT_DOLLAR = re.compile(r"(?<!\\)\$")
_AFTER_DOLLAR = re.compile(r"[0-9$]")
_BEFORE_DOLLAR = re.compile(r"[0-9A-Za-z\\$]")
_SHELL = re.compile(r"[^A-Za-z0-9)\]}|']\$[A-Za-z]")  # $HOME:$PATH
_MONEY = re.compile(r"\d[\d,.]*\s+[A-Za-z]{2}|\d[^\\{]*[\u3040-\u9fff\uac00-\ud7af，。；：]|.*`", re.DOTALL)
_BARS = re.compile(
    r"(?<![0-9A-Za-z\\$])\$(?![\s$])[^$\n]*?(?<![\s\\])\$(?![0-9A-Za-z$])|\\\([^\n]*?\\\)|\\\[[^\n]*?\\\]"
)
_LONGEST_DOLLARS = 1_000


def hide_bars(source: str) -> str:
    """`source` with the bars in formulas replaced by `BAR`, one character by one."""
    if "|" not in source or ("$" not in source and "\\" not in source):
        return source
    lines = source.split("\n")
    for number, line in enumerate(lines):
        if line.count("|") > 1 and len(line) <= LONGEST_FORMULA and ("$" in line or "\\" in line):
            lines[number] = _BARS.sub(lambda formula: formula[0].replace("|", BAR), line)
    return "\n".join(lines)


def show_bars(text: str) -> str:
    """The inverse of `hide_bars`."""
    return text.replace(BAR, "|")


def formula_block(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    """A formula that begins a line and ends one, over any number of lines that are not empty."""
    if state.is_code_block(start_line):
        return False
    begin = state.bMarks[start_line] + state.tShift[start_line]
    opened = _OPENED_BLOCK.match(state.src, begin, state.eMarks[start_line])
    if not opened:
        return False
    delimiter = opened[0]
    environment = delimiter.startswith("\\begin")
    closer = delimiter.replace("\\begin", "\\end") if environment else {"\\[": "\\]", "$$": "$$"}[delimiter]
    found = _block_end(state, closer, start_line, end_line, opened.end())
    if found is None:
        return _open_formula(state, start_line, end_line, silent)
    line, at = found
    if at < 0:
        return False
    after = state.src[at + len(closer) : state.eMarks[line]].strip(" \t")
    if not silent:
        content = state.getLines(start_line, line + 1, state.sCount[start_line], False)
        inner = content[content.index(delimiter) + len(delimiter) : content.rindex(closer)]
        token = state.push("formula_block", "math", 0)
        token.content = f"{delimiter}{inner}{closer}" if environment else inner
        token.markup = delimiter
        token.info = after
        token.map = [start_line, line + 1]
    state.line = line + 1
    return True


def _block_end(state: StateBlock, closer: str, start: int, end: int, position: int) -> tuple[int, int] | None:
    """Line and position of the delimiter that ends a formula; position -1: it has no end; None: not within this text.

    What was found is kept for the lines between: many that begin a formula and none that ends one cost one search.
    """
    indent = min(state.blkIndent, state.sCount[start])
    failed: dict[tuple[str, int, int], int] = state.env.setdefault("no_formula", {})
    key = (closer, indent, end)
    if position <= failed.get(key, -1):
        return start, -1
    last = state.eMarks[end - 1]
    at = state.src.find(closer, position, min(last, position + LONGEST_FORMULA))
    if at < 0 and last - position > LONGEST_FORMULA:
        return start, -1
    line = start
    while not at <= state.eMarks[line] or at < 0:
        line += 1
        if line >= end:
            return None
        begin = state.bMarks[line] + state.tShift[line]
        if begin >= state.eMarks[line] or state.sCount[line] < indent:
            failed[key] = begin
            return line, -1
    after = state.src[at + len(closer) : state.eMarks[line]].strip(" \t")
    if len(after) > 1 or after not in _MARKS:
        failed[key] = at
        return line, -1
    return line, at


def _open_formula(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    """In a text that is still being written, a formula without its end yet: its lines are nothing else meanwhile."""
    ends_item = silent and state.sCount[start_line] < state.blkIndent
    ends_table = silent and state.parentType == "table" and state.level <= 2
    if not state.env.get("growing") or (state.level and not ends_item and not ends_table):
        return False
    if not silent:
        token = state.push("formula_open", "p", 0)
        token.content = state.getLines(start_line, end_line, 0, False)
        token.map = [start_line, end_line]
    state.line = end_line
    return True


def formula_tex(state: StateInline, silent: bool) -> bool:
    r"""`\(…\)` and `\[…\]` within text."""
    start = state.pos
    opened = state.src[start : start + 2]
    if opened not in ("\\(", "\\["):
        return False
    at = _next(state, "\\)" if opened == "\\(" else "\\]", start + 2)
    if at < 0 or not state.src[start + 2 : at].strip():
        return False
    _push(state, state.src[start + 2 : at], opened, silent)
    state.pos = at + 2
    return True


def formula_dollars(state: StateInline, silent: bool) -> bool:
    """`$…$` and `$$…$$` within text."""
    start = state.pos
    source = state.src
    if source[start] != "$" or (start and _BEFORE_DOLLAR.match(source[start - 1])):
        return False
    if source.startswith("$$", start):
        at = _next(state, "$$", start + 2)
        if at < 0 or not source[start + 2 : at].strip():
            return False
        _push(state, source[start + 2 : at], "$$", silent)
        state.pos = at + 2
        return True
    if start + 1 >= state.posMax or source[start + 1].isspace():
        return False
    closed = _NEXT_DOLLAR.search(source, start + 1, min(state.posMax, start + _LONGEST_DOLLARS))
    if not closed or closed.start() == start + 1 or source[closed.start() - 1].isspace():
        return False
    if (
        _SHELL.match(source, closed.start() - 1)
        or _AFTER_DOLLAR.match(source, closed.end())
        or _MONEY.match(source, start + 1, closed.start())
    ):
        return False
    _push(state, source[start + 1 : closed.start()], "$", silent)
    state.pos = closed.end()
    return True


def _next(state: StateInline, closer: str, start: int) -> int:
    """Where the next `closer` is that no backslash precedes; -1 where it is too far away.

    The last answer is kept: it is the answer for all positions up to it, however many formulas begin and never end.
    """
    kept: dict[str, tuple[str, int, int]] = state.env.setdefault("closers", {})
    source, first, at = kept.get(closer, ("", 0, 0))
    if source is not state.src or not first <= start <= at:
        found = _CLOSERS[closer].search(state.src, start)
        at = found.start(1) if found else len(state.src)
        kept[closer] = (state.src, start, at)
    return at if at + 2 <= state.posMax and at - start <= LONGEST_FORMULA else -1


def _push(state: StateInline, tex: str, delimiter: str, silent: bool) -> None:
    if not silent:
        token = state.push("formula_inline", "math", 0)
        token.content = tex
        token.markup = delimiter

"""Markdown that is being written, as blocks that change only at their end: per token, a long answer costs what a short
one does.

Only the *tail* is rendered again as text arrives: the last block, which may still change. Blocks before it are final.
That is decided on complete lines only: half a line can still become something else (`#` then `#tag`). A code block that
is being written gets its text appended, and its colors when it is closed. A long list or table is one block; to render
it for each token would cost the square of its length, so it waits until enough was added (`_WORK`).

What is defined after its use (link targets, footnotes) shows when the text is complete: `finish` renders the whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from markdown_it.token import Token

from glm4.markup.code import language_name, plain_code
from glm4.markup.parser import parse
from glm4.markup.rendering import LONGEST_PART, normalize, render, render_block

# Characters parsed or rendered per character that arrives, and what may be saved up: it bounds the whole work.
_WORK = 128
_SAVED_WORK = 16_384
_USUAL_GROWTH = 10  # characters of HTML for one of Markdown


@dataclass(frozen=True)
class Update:
    """Keep `blocks[:first]`, then append these: safe HTML, one top-level element each."""

    first: int
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class CodeAdded:
    """Append this plain text (not HTML) to the `<code>` of `block`, which is the last one."""

    block: int
    add: str


class IncrementalRenderer:
    """One text that grows. Not for several threads at once."""

    def __init__(self) -> None:
        self._text: list[str] = []  # all of it, for `finish`
        self._length = 0
        self._held = ""  # a carriage return whose line feed may follow
        self._final: list[str] = []
        self._shown: list[str] = []  # the blocks of the tail
        self._tail = ""
        self._checked = 0  # characters of the tail in which final blocks were looked for
        self._code: _OpenCode | None = None
        self._references: dict[str, Any] = {}
        self._work = _SAVED_WORK
        self.rendered_characters = 0
        """Characters parsed or rendered so far: what the text has cost."""

    @property
    def blocks(self) -> list[str]:
        """The HTML that one has who applied all updates."""
        code = [self._code.html()] if self._code else []
        return [*self._final, *self._shown, *code]

    def feed(self, add: str) -> list[Update | CodeAdded]:
        """The text goes on. Returns what changed, in order; often one update, and nothing while it waits for more."""
        add = self._held + add
        self._held = "\r" if add.endswith("\r") else ""
        add = normalize(add.removesuffix("\r"))
        self._text.append(add)
        room = max(LONGEST_PART - self._length, 0)
        self._length += len(add)
        self._work = min(self._work + _WORK * len(add), _SAVED_WORK + 4 * (len(self._tail) + len(add)))
        updates = self._grow(add[:room]) if room else []
        if len(add) > room:
            updates += self._overflow(add[room:])
        return updates

    def finish(self) -> list[Update | CodeAdded]:
        """The text is complete: `blocks` becomes what `render` gives for it. Returns what changed."""
        before = self.blocks
        whole = render("".join(self._text) + ("\n" if self._held else ""))
        self._final, self._shown, self._code, self._tail = whole, [], None, ""
        self.rendered_characters += self._length
        same = _common(before, whole)
        return [Update(same, tuple(whole[same:]))] if same < max(len(before), len(whole)) else []

    def _grow(self, add: str) -> list[Update | CodeAdded]:
        updates: list[Update | CodeAdded] = []
        while self._code and add:
            more, closed, add = self._code.feed(add)
            self.rendered_characters += len(more)
            if not closed:
                return [*updates, CodeAdded(len(self._final), more)] if more else updates
            updates += self._close_code(self._code)
        self._tail += add
        if not self._tail:
            return updates
        if self._work < len(self._tail):
            return updates
        return updates + self._render_tail()

    def _render_tail(self) -> list[Update | CodeAdded]:
        before, first = self._shown, len(self._final)
        self._settle()
        blocks, env = self._parse(self._tail)
        opened = _OpenCode.of(blocks, self._tail)
        if opened:
            self._code, self._shown = opened, []
        else:
            self._shown = self._rendered(blocks, env)
        now = [*self._final[first:], *self._shown, *([opened.html()] if opened else [])]
        same = _common(before, now)
        return [Update(first + same, tuple(now[same:]))] if same < max(len(before), len(now)) else []

    def _settle(self) -> None:
        """Moves what can no longer change from the tail to the final blocks."""
        end = self._tail.rfind("\n") + 1
        if end <= self._checked:
            return
        blocks, env = self._parse(self._tail[:end])
        self._checked = end
        blocks = [tokens for tokens in blocks if tokens[0].map]  # without the footnotes
        kept = len(blocks) - 1
        if kept > 0 and blocks[kept][0].type == "formula_open" and _end(blocks[kept - 1]) == _start(blocks[kept]):
            kept -= 1  # if it turns out not to be a formula, both are one paragraph
        if kept <= 0:
            return
        start = _offset(self._tail, _start(blocks[kept]))
        final = {**env, "growing": False}
        self._final += self._rendered(blocks[:kept], final)
        if len(env.get("references", ())) > len(self._references):
            _, env = self._parse(self._tail[:start])
            self._references = env["references"]
        self._tail = self._tail[start:]
        self._checked = end - start

    def _parse(self, source: str) -> tuple[list[list[Token]], dict[str, Any]]:
        self._work -= len(source)
        self.rendered_characters += len(source)
        env: dict[str, Any] = {"growing": True, "references": dict(self._references)}
        return parse(source, env), env

    def _rendered(self, blocks: list[list[Token]], env: dict[str, Any]) -> list[str]:
        rendered = [render_block(tokens, env) for tokens in blocks]
        # A table's empty cells are not in its source: what is far longer than usual counts, too.
        self._work -= max(0, sum(map(len, rendered)) - _USUAL_GROWTH * len(self._tail)) // 2
        return rendered

    def _close_code(self, code: _OpenCode) -> list[Update | CodeAdded]:
        source = f"{self._tail}{code.source()}"
        first = len(self._final)
        before = code.html()
        self._code, self._shown, self._tail, self._checked = None, [], "", 0
        self.rendered_characters += len(source)
        self._final += [render_block(tokens, {}) for tokens in parse(source, {})]
        now = self._final[first:]
        return [Update(first, tuple(now))] if now != [before] else []

    def _overflow(self, add: str) -> list[Update | CodeAdded]:
        """Text after the limit goes to one plain block."""
        updates: list[Update | CodeAdded] = []
        if self._code is None or not self._code.endless:
            if self._code:
                updates += self._close_code(self._code)
            elif self._tail:
                updates += self._render_tail()
                if self._code:
                    updates += self._close_code(self._code)
            self._final += self._shown
            self._shown, self._tail = [], ""
            self._code = _OpenCode("", "", 0)
            self._code.endless = True
            updates.append(Update(len(self._final), (self._code.html(),)))
        more, _, _ = self._code.feed(add)
        return [*updates, CodeAdded(len(self._final), more)]


class _OpenCode:
    """A code block whose end has not arrived. Its lines are shown as they come, but for what could be its end."""

    def __init__(self, marker: str, language: str, indent: int) -> None:
        self.endless = not marker
        self._language = language
        self._indent = indent
        self._source: list[str] = []  # after the tail, as it arrived
        self._shown: list[str] = []
        self._line = ""  # the incomplete line
        self._line_shown = 0
        self._end = re.compile(f" {{0,3}}{re.escape(marker)}{re.escape(marker[:1])}*[ \t]*") if marker else None
        self._maybe_end = re.compile(f" {{0,3}}{re.escape(marker[:1])}*[ \t]*") if marker else None

    @classmethod
    def of(cls, blocks: list[list[Token]], source: str) -> _OpenCode | None:
        """The open code block that the text `source` is, or None where it is more or less than that."""
        if len(blocks) != 1 or blocks[0][0].type != "fence" or not blocks[0][0].meta["open"]:
            return None
        token = blocks[0][0]
        if source.count("\n", 0) <= _start(blocks[0]):
            return None  # the language may go on
        opened = cls(token.markup, language_name(token.info), token.meta["indent"])
        opened.feed(source[_offset(source, _start(blocks[0]) + 1) :])
        opened._source = []  # which is in `source`
        return opened

    def html(self) -> str:
        """The block as it is shown."""
        return plain_code("".join(self._shown), self._language)

    def source(self) -> str:
        """What was fed."""
        return "".join(self._source)

    def feed(self, add: str) -> tuple[str, bool, str]:
        """Returns the text to show in addition, whether the block ended, and what follows its end."""
        if self.endless:
            self._shown.append(add)
            return add, False, ""
        start, more = 0, []
        while (end := add.find("\n", start)) >= 0:
            self._line += add[start:end]
            start = end + 1
            if self._end and self._end.fullmatch(self._line):
                self._source.append(add[:start])
                return "", True, add[start:]
            more.append(self._line[self._hidden() + self._line_shown :] + "\n")
            self._line, self._line_shown = "", 0
        self._source.append(add)
        self._line += add[start:]
        more.append(self._visible())
        self._shown += more
        return "".join(more), False, ""

    def _hidden(self) -> int:
        """How much of the line's indentation is that of the fence."""
        spaces = len(self._line) - len(self._line.lstrip(" "))
        return min(spaces, self._indent)

    def _visible(self) -> str:
        """What of the incomplete line can be shown and was not."""
        if not self._line or (self._maybe_end and self._maybe_end.fullmatch(self._line)):
            return ""
        more = self._line[self._hidden() + self._line_shown :]
        self._line_shown += len(more)
        return more


def _start(tokens: list[Token]) -> int:
    return tokens[0].map[0] if tokens[0].map else 0


def _end(tokens: list[Token]) -> int:
    return tokens[0].map[1] if tokens[0].map else 0


def _offset(source: str, line: int) -> int:
    """Where a line begins."""
    position = 0
    for _ in range(line):
        position = source.index("\n", position) + 1
    return position


def _common(before: list[str], now: list[str]) -> int:
    """How many blocks at the start are equal."""
    count = 0
    for old, new in zip(before, now, strict=False):
        if old != new:
            break
        count += 1
    return count

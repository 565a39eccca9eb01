"""Markdown rendered live at a terminal, without flicker and without losing scrollback.

Blocks (paragraphs, lists, code …) that are complete are printed once and scroll away like any output; only the block
still being written is redrawn, limited to as many lines as fit on the screen.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import ClassVar

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Heading, Markdown, MarkdownElement
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

from glm4.chat.events import Event, EventVisitor, ReasoningDelta, TextDelta, ToolCallDelta
from glm4.cli.console import printable
from glm4.cli.conversation.render import PictureBar, call_text

_REFRESH_SECONDS = 0.08


class MarkdownView(EventVisitor[None]):
    """Markdown, rendered as it is written."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._bar = PictureBar()
        self._live: Live | None = None
        self._pending = ""
        self._thinking = False
        self._printed = False
        self._due = 0.0

    def __enter__(self) -> MarkdownView:
        self._status = self._console.status("[dim]thinking[/dim]")
        self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.update(None)
        self._stop_status()
        self._finish_part()

    def looking(self, share: float | None) -> None:
        """A bar on standard error in the place of the status."""
        if self._status is not None and share is not None:
            self._status.stop()
        self._bar.update(share)
        if self._status is not None and share is None:
            self._status.start()

    def show(self, events: Sequence[Event]) -> None:
        """Process events; redraws at most every `_REFRESH_SECONDS`."""
        for event in events:
            event.accept(self)
        if self._pending and time.monotonic() >= self._due:
            self._stop_status()
            self._redraw()

    def text(self, event: TextDelta) -> None:
        """Visible text."""
        self._append(event.text, thinking=False)

    def reasoning(self, event: ReasoningDelta) -> None:
        """Hidden thinking, as a separate part."""
        self._append(event.text, thinking=True)

    def tool_call(self, event: ToolCallDelta) -> None:
        """A tool call, shown as text."""
        self._append(call_text(event), thinking=False)

    def _append(self, text: str, *, thinking: bool) -> None:
        if thinking != self._thinking:
            self._finish_part()
            self._thinking = thinking
        self._pending += printable(text)

    def _stop_status(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _redraw(self) -> None:
        started = time.monotonic()
        end = finished_length(self._pending)
        if end:
            self._commit(self._pending[:end])
            self._pending = self._pending[end:]
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(_Tail(self._spaced(self._pending)), refresh=True)
        now = time.monotonic()
        # Rendering a long block takes time from the model: never spend more than a fifth of the time on drawing.
        self._due = now + max(_REFRESH_SECONDS, 4 * (now - started))

    def _finish_part(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._pending.strip():
            self._commit(self._pending)
        self._pending = ""
        self._due = 0.0

    def _commit(self, text: str) -> None:
        if text.strip():
            self._console.print(self._spaced(text))
            self._printed = True

    def _spaced(self, text: str) -> _Blocks:
        if self._thinking:
            bodies: list[RenderableType] = [Text(text.strip("\n"), style="dim italic")]
        else:
            bodies = [ChatMarkdown(block) for block in blocks(text)]
        return _Blocks(bodies if text.strip() else [], after=self._printed)


class _Blocks:
    """Blocks with one empty line between them, and one before the first if there is output above. Rich alone prints
    zero, one or two, depending on the kinds of block.
    """

    def __init__(self, bodies: Sequence[RenderableType], *, after: bool) -> None:
        self._bodies = bodies
        self._after = after

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        above = self._after
        for body in self._bodies:
            lines = console.render_lines(body, options, pad=False)
            while lines and _is_empty(lines[-1]):
                lines.pop()
            while lines and _is_empty(lines[0]):
                del lines[0]
            if lines and above:
                yield Segment.line()
            above = above or bool(lines)
            for line in lines:
                yield from line
                yield Segment.line()


def _is_empty(line: Sequence[Segment]) -> bool:
    return not any(segment.text.strip() for segment in line)


class _Tail:
    """As many of the last lines as fit on the screen: a taller live region could not be erased."""

    def __init__(self, body: RenderableType) -> None:
        self._body = body

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._body, options, pad=False)
        for line in lines[-max(1, console.height - 1) :]:
            yield from line
            yield Segment.line()


class _ChatHeading(Heading):
    """Left-aligned headings, without the box or the centering that some versions of Rich add."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text.copy()
        text.justify = "left"
        yield text


class ChatMarkdown(Markdown):
    """Rich's Markdown for chat answers: HTML is shown as text instead of dropped, and line breaks are kept."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {**Markdown.elements, "heading_open": _ChatHeading}

    def __init__(self, markup: str) -> None:
        super().__init__("", code_theme="ansi_dark", hyperlinks=False)
        self.markup = markup
        self.parsed = _parser().parse(markup)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


def blocks(markdown: str) -> list[str]:
    """The top-level blocks of a Markdown text, each with the empty lines after it; joined, they equal the text."""
    starts = [token.map[0] for token in _parser().parse(markdown) if token.level == 0 and token.map]
    # A block begins at its first token; empty lines before the first block belong to it.
    borders = [0, *sorted(set(starts))[1:]]
    lines = markdown.split("\n")
    parts = ["\n".join(lines[start:end]) + "\n" for start, end in itertools.pairwise(borders)]
    return [*parts, "\n".join(lines[borders[-1] :])]


def finished_length(markdown: str) -> int:
    """Number of leading characters of a growing Markdown text that form blocks which can no longer change.

    Only the last block of the complete lines can: a later line may continue it. The line being written is excluded
    because what looks like the start of a new block may turn out to continue the last one.
    """
    complete = markdown[: markdown.rfind("\n") + 1]
    return sum(len(block) for block in blocks(complete)[:-1])

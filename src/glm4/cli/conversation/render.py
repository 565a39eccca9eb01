"""How an answer looks while it streams: plain text here, or Markdown rendered live at a terminal (`markdown.py`)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Protocol

from glm4.chat.events import Event, EventVisitor, ReasoningDelta, TextDelta, ToolCallDelta
from glm4.cli import console as terminal
from glm4.cli.console import printable


class View(Protocol):
    """Where an answer goes. Used as a context manager around one answer."""

    def __enter__(self) -> View: ...

    def __exit__(self, *error: object) -> None: ...

    def show(self, events: Sequence[Event]) -> None:
        """Show what arrived."""

    def looking(self, share: float | None) -> None:
        """Show how much of a picture the model has looked at; None when it has seen it."""


class PictureBar:
    """A progress bar on standard error while the model looks at a picture, which can take minutes."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._report: terminal.ProgressCallback | None = None

    def update(self, share: float | None) -> None:
        """Show the share that is done; None removes the bar."""
        if share is None:
            self._stack.close()
            self._report = None
            return
        if self._report is None:
            self._report = self._stack.enter_context(terminal.progress())
        self._report("looking at the picture", share, 1)


class PlainView(EventVisitor[None]):
    """The text as it arrives, on standard output. Reasoning goes to standard error, and only to a terminal."""

    def __init__(self) -> None:
        self._tty = sys.stdout.isatty()
        self._last = "\n"
        self._reasoning = False
        self._bar = PictureBar()

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.update(None)
        self._end_reasoning()
        if not self._last.endswith("\n") and error[0] is None:
            self._write("\n")

    def show(self, events: Sequence[Event]) -> None:
        """Write the events' text and flush it."""
        for event in events:
            event.accept(self)

    def looking(self, share: float | None) -> None:
        """A bar on standard error."""
        self._bar.update(share)

    def text(self, event: TextDelta) -> None:
        """Visible text goes to standard output."""
        self._end_reasoning()
        self._write(event.text)

    def tool_call(self, event: ToolCallDelta) -> None:
        """A call is shown as text."""
        self._write(call_text(event))

    def _write(self, text: str) -> None:
        if not text:
            return
        sys.stdout.write(printable(text) if self._tty else text)
        sys.stdout.flush()
        self._last = text

    def reasoning(self, event: ReasoningDelta) -> None:
        """Thinking goes to standard error, dimmed, and only to a terminal."""
        if terminal.stderr().is_terminal:
            from rich.text import Text

            self._reasoning = True
            terminal.stderr().print(Text(printable(event.text), style="dim italic"), end="", soft_wrap=True)

    def _end_reasoning(self) -> None:
        if self._reasoning:
            self._reasoning = False
            terminal.stderr().print("\n")


def call_text(event: ToolCallDelta) -> str:
    """An unrequested tool call, as text; the chat command does not offer tools."""
    return (f"{event.name} " if event.name else "") + event.arguments

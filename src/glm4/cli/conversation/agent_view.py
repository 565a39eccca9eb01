"""How a turn with tools looks: what the model says as ever, and its calls as steps on standard error.

A step has the tool, what it was called with, and what it said, all of it dimmed and folded. Whatever models, tools and
web pages write passes through `printable`, so none of it controls the terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glm4.agent.events import (
    AgentEvent,
    AgentEventVisitor,
    CallChanged,
    CitationAdded,
    ErrorRaised,
    FileAdded,
    OutputAdded,
    PartBegan,
    Progress,
    TextAdded,
    TurnEnded,
    UsageAdded,
)
from glm4.agent.files import StoredFile
from glm4.agent.transcript import event_dict
from glm4.chat.events import ReasoningDelta, TextDelta
from glm4.cli import console
from glm4.cli.console import printable
from glm4.cli.conversation.render import View
from glm4.documents.citations import Source

MOST_LINES = 12
"""Lines of a call's arguments and of its output that are shown."""
_MOST_COLUMNS = 500

_MARKS = {"done": "✓", "error": "✗", "denied": "✗"}


class TurnView:
    """Where the events of a turn go; used as a context manager around it.

    Attributes:
        ending: the last event; None before it.
        failure: of the model, which ended the turn.
        rounds: what each round with the model cost.
    """

    def __init__(self) -> None:
        self.ending: TurnEnded | None = None
        self.failure: ErrorRaised | None = None
        self.rounds: list[UsageAdded] = []

    def __enter__(self) -> TurnView:
        return self

    def __exit__(self, *error: object) -> None: ...

    def show(self, event: AgentEvent) -> None:
        """Show an event."""
        if isinstance(event, TurnEnded):
            self.ending = event
        elif isinstance(event, UsageAdded):
            self.rounds.append(event)
        elif isinstance(event, ErrorRaised) and event.where == "model":
            self.failure = event


class JsonLines(TurnView):
    """Each event as a line of JSON on standard output; files have the `path` where they were saved.

    Args:
        save: keeps a file for the user; returns where it is.
    """

    def __init__(self, save: Callable[[StoredFile], Path]) -> None:
        super().__init__()
        self._save = save

    def show(self, event: AgentEvent) -> None:
        """Print an event."""
        super().show(event)
        made = event_dict(event)
        if isinstance(event, FileAdded):
            made["path"] = str(self._save(event.file))
        line = json.dumps(made, ensure_ascii=False)
        sys.stdout.write((printable(line) if sys.stdout.isatty() else line) + "\n")
        sys.stdout.flush()


class AgentView(TurnView, AgentEventVisitor[None]):
    """Shows a turn to people.

    Args:
        make_view: a new view for what the model says next.
        save: keeps a file for the user; returns where it is.
    """

    def __init__(self, make_view: Callable[[], View], save: Callable[[StoredFile], Path]) -> None:
        super().__init__()
        self._make_view = make_view
        self._save = save
        self._view: View | None = None
        self._writing: dict[str, tuple[str, list[str]]] = {}  # calls that have not been shown: tool and arguments
        self._lines: dict[str, _Folded] = {}
        self._cited: dict[int, Source] = {}
        self._kinds: dict[int, str] = {}

    def __exit__(self, *error: object) -> None:
        self._leave()

    def show(self, event: AgentEvent) -> None:
        """See `TurnView`."""
        super().show(event)
        event.accept(self)

    def progress(self, event: Progress) -> None:
        """The model reads: a sign of life until it writes."""
        if event.phase == "prefill":
            self._enter()

    def part(self, event: PartBegan) -> None:
        """A call ends what the model was saying."""
        self._kinds[event.part] = event.kind
        if event.kind == "tool":
            self._leave()

    def text(self, event: TextAdded) -> None:
        """What the model says or thinks."""
        kind = ReasoningDelta if self._kinds[event.part] == "reasoning" else TextDelta
        self._enter().show([kind(event.add)])

    def call(self, event: CallChanged) -> None:
        """One line when a call is to run, and one when it has ended."""
        if event.state == "writing":
            self._writing.setdefault(event.call, (event.tool, []))[1].append(event.add)
            return
        # Whoever is asked has to see all of it.
        self._show_call(event.call, folded=event.state != "waiting")
        if event.state in _MARKS:
            folded = self._lines.pop(event.call, None)
            if folded is not None:
                folded.finish()
            took = "" if event.seconds is None else f" {event.seconds:.1f} s"
            what = {"done": "", "error": " failed", "denied": " was not allowed"}[event.state]
            console.notice(f"{_MARKS[event.state]} {event.tool}{what}{took}")

    def output(self, event: OutputAdded) -> None:
        """The first lines of what a tool says."""
        self._show_call(event.call, folded=True)
        self._lines.setdefault(event.call, _Folded()).add(event.add)

    def file(self, event: FileAdded) -> None:
        """Where a file was saved."""
        try:
            console.notice(f"  saved {self._save(event.file)}")
        except OSError as error:
            console.warning(f"{event.file.name} was not saved: {error.strerror or error}")

    def citation(self, event: CitationAdded) -> None:
        """For the list of links at the end."""
        self._cited[event.citation.source.n] = event.citation.source

    def usage(self, event: UsageAdded) -> None:
        """Nothing is shown."""

    def error(self, event: ErrorRaised) -> None:
        """A tool that cannot be used is said at once; what the model failed with is for the caller."""
        if event.where != "model":
            self._leave()
            console.warning(event.message)

    def end(self, event: TurnEnded) -> None:
        """The list of what was cited."""
        self._leave()
        self._show_citations()

    def _show_call(self, call: str, *, folded: bool) -> None:
        tool, arguments = self._writing.pop(call, (None, []))
        if tool is not None:
            self._leave()
            for line in _call_lines(tool, "".join(arguments), folded=folded):
                console.notice(line)

    def _enter(self) -> View:
        if self._view is None:
            self._view = self._make_view()
            self._view.__enter__()
        return self._view

    def _leave(self) -> None:
        if self._view is not None:
            self._view.__exit__(None, None, None)
            self._view = None

    def _show_citations(self) -> None:
        if not self._cited:
            return
        out = console.stdout()
        out.print()
        for n, source in sorted(self._cited.items()):
            where = source.url or (f"page {source.page}" if source.page is not None else source.section or "")
            out.print(printable(f"[{n}] {_one_line(source.title)}  {where}".rstrip()), soft_wrap=True)


class _Folded:
    """Lines of output, of which the first few are shown."""

    def __init__(self) -> None:
        self._line = ""
        self._count = 0

    def add(self, text: str) -> None:
        *lines, self._line = (self._line + text).split("\n")
        self._line = self._line[-10 * _MOST_COLUMNS :]
        for line in lines:
            self._show(line)

    def finish(self) -> None:
        if self._line.strip():
            self._show(self._line)
        if self._count > MOST_LINES:
            console.notice(f"  … {self._count - MOST_LINES:,} more lines")

    def _show(self, line: str) -> None:
        self._count += 1
        if self._count <= MOST_LINES:
            console.notice(f"  │ {_shortened(line)}")


def _call_lines(tool: str, arguments: str, *, folded: bool) -> list[str]:
    """A call, in one line if it is short; a string that is its only argument is shown as it is."""
    lines = _only_text(arguments).strip("\n").split("\n")
    if folded:
        more = [f"… {len(lines) - MOST_LINES:,} more lines"] if len(lines) > MOST_LINES else []
        lines = [*map(_shortened, lines[:MOST_LINES]), *more]
    if len(lines) == 1:
        return [f"● {tool} {lines[0]}".rstrip()]
    return [f"● {tool}", *(f"  {line}" for line in lines)]


def _only_text(arguments: str) -> str:
    try:
        given: Any = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    if isinstance(given, dict) and len(given) == 1 and isinstance(text := next(iter(given.values())), str):
        return text if "\n" in text else arguments
    return arguments if given != {} else ""


def _shortened(line: str) -> str:
    return line if len(line) <= _MOST_COLUMNS else f"{line[:_MOST_COLUMNS]} …"


def _one_line(text: str) -> str:
    return " ".join(text.split())

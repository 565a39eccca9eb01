"""An agent's turn as plain JSON: each event, for a stream (`event_dict`), and what they add up to (`Transcript`)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
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
from glm4.documents.citations import Citation


def event_dict(event: AgentEvent) -> dict[str, Any]:
    """An event as JSON; its kind is in `type`. What has no value is left out."""
    return {name: value for name, value in event.accept(_Dicts()).items() if value not in (None, "") or name == "add"}


class _Dicts(AgentEventVisitor[dict[str, Any]]):
    def progress(self, event: Progress) -> dict[str, Any]:
        return {"type": "progress", "phase": event.phase, "done": event.done, "total": event.total}

    def part(self, event: PartBegan) -> dict[str, Any]:
        return {"type": "part", "part": event.part, "kind": event.kind}

    def text(self, event: TextAdded) -> dict[str, Any]:
        return {"type": "text", "part": event.part, "add": event.add}

    def call(self, event: CallChanged) -> dict[str, Any]:
        return {
            "type": "call",
            "part": event.part,
            "call": event.call,
            "tool": event.tool,
            "state": event.state,
            "add": event.add,
            "about": event.about,
            "seconds": _rounded(event.seconds),
        }

    def output(self, event: OutputAdded) -> dict[str, Any]:
        made = {"type": "output", "call": event.call, "channel": event.channel, "add": event.add}
        return made | ({"truncated": True} if event.truncated else {})

    def file(self, event: FileAdded) -> dict[str, Any]:
        return {"type": "file", **file_dict(event.file), "call": event.call}

    def citation(self, event: CitationAdded) -> dict[str, Any]:
        return {"type": "citation", "part": event.part, **citation_dict(event.citation)}

    def usage(self, event: UsageAdded) -> dict[str, Any]:
        return {
            "type": "usage",
            "prompt": event.prompt,
            "cached": event.cached,
            "completion": event.completion,
            "context": event.context,
            "prefill_seconds": _rounded(event.prefill_seconds),
            "decode_seconds": _rounded(event.decode_seconds),
        }

    def error(self, event: ErrorRaised) -> dict[str, Any]:
        return {
            "type": "error",
            "where": event.where,
            "code": event.code,
            "message": event.message,
            "retry": event.retry,
        }

    def end(self, event: TurnEnded) -> dict[str, Any]:
        return {"type": "end", "status": event.status, "reason": event.reason}


def file_dict(file: StoredFile) -> dict[str, Any]:
    """A file's description as JSON, without what is not known of it."""
    values = {
        "file": file.sha256,
        "name": file.name,
        "media_type": file.media_type,
        "bytes": file.nbytes,
        "width": file.width,
        "height": file.height,
        "alt": file.alt,
    }
    return {name: value for name, value in values.items() if value is not None}


def citation_dict(citation: Citation) -> dict[str, Any]:
    """A citation as JSON; `start` and `end` are characters of the part's text."""
    source = citation.source
    return {
        "n": source.n,
        "title": source.title,
        "url": source.url,
        "file": source.file,
        "page": source.page,
        "section": source.section,
        "text": source.text,
        "start": citation.start,
        "end": citation.end,
    }


class Transcript(AgentEventVisitor[None]):
    """What the events of one turn add up to, as plain JSON.

    `as_dict` has
        parts: text and reasoning: {kind, text, citations}; tools: {kind, call, tool, state, arguments, about, seconds,
            output: [{channel, text}], files}.
        files: that belong to no call.
        usage: sums over the rounds, their number, the context of the model, and `last`, what the last round filled of
            it.
        errors: in order.
        end: {status, reason}; null while the turn runs.
    """

    def __init__(self, events: Iterable[AgentEvent] = ()) -> None:
        self._parts: list[dict[str, Any]] = []
        self._files: list[dict[str, Any]] = []
        self._usage: dict[str, Any] = {"rounds": 0, "prompt": 0, "cached": 0, "completion": 0}
        self._errors: list[dict[str, Any]] = []
        self._end: dict[str, Any] | None = None
        self._calls: dict[str, dict[str, Any]] = {}
        for event in events:
            self.add(event)

    def add(self, event: AgentEvent) -> None:
        """Add an event."""
        event.accept(self)

    def as_dict(self) -> dict[str, Any]:
        """The turn so far. It shares nothing with later states."""
        return copy.deepcopy(
            {
                "parts": self._parts,
                "files": self._files,
                "usage": self._usage,
                "errors": self._errors,
                "end": self._end,
            }
        )

    @property
    def answer(self) -> str:
        """What the model said: its parts of kind text."""
        return "\n\n".join(part["text"] for part in self._parts if part["kind"] == "text")

    def progress(self, event: Progress) -> None:
        """Nothing stays of it."""

    def part(self, event: PartBegan) -> None:
        """See `AgentEventVisitor`."""
        self._parts.append({"kind": event.kind} if event.kind == "tool" else {"kind": event.kind, "text": ""})

    def text(self, event: TextAdded) -> None:
        """See `AgentEventVisitor`."""
        self._parts[event.part]["text"] += event.add

    def call(self, event: CallChanged) -> None:
        """See `AgentEventVisitor`."""
        part = self._parts[event.part]
        if "call" not in part:
            part |= {"call": event.call, "tool": event.tool, "arguments": "", "output": [], "files": []}
            self._calls[event.call] = part
        part["state"] = event.state
        part["arguments"] += event.add
        if event.about:
            part["about"] = event.about
        if event.seconds is not None:
            part["seconds"] = _rounded(event.seconds)

    def output(self, event: OutputAdded) -> None:
        """See `AgentEventVisitor`."""
        output = self._calls[event.call]["output"]
        if not output or output[-1]["channel"] != event.channel:
            output.append({"channel": event.channel, "text": ""})
        output[-1]["text"] += event.add
        if event.truncated:
            output[-1]["truncated"] = True

    def file(self, event: FileAdded) -> None:
        """See `AgentEventVisitor`."""
        files = self._files if event.call is None else self._calls[event.call]["files"]
        files.append(file_dict(event.file))

    def citation(self, event: CitationAdded) -> None:
        """See `AgentEventVisitor`."""
        cited = {name: value for name, value in citation_dict(event.citation).items() if value not in (None, "")}
        self._parts[event.part].setdefault("citations", []).append(cited)

    def usage(self, event: UsageAdded) -> None:
        """See `AgentEventVisitor`."""
        self._usage["rounds"] += 1
        self._usage["context"] = event.context
        self._usage["last"] = {"prompt": event.prompt, "completion": event.completion}
        for name in ("prompt", "cached", "completion", "prefill_seconds", "decode_seconds"):
            value = getattr(event, name)
            if value is not None:
                self._usage[name] = _rounded(self._usage.get(name, 0) + value)

    def error(self, event: ErrorRaised) -> None:
        """See `AgentEventVisitor`."""
        self._errors.append({key: value for key, value in event_dict(event).items() if key != "type"})

    def end(self, event: TurnEnded) -> None:
        """See `AgentEventVisitor`."""
        self._end = {"status": event.status, "reason": event.reason}


def _rounded(seconds: float | None) -> float | None:
    return round(seconds, 3) if isinstance(seconds, float) else seconds

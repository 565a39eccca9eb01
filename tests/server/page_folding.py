"""What a reader of the page has: a snapshot, and what later events made of it, as the page's own script does it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from glm4.markup.sanitizer import escape

_CODE_END = "</code></pre>"


class Folded:
    """A turn as one reader has it."""

    def __init__(self) -> None:
        self.snapshots = 0
        self.parts: list[dict[str, Any]] = []
        self.files: list[dict[str, Any]] = []
        self.usage: dict[str, Any] = {}
        self.errors: list[dict[str, Any]] = []
        self.status = "running"
        self.message = ""

    def add(self, event: Mapping[str, Any]) -> None:
        """Take an event."""
        kind = {"usage": "used"}.get(event["type"], event["type"])
        getattr(self, kind)({name: value for name, value in event.items() if name != "type"})

    def snapshot(self, event: dict[str, Any]) -> None:
        self.snapshots += 1
        self.message = event["message"]
        self.parts, self.files = event["parts"], event["files"]
        self.usage, self.errors = event["usage"], event["errors"]

    def turn(self, event: dict[str, Any]) -> None:
        raise AssertionError("it is part of the snapshot")

    def progress(self, event: dict[str, Any]) -> None:
        """Nothing stays of it."""

    def part(self, event: dict[str, Any]) -> None:
        assert event["part"] == len(self.parts)
        kind = event["kind"]
        self.parts.append({"kind": kind} if kind == "tool" else {"kind": kind, "text": "", "blocks": []})

    def text(self, event: dict[str, Any]) -> None:
        assert event["part"] == len(self.parts) - 1
        self.parts[event["part"]]["text"] += event["add"]

    def html(self, event: dict[str, Any]) -> None:
        blocks = self.parts[event["part"]]["blocks"]
        assert event["first"] <= len(blocks)
        blocks[event["first"] :] = event["blocks"]

    def code(self, event: dict[str, Any]) -> None:
        blocks = self.parts[event["part"]]["blocks"]
        assert event["block"] == len(blocks) - 1
        assert blocks[-1].endswith(_CODE_END)
        blocks[-1] = blocks[-1][: -len(_CODE_END)] + escape(event["add"]) + _CODE_END

    def call(self, event: dict[str, Any]) -> None:
        part = self.parts[event.pop("part")]
        if "call" not in part:
            part |= {"call": event["call"], "tool": event["tool"], "arguments": "", "output": [], "files": []}
        part["arguments"] += event.pop("add")
        part |= event

    def output(self, event: dict[str, Any]) -> None:
        output = self._called(event)["output"]
        if not output or output[-1]["channel"] != event["channel"]:
            output.append({"channel": event["channel"], "text": ""})
        output[-1]["text"] += event["add"]
        if event.get("truncated"):
            output[-1]["truncated"] = True

    def file(self, event: dict[str, Any]) -> None:
        files = self._called(event)["files"] if "call" in event else self.files
        files.append({name: value for name, value in event.items() if name != "call"})

    def citation(self, event: dict[str, Any]) -> None:
        self.parts[event.pop("part")].setdefault("citations", []).append(event)

    def used(self, event: dict[str, Any]) -> None:
        for name in ("prompt", "cached", "completion"):
            self.usage[name] += event[name]
        self.usage["rounds"] += 1

    def error(self, event: dict[str, Any]) -> None:
        self.errors.append(event)

    def end(self, event: dict[str, Any]) -> None:
        self.status = event["status"]

    def _called(self, event: Mapping[str, Any]) -> dict[str, Any]:
        return next(part for part in self.parts if part.get("call") == event["call"])

    def stored_parts(self) -> list[dict[str, Any]]:
        """As the message has them."""
        return self.parts + [{"kind": "error", **error} for error in self.errors]


def read_events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The events of a stream."""
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            data = json.loads(line[6:])
            assert data["type"] == name
            yield data

"""Calls of functions that are tools, without an agent: a context whose listener remembers, and files in memory."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from glm4.agent.events import Channel
from glm4.agent.files import StoredFile
from glm4.agent.functions import FunctionTool
from glm4.agent.tool import SYSTEM_ERROR, Invocation, Sources, ToolContext, ToolResult


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.files: list[StoredFile] = []
        self.said: list[str] = []

    def output(self, text: str, channel: Channel) -> None:
        self.said.append(text)

    def file(self, file: StoredFile) -> None:
        self.files.append(file)


class Kept:
    """A file store in memory."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    def put(self, name: str, data: bytes, *, alt: str | None = None) -> StoredFile:
        self.data[name] = data
        return StoredFile(name, name, "image/png", len(data))

    def read(self, sha256: str) -> bytes:
        return self.data[sha256]


def context_of(seconds: float = 60.0, files: Kept | None = None, heard: Heard | None = None) -> ToolContext:
    return ToolContext(time.monotonic() + seconds, threading.Event(), heard or Heard(), Sources(), files)


def call(made: FunctionTool[..., Any], _context: ToolContext | None = None, **arguments: Any) -> ToolResult:
    return made.run(Invocation("c", made.name, json.dumps(arguments)), _context or context_of())


def text_of(result: ToolResult) -> str:
    (observation,) = result.observations
    assert result.failed == (observation.metadata == SYSTEM_ERROR)
    return observation.text

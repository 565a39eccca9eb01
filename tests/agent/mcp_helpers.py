"""What the tests of MCP share: servers to start, and a context for calls."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from glm4.agent.events import Channel
from glm4.agent.files import StoredFile
from glm4.agent.mcp.config import McpServer
from glm4.agent.mcp.tools import McpTool, open_mcp
from glm4.agent.tool import Invocation, Sources, ToolContext, ToolResult
from glm4.errors import ToolServerError

HERE = Path(__file__).resolve().parent
HANG = 60.0
"""Seconds after which a test gives up."""


class MemoryFiles:
    """A `FileStore`."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    def put(self, name: str, data: bytes, *, alt: str | None = None) -> StoredFile:
        key = hashlib.sha256(data).hexdigest()
        self.content[key] = data
        return StoredFile(key, name, "application/octet-stream", len(data), alt=alt)

    def read(self, sha256: str) -> bytes:
        return self.content[sha256]


class Heard:
    """A `Listener`."""

    def __init__(self) -> None:
        self.texts: list[tuple[Channel, str]] = []
        self.files: list[StoredFile] = []

    def output(self, text: str, channel: Channel) -> None:
        self.texts.append((channel, text))

    def file(self, file: StoredFile) -> None:
        self.files.append(file)


def context(seconds: float = HANG, files: MemoryFiles | None = None) -> tuple[ToolContext, Heard]:
    heard = Heard()
    return ToolContext(time.monotonic() + seconds, threading.Event(), heard, Sources(), files), heard


def raw(form: str, *arguments: str, **options: Any) -> McpServer:
    args = (str(HERE / "mcp_raw_server.py"), form, *arguments)
    return McpServer("raw", sys.executable, args, **{"startup": HANG, **options})


def sdk(**options: Any) -> McpServer:
    args = (str(HERE / "mcp_sdk_server.py"), "stdio")
    return McpServer("sdk", sys.executable, args, **{"startup": HANG, **options})


@contextmanager
def opened(server: McpServer) -> Iterator[McpTool]:
    [tool] = open_mcp([server])
    assert isinstance(tool, McpTool)
    try:
        yield tool
    finally:
        tool.close()


def check(tool: McpTool) -> None:
    """Connect."""
    assert tool.functions is not None


def call(tool: McpTool, function: str, /, seconds: float = HANG, **arguments: Any) -> ToolResult:
    return tool.run(invocation(tool, function, **arguments), context(seconds)[0])


def invocation(tool: McpTool, function: str, /, **arguments: Any) -> Invocation:
    with suppress(ToolServerError):  # as an agent looks at them before every turn
        check(tool)
    return Invocation("call_1", f"{tool._names._prefix}__{function}", json.dumps(arguments))


def said(result: ToolResult) -> str:
    [observation] = result.observations
    return observation.text


def alive(pid: int) -> bool:
    """Whether a process runs (and is no zombie)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def processes_with(text: str) -> list[int]:
    """Processes in whose command line the text is; not this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in line and alive(int(entry.name)):
                found.append(int(entry.name))
    return found

"""Conversations with the python tool, for tests: what a call shows, and where the tool's environment comes from."""

from __future__ import annotations

import fcntl
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from glm4.agent.events import Channel
from glm4.agent.file_store import FolderFileStore
from glm4.agent.files import StoredFile
from glm4.agent.tool import Invocation, Sources, ToolContext
from glm4.agent.tools.python import PythonTool, environment
from glm4.hub.store import home
from glm4.sandbox.launch import unavailable

needs_sandbox = pytest.mark.skipif(unavailable() is not None, reason=f"no sandbox here: {unavailable()}")
HANG_SECONDS = 120.0


@dataclass
class Seen:
    """What a call came to: for the model, and for people."""

    text: str = ""
    failed: bool = False
    pieces: list[tuple[Channel, str]] = field(default_factory=list)
    files: list[StoredFile] = field(default_factory=list)

    def shown(self, channel: Channel) -> str:
        return "".join(text for each, text in self.pieces if each == channel)


class _Listener:
    def __init__(self, seen: Seen, on_output: Callable[[str], None]) -> None:
        self._seen, self._on_output = seen, on_output

    def output(self, text: str, channel: Channel) -> None:
        self._seen.pieces.append((channel, text))
        self._on_output(text)

    def file(self, file: StoredFile) -> None:
        self._seen.files.append(file)


class Talk:
    """A tool, called as an agent would; what it shows is kept in a folder."""

    def __init__(self, tool: PythonTool, folder: Path, *, max_file_bytes: int = 1 << 30) -> None:
        self.tool = tool
        self.files = FolderFileStore(folder / "files", max_file_bytes=max_file_bytes)
        self._sources = Sources()

    def run(
        self,
        code: str,
        *,
        raw: bool = True,
        left: float = HANG_SECONDS,
        cancelled: threading.Event | None = None,
        on_output: Callable[[str], None] = lambda _: None,
    ) -> Seen:
        """Run code; `left` seconds are left until the call's deadline."""
        seen = Seen()
        listener = _Listener(seen, on_output)
        deadline = time.monotonic() + left
        context = ToolContext(deadline, cancelled or threading.Event(), listener, self._sources, self.files)
        result = self.tool.run(Invocation("call", "python", code, raw=raw), context)
        assert len(result.observations) == 1
        seen.text, seen.failed = result.observations[0].text, result.failed
        return seen

    def data(self, file: StoredFile) -> bytes:
        return self.files.read(file.sha256)


def make_bare_home(folder: Path) -> Path:
    """A home of glm4 with an environment that has no packages: made without a download, enough for plain Python."""
    made = folder / "tools" / environment.environment_folder().name
    made.mkdir(parents=True)
    environment.make_environment(made)
    (made / "matplotlib").mkdir()
    environment.write_record(made, {"numpy": "not there"})
    return folder


def make_environment_once() -> None:
    """The environment of this user's python tool, installed if it is not there; once for all processes of tests."""
    home().mkdir(parents=True, exist_ok=True)
    with (home() / ".tools-for-tests.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not environment.packages():
            environment.install(lambda _stage, _done, _total: None)


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG file."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def running(word: str) -> list[int]:
    """Processes of this machine with a word on their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if word.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found

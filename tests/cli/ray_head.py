"""A Ray cluster of one node for tests, and the processes that run on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from processes import environment

import glm4

HANG_SECONDS = 120.0
SOURCES = str(Path(glm4.__file__).resolve().parents[1])


@dataclass(frozen=True)
class Head:
    """Attributes: `home` is where its processes look for models; it also tells them from those of other clusters."""

    address: str
    home: Path

    def pids(self, title: str) -> list[int]:
        """Processes on the cluster whose title begins like this."""
        return [pid for pid in processes_of(self.home) if title_of(pid).startswith(title)]

    def wait_for(self, title: str, count: int, *, besides: int = 0) -> list[int]:
        """Wait until that many of them run, not counting one."""
        return waited(lambda: [pid for pid in self.pids(title) if pid != besides], lambda found: len(found) == count)


def waited(look: Callable[[], list[int]], good: Callable[[list[int]], bool]) -> list[int]:
    deadline = time.monotonic() + HANG_SECONDS
    while not good(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def title_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    return ""


def processes_of(home: Path) -> list[int]:
    """Processes with this GLM4_HOME, zombies aside."""
    mark = f"GLM4_HOME={home}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def settings(home: Path, **changes: str) -> dict[str, str]:
    """The environment of a program, in whatever folder it runs. Ray keeps its token in HOME."""
    return environment(home, PYTHONPATH=SOURCES, **{"HOME": str(home)} | changes)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def ray_head(home: Path) -> Iterator[Head]:
    """Start a head node with two processors that asks for a token; everything on it is killed at the end."""
    (home / ".ray").mkdir()
    (home / ".ray/auth_token").write_text("0123456789abcdef" * 4)
    port = free_port()
    # Ray puts sockets into this folder, whose names have a limit of 107 bytes.
    folder = tempfile.mkdtemp(prefix="glm4-ray-", dir="/tmp")
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}"]
    command += ["--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"]
    command += ["--object-store-memory=100000000"]
    log = Path(folder) / "start.log"
    with log.open("wb") as file:
        head = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=settings(home, RAY_USAGE_STATS_ENABLED="0"),
            start_new_session=True,
        )
    try:
        waited(lambda: [head.pid] * (b"Ray runtime started" in log.read_bytes()), lambda found: bool(found))
        assert head.poll() is None, log.read_text()
        yield Head(f"127.0.0.1:{port}", home)
    finally:
        for pid in {head.pid, *processes_of(home)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)

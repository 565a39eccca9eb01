"""Runs the real `glm4` program for tests: with pipes, and at a pseudo-terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PROGRAM = [sys.executable, "-m", "glm4"]
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()>=][0B]?|\x1b\][^\x07]*\x07")


def environment(home: Path, **changes: str) -> dict[str, str]:
    """This process's environment, with a glm4 home of its own and a plain terminal setup."""
    keep = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return {**keep, "GLM4_HOME": str(home), "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", **changes}


def run(
    *args: str,
    home: Path,
    stdin: str | bytes = "",
    cwd: Path | None = None,
    program: Sequence[str] = PROGRAM,
    **changes: str,
) -> subprocess.CompletedProcess[bytes]:
    """Run to the end with pipes; output as bytes."""
    return subprocess.run(
        [*program, *args],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        env=environment(home, **changes),
        cwd=cwd,
        timeout=120,
        check=False,
    )


class Terminal:
    """A program at a pseudo-terminal of 100 x 30."""

    def __init__(self, args: list[str], env: dict[str, str], program: Sequence[str] = PROGRAM) -> None:
        pid, self._fd = pty.fork()
        if pid == 0:
            # As a shell at a terminal does; tests that run in the background inherit a Ctrl-C that is ignored.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execve(program[0], [*program, *args], env)
        self.pid = pid
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self._raw = b""
        self._seen = 0

    @property
    def shown(self) -> str:
        """Everything so far, without escape sequences."""
        return _ESCAPES.sub("", self._raw.decode("utf-8", "replace"))

    def send(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def expect(self, text: str, timeout: float = 60.0) -> str:
        """Wait for text after what was expected before; returns what came up to it."""
        deadline = time.monotonic() + timeout
        while (at := self.shown.find(text, self._seen)) < 0:
            if time.monotonic() > deadline or not self._read():
                raise AssertionError(f"{text!r} did not come; the screen:\n{self.shown}")
        passed = self.shown[self._seen : at]
        self._seen = at + len(text)
        return passed

    def _read(self) -> bool:
        if not select.select([self._fd], [], [], 0.2)[0]:
            return True
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # the program is gone
            return False
        self._raw += data
        return bool(data)

    def wait(self) -> int:
        """Read to the end; returns the exit code."""
        while self._read():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
        os.close(self._fd)


@contextlib.contextmanager
def terminal(*args: str, home: Path, program: Sequence[str] = PROGRAM, **changes: str) -> Iterator[Terminal]:
    """Run a program at a pseudo-terminal."""
    running = Terminal(list(args), environment(home, **changes), program)
    try:
        yield running
    finally:
        running.close()

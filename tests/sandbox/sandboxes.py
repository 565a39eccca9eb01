"""Programs in sandboxes, started as root and as a plain user: `Box`."""

from __future__ import annotations

import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from glm4.sandbox.disk import remove
from glm4.sandbox.interpreter import interpreter_mounts
from glm4.sandbox.seccomp import ARCHITECTURES

DRIVER = Path(__file__).with_name("sandbox_driver.py")
PLAIN_USER = 12345
USERS = ["root", "plain"] if os.geteuid() == 0 else ["plain"]
HANG_SECONDS = 120.0
_numbers = itertools.count()

# Attacks note how far they came: an error's name, "done", or what they found.
PRELUDE = """
import atexit, ctypes, errno, json, os, sys
NUMBERS = {numbers}
libc = ctypes.CDLL(None, use_errno=True)
results = {{}}
atexit.register(lambda: print(json.dumps(results)))
def syscall(name, *arguments):
    given = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    if libc.syscall(NUMBERS[name], *given) < 0:
        return errno.errorcode[ctypes.get_errno()]
    return "done"
def attempt(label, function, *arguments):
    try:
        found = function(*arguments)
        results[label] = found if isinstance(found, (str, int, list)) and not isinstance(found, bool) else "done"
    except OSError as error:
        results[label] = errno.errorcode.get(error.errno, str(error))
    except Exception as error:
        results[label] = type(error).__name__
"""


class Outcome(NamedTuple):
    """How a program ended."""

    status: int
    exceeded: str | None
    killed: bool
    stdout: str
    stderr: str

    @property
    def results(self) -> dict[str, Any]:
        """What an attack noted."""
        lines = self.stdout.splitlines()
        assert lines, self
        results = json.loads(lines[-1])
        assert isinstance(results, dict)
        return results


class Box:
    """A process of one user that starts sandboxes; see `sandbox_driver.py`."""

    def __init__(self, user: int) -> None:
        self.user = user
        arguments = [] if user == os.geteuid() else [str(user)]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", _code(), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={"PATH": os.environ["PATH"], "GLM4_TEST_SECRET": "not for programs inside"},
        )  # fmt: skip
        self._folders: list[Path] = []

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert "error" not in answer, answer
        assert isinstance(answer, dict)
        return answer

    def run(self, command: list[str], **options: Any) -> Outcome:
        """A program with its arguments, to its end."""
        answer = self.ask(do="run", command=command, **options)
        return Outcome(**{name: answer[name] for name in Outcome._fields})

    def python(self, code: str, *, mounts: list[tuple[str, str, bool]] | None = None, **options: Any) -> Outcome:
        """A Python program, which has the prelude."""
        python, needed = self.interpreter()
        return self.run([python, "-I", "-S", "-c", prelude() + code], mounts=[*needed, *(mounts or [])], **options)

    def results(self, code: str, **options: Any) -> dict[str, Any]:
        """What a Python program noted, which ends by itself."""
        outcome = self.python(code, **options)
        assert outcome.status == 0, outcome
        return outcome.results

    def interpreter(self) -> tuple[str, list[tuple[str, str, bool]]]:
        """A Python that this user's sandboxes can run, and the mounts for it."""
        if Path("/usr/bin/python3").exists():
            return "/usr/bin/python3", []
        mounts = [(str(mount.source), mount.target, False) for mount in interpreter_mounts(Path(sys.executable))]
        if self.user != os.geteuid() and not _open_to_all(Path(sys.executable).resolve()):
            pytest.skip("no Python here that the plain user could run")
        return sys.executable, mounts

    def folder(self) -> Path:
        """An empty folder that belongs to those who run inside."""
        path = Path(tempfile.mkdtemp(prefix="glm4-test-"))
        self._folders.append(path)
        if os.geteuid() == 0:
            user = 65534 if self.user == 0 else self.user
            os.chown(path, user, user)
        return path

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(HANG_SECONDS)
        self.process.stdout.close()
        for path in self._folders:
            remove_folder(path)


def prelude() -> str:
    return PRELUDE.format(numbers=dict(ARCHITECTURES[platform.machine()].numbers))


def open_box(user: str) -> Iterator[Box]:
    """Skips where there is no sandbox.

    Args:
        user: of `USERS`.
    """
    number = 0 if user == "root" else PLAIN_USER if os.geteuid() == 0 else os.geteuid()
    box = Box(number)
    try:
        reason = box.ask(do="check")["reason"]
        if reason is not None:
            pytest.skip(reason)
        yield box
    finally:
        box.close()


def remove_folder(path: Path) -> None:
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        remove(path.name, parent)
    finally:
        os.close(parent)


def marker() -> str:
    """A word by which processes of one test are found."""
    return f"glm4-test-{os.getpid()}-{next(_numbers)}-end"


def running(word: str) -> list[int]:
    """Processes of this machine with a word on their command line that are no zombies."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_for(condition: Callable[[], bool]) -> bool:
    """Whether it comes true before a test would count as hanging."""
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def kill_hard(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait(HANG_SECONDS)


def _open_to_all(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in path.parents)


def _code() -> str:
    return (
        f"import sys; sys.path[:] = {[*sys.path, str(DRIVER.parent)]!r}; import sandbox_driver; sandbox_driver.main()"
    )

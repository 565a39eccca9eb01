"""`Helper`: a process in which calls into a library may crash, loop or swallow memory at the cost of one request.

For libraries in native code that get what a stranger wrote: their stack overflow or failed allocation ends the process
they run in. A call is made in a helper first; only what it survives there, within the limits, is done in this process,
on a thread with more stack (`call_with_stack`).

The process starts with the first call, in a fresh interpreter that shares no thread, lock or file with this one. It
imports what its functions need and nothing else, and ends after a call that broke a limit, when idle, and with this
process.

Not covered: it has the rights of this process. It protects from accidents and exhaustion, not from foreign code.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    import subprocess

_T = TypeVar("_T")
Cause = Literal["time", "memory", "depth", "failure"]

# Waiting for a result, per second of processor time: other processes may keep the helper from running.
_PATIENCE = 10.0
_START_SECONDS = 60.0
_stack_lock = threading.Lock()


@dataclass(frozen=True)
class Limits:
    """What one call may use: seconds of processor time (whole ones are enforced), bytes of memory, bytes of stack."""

    cpu_seconds: int = 3
    memory_bytes: int = 512 << 20
    stack_bytes: int = 2 << 20


class HelperError(Exception):
    """A call that did not end well; `cause` is the limit it broke, or "failure": the function raised, or crashed."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause)
        self.cause = cause


class Helper:
    """Calls functions of this package in a process of their own, one at a time. Thread-safe.

    Args:
        limits: of each call.
        setup: makes (function, argument) of a call that precedes the others in every new process, outside the limits.
    """

    def __init__(self, limits: Limits, setup: Callable[[], tuple[str, bytes]] | None = None) -> None:
        self.limits = limits
        self._setup = setup
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[[subprocess.Popen[bytes]], Helper] | None = None

    def call(self, function: str, argument: bytes) -> bytes:
        """The result of a function.

        Args:
            function: "module:name"; takes and returns bytes.
            argument: passed to it.

        Raises:
            HelperError: it broke a limit or raised.
            OSError: no process can be started.
        """
        with self._lock:
            for again in (True, False):
                process = self._running()
                try:
                    return _exchange(process, function, argument, self.limits)
                except HelperError:
                    idle = process.poll() == 0  # it ended by itself just now, before it read the call
                    self._stop()
                    if not (idle and again):
                        raise
            raise AssertionError

    def close(self) -> None:
        """End the process; a later call starts another one. Idempotent."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        process = _start()
        self._process, self._finalizer = process, weakref.finalize(self, _end, process)
        if self._setup is not None:
            try:
                _exchange(process, *self._setup(), None)
            except HelperError as error:
                self._stop()
                raise OSError(f"a helper process ends at once ({error})") from None
        return process

    def _stop(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._process = self._finalizer = None


def call_with_stack(function: Callable[[], _T], nbytes: int) -> _T:
    """The result of a function that runs on a new thread with this much stack; raises what it raises."""
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # a panic of a library, too, belongs to the caller
            errors.append(error)

    thread = threading.Thread(target=run, name="glm4-stack", daemon=True)
    with _stack_lock:  # the size applies to every thread that is started meanwhile, and more stack harms none
        before = threading.stack_size(nbytes)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _start() -> subprocess.Popen[bytes]:
    import subprocess  # not at every start

    # Isolated, so that no variable or file of the working directory changes what is imported; the path is ours.
    code = f"import sys; sys.path[:] = {sys.path!r}; from glm4.system.helper_main import main; main()"
    command = [sys.executable, "-I", "-c", code]
    return subprocess.Popen(  # noqa: S603  # our own interpreter and code
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
        start_new_session=True,  # Ctrl-C in a terminal is for the program, not for its helpers
    )  # fmt: skip


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()


def _exchange(process: subprocess.Popen[bytes], function: str, argument: bytes, limits: Limits | None) -> bytes:
    assert process.stdin is not None  # noqa: S101
    assert process.stdout is not None  # noqa: S101
    request = {"function": function, "nbytes": len(argument), "limits": None if limits is None else asdict(limits)}
    deadline = time.monotonic() + (_START_SECONDS if limits is None else 10 + _PATIENCE * limits.cpu_seconds)
    try:
        for data in (json.dumps(request).encode() + b"\n", argument):
            _write(process.stdin, data, deadline)
        answer = json.loads(_read_line(process.stdout, deadline))
        result = _read(process.stdout, answer["nbytes"], deadline)
    except (OSError, EOFError):
        raise HelperError(_cause_of(process)) from None
    if answer["cause"] is not None:
        raise HelperError(answer["cause"])
    return result


def _wait(stream: IO[bytes], deadline: float, *, write: bool = False) -> None:
    poll = select.poll()  # select.select takes no descriptor beyond 1,023
    poll.register(stream, select.POLLOUT if write else select.POLLIN)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise HelperError("time")


def _write(stream: IO[bytes], data: bytes, deadline: float) -> None:
    view = memoryview(data)
    while view:
        _wait(stream, deadline, write=True)
        view = view[os.write(stream.fileno(), view[: select.PIPE_BUF]) :]


def _read(stream: IO[bytes], nbytes: int, deadline: float) -> bytes:
    parts: list[bytes] = []
    while nbytes:
        _wait(stream, deadline)
        part = os.read(stream.fileno(), min(nbytes, 1 << 16))
        if not part:
            raise EOFError
        parts.append(part)
        nbytes -= len(part)
    return b"".join(parts)


def _read_line(stream: IO[bytes], deadline: float) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        line += _read(stream, 1, deadline)
    return bytes(line)


def _cause_of(process: subprocess.Popen[bytes]) -> Cause:
    """Why a process ended. A library's failed allocation aborts it, and so does its failed assertion."""
    import subprocess

    try:
        status = process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        return "failure"
    causes: dict[int, Cause] = {
        -signal.SIGXCPU: "time", -signal.SIGKILL: "memory", -signal.SIGABRT: "memory", -signal.SIGSEGV: "depth",
        -signal.SIGBUS: "depth",
    }  # fmt: skip
    return causes.get(status, "failure")

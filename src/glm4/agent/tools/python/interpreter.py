"""`Interpreter`: a Python process in the sandbox that keeps its variables between calls.

It starts with the first call, and again with the next call after it has ended: it ran out of memory, crashed, left on
purpose, or did not listen when it was interrupted.

Beyond what the sandbox does not cover (`glm4.sandbox.launch`): code can say anything in the name of the worker that
runs it, which comes to no more than what it could print or draw anyway.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from glm4.agent.tools.python.environment import TARGET, mounts
from glm4.agent.tools.python.messages import MOST_FIGURES, BrokenMessageError, Figure, Messages, pack, read_figure
from glm4.errors import Glm4Error, SandboxError
from glm4.sandbox.launch import SandboxProcess
from glm4.sandbox.limits import Limits, Mount

DATA = "/mnt/data"
Stop = Literal["time", "cancelled", "output"]
MOST_OUTPUT_NBYTES = 16 << 20
_WORKER = "/opt/worker.py"
_VARIABLES: Mapping[str, str] = {
    "MPLBACKEND": "Agg",
    "MPLCONFIGDIR": "/tmp/matplotlib",  # noqa: S108 - the sandbox's own
    # Threads of BLAS reserve memory that is not theirs alone, and processors that the model needs.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
_START_SECONDS = 60.0
_TICK_MS = 50
_AGAIN_SECONDS = 0.5
_PATIENCE_IF_CANCELLED = 1.5  # whoever cancels does not wait long
_MOST_ERROR_CHARS = 20_000
_ENDS: Mapping[str, str] = {
    "memory": "used more memory than it may",
    "processes": "started more processes than it may",
    "cpu": "used more processor time than it may",
    "disk": "wrote more files than fit",
}


@dataclass
class Outcome:
    """What a call came to, beside its output.

    Attributes:
        error: what the code raised: a traceback.
        left_out: figures that were too many or too large.
        stopped: why it was interrupted.
        lost: why the interpreter ended, as a predicate: "used more memory than it may". Its variables are gone.
        overfull: it was ended for what it wrote, and `/mnt/data` may be over its quota.
    """

    error: str | None = None
    figures: list[Figure] = field(default_factory=list)
    left_out: int = 0
    stopped: Stop | None = None
    lost: str | None = None
    overfull: bool = False


class Interpreter:
    """Runs the code of one conversation, one call at a time. `close` may be called from another thread.

    Args:
        data: the folder that is `/mnt/data` inside; belongs to the sandbox's user.
    """

    def __init__(self, data: Path, limits: Limits) -> None:
        self._data, self._limits = data, limits
        self._lock = threading.Lock()
        self._process: SandboxProcess | None = None
        self._closed = False
        self._calls = 0

    def run(
        self, code: str, *, seconds: float, patience: float, cancelled: threading.Event, output: Callable[[bytes], None]
    ) -> Outcome:
        """Run code.

        Args:
            seconds: after which it is interrupted.
            patience: seconds after an interrupt in which it must stop.
            output: gets what it prints, as it comes.

        Raises:
            SandboxUnavailableError, SandboxError: no sandbox can be started.
        """
        with self._lock:
            process = self._running()
            if self._closed:  # meanwhile
                process.kill()
            self._calls += 1
            call = _Call(process, self._calls, code, output)
            outcome = call.follow(seconds, patience, cancelled)
            if outcome.lost is not None:
                self._end()
            return outcome

    def close(self) -> None:
        """End it. Idempotent."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._end()

    def _running(self) -> SandboxProcess:
        if self._closed:
            raise Glm4Error("this conversation's interpreter was closed")
        if self._process is None:
            worker = Mount(Path(__file__).with_name("worker.py"), _WORKER)
            process = SandboxProcess.start(
                [f"{TARGET}/bin/python", "-I", _WORKER],
                mounts=[*mounts(), worker, Mount(self._data, DATA, writable=True)],
                environment=_VARIABLES, limits=self._limits, working_directory=DATA,
            )  # fmt: skip
            for stream in (process.stdin, process.stdout, process.stderr):
                os.set_blocking(stream.fileno(), False)
            self._process = process
            said = bytearray()
            if not _Call(process, 0, None, said.extend).is_ready():
                self._end()
                text = said.decode("utf-8", "replace").strip()[-500:]
                raise SandboxError(
                    "failure", f"the interpreter of the python tool does not start: {text or 'it is silent'}"
                )
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None


class _Call:
    """One call: sends the code, takes what comes, and keeps to the time."""

    def __init__(self, process: SandboxProcess, number: int, code: str | None, output: Callable[[bytes], None]) -> None:
        self._process, self._number, self._output = process, number, output
        self._pending = b"" if code is None else pack({"call": number, "code": code})
        self._messages = Messages()
        self._outcome = Outcome()
        self._printed = 0
        self._ended = self._ready = self._done = False

    def is_ready(self) -> bool:
        """Whether the worker says that it takes code."""
        deadline = time.monotonic() + _START_SECONDS
        while not (self._ready or self._ended) and time.monotonic() < deadline:
            self._exchange()
        return self._ready

    def follow(self, seconds: float, patience: float, cancelled: threading.Event) -> Outcome:
        """Until the worker is done, or gone."""
        outcome = self._outcome
        deadline = time.monotonic() + seconds
        give_up = again = 0.0
        while not (self._done or self._ended):
            self._exchange()
            now = time.monotonic()
            if outcome.stopped is None:
                outcome.stopped = self._reason(now > deadline, cancelled.is_set())
                give_up = now + (patience if outcome.stopped != "cancelled" else min(patience, _PATIENCE_IF_CANCELLED))
            elif now > give_up:
                outcome.lost = "did not stop when it was interrupted"
                self._process.kill()
                break
            if outcome.stopped is not None and now > again:
                self._process.interrupt()  # not once: it may not have begun, or goes on in an `except:`
                again = now + _AGAIN_SECONDS
        if self._ended and outcome.lost is None:
            outcome.lost = self._why()
        self._take_output()  # what was printed before the last message is in the pipe by now
        return outcome

    def _reason(self, late: bool, cancelled: bool) -> Stop | None:
        if cancelled:
            return "cancelled"
        if late:
            return "time"
        return "output" if self._printed > MOST_OUTPUT_NBYTES else None

    def _exchange(self) -> None:
        """Move what can be moved now, in both directions."""
        process = self._process
        poll = select.poll()  # select.select takes no descriptor beyond 1,023
        poll.register(process.stdout, select.POLLIN)
        poll.register(process.stderr, select.POLLIN)
        if self._pending:
            poll.register(process.stdin, select.POLLOUT)
        poll.poll(_TICK_MS)
        try:
            self._take_output()
            if self._pending:
                with suppress(BlockingIOError):
                    self._pending = self._pending[os.write(process.stdin.fileno(), self._pending) :]
            self._take_messages()
        except BrokenPipeError:
            self._ended = True

    def _take_output(self) -> None:
        for _ in range(64):  # then back to looking at the time
            data = _read(self._process.stderr.fileno())
            if not data:
                return
            self._printed += len(data)
            if self._printed <= MOST_OUTPUT_NBYTES:
                self._output(data)

    def _take_messages(self) -> None:
        try:
            while data := _read(self._process.stdout.fileno()):
                for message, picture in self._messages.add(data):
                    self._take(message, picture)
        except BrokenMessageError:
            self._outcome.lost = "wrote to where its interpreter answers"
            self._ended = True
            self._process.kill()
            return
        self._ended = self._ended or data is not None

    def _take(self, message: dict[str, object], picture: bytes) -> None:
        """One message; what has another number belongs to an earlier call."""
        kind = message.get("kind")
        if kind == "ready":
            self._ready = True
        if message.get("call") != self._number or self._done:
            return
        if kind == "figure":
            figure = read_figure(message, picture) if len(self._outcome.figures) < MOST_FIGURES else None
            if figure is None:
                self._outcome.left_out += 1
            else:
                self._outcome.figures.append(figure)
        elif kind == "done":
            error, left_out = message.get("error"), message.get("left_out")
            self._outcome.error = error[:_MOST_ERROR_CHARS] if isinstance(error, str) else None
            self._outcome.left_out += left_out if isinstance(left_out, int) and 0 < left_out < 1000 else 0
            self._done = True

    def _why(self) -> str:
        """Why the interpreter ended."""
        try:
            status = self._process.wait(_START_SECONDS)
        except TimeoutError:
            return "stopped answering"
        if self._process.exceeded is not None:
            self._outcome.overfull = self._process.exceeded == "disk"
            return _ENDS.get(self._process.exceeded, "used more than it may")
        if status > 128:
            with suppress(ValueError):
                return f"crashed ({signal.Signals(status - 128).name})"
        return f"ended its own process (exit status {status})"


def _read(handle: int) -> bytes | None:
    """What can be read now: None if nothing, empty at the end."""
    try:
        return os.read(handle, 1 << 16)
    except BlockingIOError:
        return None

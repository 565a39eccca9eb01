"""`SandboxProcess`: a program and all its descendants in bubblewrap.

What is between the program and this machine:

- namespaces of its own for users, processes, mounts, the network (without any interface but its own loopback),
  System V IPC, the host's name and control groups; no namespace can be made inside;
- a file system of /usr, read-only, what the caller mounts, and small file systems in memory for /tmp and /dev/shm;
- no capability, no privilege by executing anything, no environment, no descriptor but the three standard ones;
- a filter of system calls (`seccomp.py`);
- limits of each process by the kernel, and of all together by a watcher (`watcher.py`);
- another user, if this process runs as root (`command.py`).

It ends with this process, however that ends: bubblewrap dies with the thread that started it, and all processes inside
with bubblewrap.

Not covered: holes in the kernel, in the calls that are allowed, or in bubblewrap; side channels of the processor and
covert channels by time or load; a program that takes a whole processor until its time is over; what /proc tells about
the machine (its kernel, processors, memory and load, and where mounts come from); what a caller mounts as writable, and
what it does with results; other programs of the user, if this process is not root's and a program escapes; Landlock is
not used. Without bubblewrap nothing runs at all.
"""

from __future__ import annotations

import json
import os
import platform
import select
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import IO, TYPE_CHECKING

from glm4.errors import SandboxError, SandboxUnavailableError
from glm4.sandbox.command import GO, Descriptors, bubblewrap_command
from glm4.sandbox.control_group import ControlGroup
from glm4.sandbox.diagnosis import explain
from glm4.sandbox.limits import Limits, Mount
from glm4.sandbox.seccomp import ARCHITECTURES, filter_program
from glm4.sandbox.watcher import ProcessTree

if TYPE_CHECKING:
    import subprocess

_START_SECONDS = 60.0
_END_SECONDS = 60.0
_MAX_MESSAGE_NBYTES = 1 << 16

_starter_lock = threading.Lock()
_starter: tuple[int, ThreadPoolExecutor] | None = None
_checked: dict[tuple[int, str | None], str | None] = {}


class SandboxProcess:
    """A program that runs in a sandbox; made by `start`. A context manager; ends with the last reference to it, too.

    Attributes:
        stdin, stdout, stderr: unbuffered pipes. What comes out is written by a stranger: any bytes, any number.
        pid: of bubblewrap.
    """

    def __init__(self, process: subprocess.Popen[bytes], tree: ProcessTree) -> None:
        assert process.stdin is not None  # noqa: S101
        assert process.stdout is not None  # noqa: S101
        assert process.stderr is not None  # noqa: S101
        self.stdin: IO[bytes] = process.stdin
        self.stdout: IO[bytes] = process.stdout
        self.stderr: IO[bytes] = process.stderr
        self.pid = process.pid
        self._process, self._tree = process, tree
        self._finalizer = weakref.finalize(self, _end, process, tree)

    @classmethod
    def start(
        cls, command: Sequence[str], *, mounts: Sequence[Mount] = (), environment: Mapping[str, str] | None = None,
        limits: Limits | None = None, working_directory: str = "/",
    ) -> SandboxProcess:  # fmt: skip
        """Run a program.

        Args:
            command: the program and its arguments; found by the PATH inside. One that is not there ends with status
                127 and a line on standard error.
            mounts: what it sees beside /usr. Writable ones must belong to the user of the sandbox
                (`give_to_sandbox`).
            environment: its variables, beside PATH, HOME and LANG.
            working_directory: inside. One that is not there ends with status 1 and a line on standard error.

        Raises:
            SandboxUnavailableError: there is no sandbox here.
            SandboxError: this one could not be set up.
            FileNotFoundError: the source of a mount.
        """
        # On one thread that lives as long as this process: bubblewrap ends with the thread that started it.
        start = partial(_start, command, mounts, environment or {}, limits or Limits(), working_directory)
        return cls(*_starting_thread().submit(start).result())

    @property
    def exceeded(self) -> str | None:
        """The limit for which the watcher ended it: "memory", "processes", "cpu" or "disk"."""
        return self._tree.exceeded

    def interrupt(self) -> None:
        """SIGINT to the program, not to processes it has started.

        Python notices none that arrives just before it waits in a system call: repeat it until the program reacts.
        """
        self._tree.interrupt()

    def kill(self) -> None:
        """End all processes; `wait` returns once they are gone."""
        self._tree.kill()

    def wait(self, timeout: float | None = None) -> int:
        """The exit status of the program, 128 + n if a signal n ended it. No process is left then.

        Raises:
            TimeoutError: it still runs after `timeout` seconds.
        """
        if not self._tree.gone.wait(timeout):
            raise TimeoutError(f"still running after {timeout} seconds")
        return self._process.wait(_END_SECONDS)

    def close(self) -> None:
        """End all processes, wait for that, and close the pipes. Idempotent."""
        self._finalizer()

    def __enter__(self) -> SandboxProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def unavailable() -> str | None:
    """Why there is no sandbox here, and what to do about it; None if there is one.

    It starts one; the answer is kept.
    """
    key = (os.geteuid(), os.environ.get("PATH"))
    if key not in _checked:
        try:
            with SandboxProcess.start(["true"], limits=Limits(memory_nbytes=64 << 20)) as process:
                status = process.wait(_START_SECONDS)
        except SandboxUnavailableError as error:
            _checked[key] = str(error)
        except (SandboxError, OSError) as error:  # the next time it may be otherwise
            return str(error)
        else:
            _checked[key] = None if status == 0 else f"programs do not run in the sandbox (exit status {status})"
    return _checked[key]


def _starting_thread() -> ThreadPoolExecutor:
    global _starter  # noqa: PLW0603  # one for each process, also after a fork
    with _starter_lock:
        if _starter is None or _starter[0] != os.getpid():
            _starter = os.getpid(), ThreadPoolExecutor(1, thread_name_prefix="glm4-sandbox-start")
        return _starter[1]


def _start(
    command: Sequence[str], mounts: Sequence[Mount], environment: Mapping[str, str], limits: Limits,
    working_directory: str,
) -> tuple[subprocess.Popen[bytes], ProcessTree]:  # fmt: skip
    import subprocess  # not at every start of glm4

    if sys.platform != "linux":
        raise SandboxUnavailableError("the sandbox needs Linux: bubblewrap, on which it is built, exists there only")
    if platform.machine() not in ARCHITECTURES:
        raise SandboxUnavailableError(f"the sandbox has no filter of system calls for {platform.machine()} processors")
    descriptors = Descriptors()
    ready, go = os.pipe()  # bubblewrap waits at `ready` once the sandbox is set up
    told, tell = os.pipe()
    try:
        descriptors.opened += [ready, tell]
        extra = ["--block-fd", str(ready), "--info-fd", str(tell), "--seccomp", descriptors.file(filter_program())]
        run = bubblewrap_command(command, mounts, environment, limits, working_directory, descriptors, extra)
        process = subprocess.Popen(  # noqa: S603  # that is what this is for
            run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, cwd="/", pass_fds=descriptors.opened,
            start_new_session=True,
        )  # fmt: skip
        descriptors.close()
        tree = None
        try:
            tree = _tree(process, told, limits, mounts)
            if not _go_on(go, tree):
                raise _failed(process)
            assert process.stdin is not None  # noqa: S101
            with suppress(BrokenPipeError):  # it could not even run the shell; its status tells
                process.stdin.write(GO)
        except BaseException:
            _end(process, None)
            if tree is not None:
                tree.watch()  # which ends with it
            raise
        tree.watch()
        return process, tree
    finally:
        descriptors.close()
        os.close(go)
        os.close(told)


def _tree(process: subprocess.Popen[bytes], told: int, limits: Limits, mounts: Sequence[Mount]) -> ProcessTree:
    """The first process inside."""
    text = _read_all(told)
    try:
        pid = int(json.loads(text)["child-pid"])
    except (ValueError, KeyError):
        raise _failed(process) from None
    try:
        folders = [mount.source.resolve() for mount in mounts if mount.writable]
        tree = ProcessTree(pid, limits, folders, ControlGroup.join(pid, limits))
        with suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:  # noqa: PTH123
            file.write("1000")  # where memory runs out, the sandbox ends, not the process with the model
    except ProcessLookupError:
        raise _failed(process) from None
    return tree


def _go_on(go: int, tree: ProcessTree) -> bool:
    """Let the program start once the sandbox is set up; False if it could not be."""
    import fcntl
    import termios

    os.write(go, b"1")
    poll = select.poll()
    poll.register(go, 0)  # reports when nobody can read any more
    if not poll.poll(_START_SECONDS * 1000):
        tree.kill()
        raise SandboxError("time", f"the sandbox did not start within {_START_SECONDS:.0f} seconds")
    unread = fcntl.ioctl(go, termios.FIONREAD, bytes(4))
    return not any(unread)


def _failed(process: subprocess.Popen[bytes]) -> SandboxError:
    """The error of a sandbox that was not set up, from what bubblewrap says."""
    assert process.stderr is not None  # noqa: S101
    poll = select.poll()
    poll.register(process.stderr, select.POLLIN)
    text = b""
    while len(text) < _MAX_MESSAGE_NBYTES and poll.poll(_END_SECONDS * 1000):
        part = os.read(process.stderr.fileno(), 4096)
        if not part:
            break
        text += part
    return explain(text.decode("utf-8", "replace").strip())


def _read_all(handle: int) -> bytes:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    parts: list[bytes] = []
    while poll.poll(_START_SECONDS * 1000):
        part = os.read(handle, 4096)
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


def _end(process: subprocess.Popen[bytes], tree: ProcessTree | None) -> None:
    if tree is None:
        process.kill()
    else:
        tree.kill()
        tree.gone.wait(_END_SECONDS)
    with suppress(Exception):  # a finalizer; the processes inside are gone
        process.wait(_END_SECONDS)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(OSError):
                stream.close()

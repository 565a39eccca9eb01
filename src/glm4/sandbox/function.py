"""`run_function`: one call of a function of ours in a sandbox of its own, for what a stranger wrote: documents.

The function may be taken over by its argument. Then it can return whatever it likes, and no more than that: the caller
must check the result as if the stranger had sent it.

Not covered: see `launch.py`.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Sequence

from glm4.errors import SandboxError, SandboxUnavailableError
from glm4.sandbox.function_main import DONE, HEADER, MEMORY
from glm4.sandbox.interpreter import own_mounts
from glm4.sandbox.launch import SandboxProcess, unavailable
from glm4.sandbox.limits import Limits

_MAX_TEXT_CHARS = 1000
_TOO_LONG = "it took too long"
_PART_NBYTES = 1 << 16
# Libraries start a thread for each processor, each with a stack, and the limits are not for the machine's size.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

# What the watcher ended it for.
_CAUSES = {"cpu": "time", "memory": "memory"}


def run_function(
    name: str, argument: bytes, *, limits: Limits | None = None, seconds: float = 30, packages: Sequence[str] = (),
    max_nbytes: int = 64 << 20,
) -> bytes:  # fmt: skip
    """The result of a function that this interpreter calls inside a sandbox.

    Args:
        name: "module:function" of bytes that returns bytes, in this package or one of `packages`.
        argument: passed to it.
        seconds: it may take.
        packages: it needs besides; those beside this package are there anyway.
        max_nbytes: of the result.

    Raises:
        SandboxError: it took too long ("time"), needed too much memory ("memory"), or failed ("failure").
        SandboxUnavailableError: there is no sandbox here.
        MissingExtraError: a package is not installed.
    """
    if name.partition(":")[0].partition(".")[0] not in ("glm4", *packages):
        raise ValueError(f"{name} is no function of this package")
    reason = unavailable()
    if reason is not None:
        raise SandboxUnavailableError(reason)
    code = f"import sys; sys.path[:] = {sys.path!r}; from glm4.sandbox.function_main import main; main({name!r})"
    with SandboxProcess.start(
        [sys.executable, "-I", "-c", code],
        mounts=own_mounts(packages),
        environment=_ONE_THREAD,
        limits=limits or Limits(),
    ) as process:
        deadline = time.monotonic() + seconds
        output, text = _exchange(process, argument, deadline, HEADER.size + max_nbytes)
        try:
            status = process.wait(max(0.0, deadline - time.monotonic()))
        except TimeoutError:  # it closed its outputs, and goes on
            raise SandboxError("time", _TOO_LONG) from None
        return _result(output, text, status, process.exceeded)


def _exchange(process: SandboxProcess, argument: bytes, deadline: float, max_nbytes: int) -> tuple[bytes, bytes]:
    """(standard output, the end of standard error); kills it when it may not go on."""
    outputs = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    first, second = outputs
    poll = select.poll()
    for handle in outputs:
        poll.register(handle, select.POLLIN)
    waiting = memoryview(argument)
    os.set_blocking(process.stdin.fileno(), False)
    poll.register(process.stdin, select.POLLOUT)
    open_outputs = set(outputs)
    while open_outputs:
        events = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not events:
            process.kill()
            raise SandboxError("time", _TOO_LONG)
        for handle, _ in events:
            if handle not in outputs:
                waiting = _write(process, waiting)
                if not waiting:
                    poll.unregister(handle)
                    process.stdin.close()
                continue
            part = os.read(handle, _PART_NBYTES)
            if not part:
                poll.unregister(handle)
                open_outputs.discard(handle)
            outputs[handle] += part
        if len(outputs[first]) > max_nbytes:
            process.kill()
            raise SandboxError("failure", f"its result is larger than {max_nbytes} bytes")
        del outputs[second][:-_MAX_TEXT_CHARS]
    return bytes(outputs[first]), bytes(outputs[second])


def _write(process: SandboxProcess, waiting: memoryview) -> memoryview:
    """What is left to write; nothing if it does not read any more."""
    try:
        return waiting[os.write(process.stdin.fileno(), waiting[:_PART_NBYTES]) :]
    except BlockingIOError:
        return waiting
    except BrokenPipeError:
        return waiting[:0]


def _result(output: bytes, text: bytes, status: int, exceeded: str | None) -> bytes:
    if exceeded is not None:
        raise SandboxError(_CAUSES.get(exceeded, "failure"), f"it used too much: {exceeded}")
    if status == 128 + signal.SIGXCPU:
        raise SandboxError("time", _TOO_LONG)
    if len(output) >= HEADER.size:
        kind, nbytes = HEADER.unpack_from(output)
        if kind == DONE and len(output) == HEADER.size + nbytes:
            return output[HEADER.size :]
        if kind == MEMORY:
            raise SandboxError("memory", "it needed too much memory")
        text = output[HEADER.size :]
    said = _printable(text)
    raise SandboxError("failure", f"it failed ({said})" if said else f"it ended with exit status {status}")


def _printable(text: bytes) -> str:
    """The last line, without anything that a terminal would act on."""
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in lines[-1]) if lines else ""

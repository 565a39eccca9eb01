"""The program that runs in a helper process; see `helper.py`. It imports only what the functions it calls need."""

from __future__ import annotations

import importlib
import json
import math
import os
import resource
import select
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import BinaryIO

IDLE_SECONDS = 300.0


def main() -> None:
    """Answer calls until the other end closes, or asks for nothing for `IDLE_SECONDS`."""
    calls, answers = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):  # a library that prints must not disturb the conversation
        os.dup2(nothing, standard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:  # noqa: PTH123  # as below
        file.write("1000")  # where memory runs out, this process ends, not the one with the model
    while select.select([calls], [], [], IDLE_SECONDS)[0] and _answer(calls, answers):
        pass


def _answer(calls: BinaryIO, answers: BinaryIO) -> bool:
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = calls.read(1)
        if not byte:
            return False
        line += byte
    request = json.loads(line)
    argument = _read(calls, request["nbytes"])
    cause, result = _call(request["function"], argument, request["limits"])
    data = memoryview(json.dumps({"cause": cause, "nbytes": len(result)}).encode() + b"\n" + result)
    while data:
        data = data[answers.write(data) :]
    return True


def _read(calls: BinaryIO, nbytes: int) -> bytes:
    data = bytearray()
    while len(data) < nbytes:
        part = calls.read(nbytes - len(data))
        if not part:
            sys.exit(1)
        data += part
    return bytes(data)


def _call(name: str, argument: bytes, limits: Mapping[str, int] | None) -> tuple[str | None, bytes]:
    module, _, attribute = name.partition(":")
    function: Callable[[bytes], bytes] = getattr(importlib.import_module(module), attribute)
    outcome: list[tuple[str | None, bytes]] = []

    def run() -> None:
        try:
            outcome.append((None, function(argument)))
        except (MemoryError, RecursionError) as error:
            outcome.append(("memory" if isinstance(error, MemoryError) else "depth", b""))
        except BaseException:  # a panic of a library is not an Exception
            outcome.append(("failure", b""))

    if limits is not None:
        _limit(limits)
        threading.stack_size(limits["stack_bytes"])
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return outcome[0]


def _limit(limits: Mapping[str, int]) -> None:
    """Count from what is in use now. Where the system does not know a limit, the caller's deadline remains."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime) + limits["cpu_seconds"]
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    with suppress(OSError, ValueError):
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123  # pathlib takes a third of the start
            pages = int(file.read().split()[0])
        nbytes = pages * resource.getpagesize() + limits["memory_bytes"] + limits["stack_bytes"]
        resource.setrlimit(resource.RLIMIT_AS, (nbytes, resource.RLIM_INFINITY))

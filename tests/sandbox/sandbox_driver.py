"""Starts sandboxes for the tests, as another user if need be: a process of its own, which reads requests as JSON lines.

    python sandbox_driver.py [UID]

It imports all that it needs before it changes to that user, who may be unable to reach this interpreter's files.
"""

from __future__ import annotations

import codecs
import concurrent.futures.thread
import fcntl
import json
import os
import select
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path
from typing import Any

from glm4.sandbox import launch
from glm4.sandbox.launch import SandboxProcess
from glm4.sandbox.limits import Limits, Mount

USED_LATER = (concurrent.futures.thread, fcntl, select, subprocess, tempfile, termios)
ENCODINGS = [codecs.lookup(name) for name in ("ascii", "latin-1", "utf-8")]
PATIENCE = 100.0


def main() -> None:
    """Answer requests until there are none."""
    if len(sys.argv) > 1:
        user = int(sys.argv[1])
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    held: dict[str, SandboxProcess] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _answer(request, held)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def _answer(request: dict[str, Any], held: dict[str, SandboxProcess]) -> dict[str, Any]:
    if request["do"] == "check":
        return {"reason": launch.unavailable()}
    if request["do"] == "hold":  # until this process ends
        held[request["name"]] = process = _start(request)
        return {"line": process.stdout.readline().decode("latin-1"), "pid": process.pid}
    if request["do"] == "run":
        return _run(request)
    process = held[request["name"]]
    if request["do"] == "release":
        process.close()
        return {"status": process.wait(PATIENCE)}
    if request["do"] == "interrupt":
        process.interrupt()
        return {"status": process.wait(PATIENCE), "stdout": process.stdout.read().decode("latin-1")}
    raise ValueError(request)


def _start(request: dict[str, Any]) -> SandboxProcess:
    mounts = [Mount(Path(source), target, writable) for source, target, writable in request.get("mounts", [])]
    return SandboxProcess.start(
        request["command"], mounts=mounts, environment=request.get("environment", {}),
        limits=Limits(**request.get("limits", {})), working_directory=request.get("working_directory", "/"),
    )  # fmt: skip


def _run(request: dict[str, Any]) -> dict[str, Any]:
    """Run to its end, or kill it when it has written enough or its time is over."""
    process = _start(request)
    outputs = {"stdout": bytearray(), "stderr": bytearray()}
    most, deadline = request.get("most", 1 << 20), time.monotonic() + request.get("seconds", PATIENCE)
    killed = threading.Event()

    def read(name: str, handle: int) -> None:
        while part := os.read(handle, 1 << 16):
            if len(outputs[name]) > most:
                killed.set()
                process.kill()
            else:
                outputs[name] += part

    streams = {"stdout": process.stdout.fileno(), "stderr": process.stderr.fileno()}
    threads = [threading.Thread(target=read, args=item) for item in streams.items()]
    for thread in threads:
        thread.start()
    process.stdin.close()
    try:
        status = process.wait(max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        killed.set()
        process.kill()
        status = process.wait(PATIENCE)
    for thread in threads:
        thread.join()
    exceeded = process.exceeded
    process.close()
    texts = {name: data.decode("latin-1") for name, data in outputs.items()}
    return {"status": status, "exceeded": exceeded, "killed": killed.is_set(), **texts}


if __name__ == "__main__":
    main()

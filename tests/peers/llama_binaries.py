"""llama-server as a program of its own, on a file that we exported.

The environment variable GLM4_LLAMA_CPP names the folder it is in (benchmarks/README.md builds it); without it these
tests are skipped.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "GLM4_LLAMA_CPP"
needs_llama_cpp = [pytest.mark.peers, pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} is not set")]


@contextmanager
def llama_server(file: Path, *options: str, context: int = 512) -> Iterator[str]:
    """The address of a llama-server that has loaded the file."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(os.environ[VARIABLE]) / "llama-server"), "-m", str(file), "--host", "127.0.0.1"]
    command += f"--port {port} -c {context} -np 1 -t 2 -ctk f32 -ctv f32 -fa off --no-repack".split()
    command += options
    log = file.with_suffix(".log")
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(600):
                assert process.poll() is None, f"{file.name} does not load: {log.read_text(errors='replace')[-3000:]}"
                try:
                    urllib.request.urlopen(address + "/health", timeout=10).close()
                    break
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.1)
            yield address
        finally:
            process.kill()


def post(url: str, body: object) -> dict[str, Any]:
    """The JSON answer to a JSON body."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        found: dict[str, Any] = json.load(answer)
    return found

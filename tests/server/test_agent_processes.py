"""`glm4 serve --tools python,files` as a process: nothing of its sandboxes survives it, however it ends."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import pytest
from builtin_tools import KEY, scripted
from python_conversations import make_bare_home, needs_sandbox
from sandboxes import marker, running, wait_for
from test_lifecycle import process

from live import config, serve
from scripted_llm import scripted_llm
from stepped import until


@needs_sandbox
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_nothing_survives_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: signal.Signals) -> None:
    """The model is another server's, whose answers are written here; the program and its sandbox are real."""
    word = marker()
    code = (
        f"import os, subprocess, sys, time\nsleep = [sys.executable, '-c', 'import time; time.sleep(1000)', '{word}']\n"
        "subprocess.Popen(sleep)\nsubprocess.Popen(sleep, start_new_session=True)\ntime.sleep(1000)"
    )
    monkeypatch.setenv("GLM4_HOME", str(make_bare_home(tmp_path / "home")))
    monkeypatch.setenv("GLM4_REMOTE_API_KEY", KEY)
    llm = scripted_llm(tmp_path / "m", scripted([("Sleep", f"python\n{code}")]), dialect="glm4", template=None)
    with serve(config("tiny", api_keys=(KEY,)), llm) as model:
        options = ["-m", f"tiny={tmp_path / 'm'}", "--backend", "remote", "--base-url", model.url, "--port", "0"]
        with process("-m", "glm4", "serve", *options, "--tools", "python,files") as server:
            until(lambda: httpx.get(f"{server.url}/ready").status_code == 200, "the model is ready")
            started = httpx.post(f"{server.url}/v1/agent/turns", json={"content": "Sleep", "tools": ["python"]})
            assert started.status_code == 200, started.text
            assert wait_for(lambda: len(running(word)) >= 2)
            server.process.send_signal(end)
            code_of_end = server.end(60)
            assert wait_for(lambda: running(word) == [])
            assert code_of_end == (-signal.SIGKILL if end == signal.SIGKILL else 0)

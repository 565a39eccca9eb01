"""`glm4 tools`: what is ready, and an environment that is complete or not there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from processes import PROGRAM, environment, run

from glm4.sandbox.launch import unavailable

# An index that has nothing; whatever the user's own pip configuration says.
NO_INDEX = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": ""}


def test_the_list_says_what_is_ready_and_what_to_do(tmp_path: Path) -> None:
    result = run("tools", "--json", home=tmp_path)
    assert result.returncode == 0
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert set(rows) == {"python", "browser", "documents", "mcp"}
    assert not rows["python"]["ready"]
    assert "run `glm4 tools install`" in rows["python"]["lacks"][0]
    assert rows["documents"]["ready"]
    text = run("tools", home=tmp_path).stdout.decode()
    assert "python     not ready" in text
    assert "glm4 tools install" in text


def test_without_bubblewrap_the_list_says_so(tmp_path: Path) -> None:
    result = run("tools", "--json", home=tmp_path, PATH=str(tmp_path))
    assert any("only in a sandbox" in lack for lack in json.loads(result.stdout)[0]["lacks"])
    assert len(json.loads(result.stdout)[0]["lacks"]) == 2


def test_an_unknown_action_is_a_mistake(tmp_path: Path) -> None:
    result = run("tools", "instal", home=tmp_path)
    assert result.returncode == 2
    assert "list or install" in result.stderr.decode()


def test_a_failed_installation_leaves_nothing_and_tells_what_pip_said(tmp_path: Path) -> None:
    command = [*PROGRAM, "tools", "install"]
    result = subprocess.run(command, env=environment(tmp_path, **NO_INDEX), capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "No matching distribution found for numpy" in result.stderr
    assert list((tmp_path / "tools").iterdir()) == []


def test_an_interrupted_installation_leaves_nothing(tmp_path: Path) -> None:
    """Interrupted while pip waits for an index that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/simple"
        variables = {**NO_INDEX, "PIP_NO_INDEX": "0", "PIP_INDEX_URL": url}
        with subprocess.Popen(
            [*PROGRAM, "tools", "install"], env=environment(tmp_path, **variables), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            server.settimeout(120)
            connection, _ = server.accept()
            assert list((tmp_path / "tools").glob(".*.partial"))
            process.send_signal(signal.SIGINT)
            assert process.wait(120) == 130
            connection.close()
    assert list((tmp_path / "tools").iterdir()) == []
    deadline = time.monotonic() + 60
    while _running(url) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _running(url), "pip goes on"


def _running(word: str) -> list[str]:
    """Processes whose environment has a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if word.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.tools
@pytest.mark.slow
def test_an_installation_from_the_users_index_is_complete(tmp_path: Path) -> None:
    result = run("tools", "install", "--json", home=tmp_path)
    assert result.returncode == 0, result.stderr.decode()
    told = json.loads(result.stdout)
    assert set(told["packages"]) == {"numpy", "pandas", "matplotlib", "openpyxl"}
    assert told["ready"] == (unavailable() is None)
    assert [path.name for path in (tmp_path / "tools").iterdir()] == [Path(told["path"]).name]
    again = run("tools", "install", home=tmp_path)
    assert again.returncode == 0
    assert again.stdout.decode().strip() == told["path"]

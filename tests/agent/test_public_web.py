"""The browser with public addresses, every check on, and a search engine in the private network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import public_web
import pytest

import public_network


@pytest.mark.skipif(
    not all(map(shutil.which, ("unshare", "nsenter", "ip"))), reason="needs unshare, nsenter and ip (Linux)"
)
def test_the_browser_on_an_internet_of_its_own() -> None:
    command = ["unshare", "--map-root-user", "--net", sys.executable, public_web.__file__]
    environment = {**os.environ, "PYTHONPATH": str(Path(public_network.__file__).parent)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    if run.returncode == public_network.UNAVAILABLE or "unshare" in run.stderr:
        pytest.skip(f"no network namespaces here: {run.stderr.strip()}")
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    searched, clicked, opened, followed, rebound, again, myself = result["seen"]
    assert "【0†Result 0†pictures.test】" in searched[0][1]
    assert [metadata for metadata, _ in clicked] == [
        "quote_result [7†source]", "quote_result [8†source]", *["system_error"] * 5
    ]  # fmt: skip
    assert "The good page links on." in clicked[0][1]
    assert "TITLE: Next\nURL: https://pictures.test/next\n" in clicked[1][1]
    reasons = ["not public", "not public", "not public", "is this server itself", "port 8888 is not allowed"]
    assert [reason in text for reason, (_, text) in zip(reasons, clicked[2:], strict=True)] == [True] * 5
    assert "The good page links 【0†on】." in opened[0][1]
    assert followed[0][0] == "quote_result [9†source]"
    assert "TITLE: Good" in rebound[0][1]  # while its address is public
    assert "not public" in again[0][1]
    assert "is this server itself" in myself[0][1]
    assert result["asked"] == [0, 1]
    assert result["sources"] == [
        "http://pictures.test/good", "https://pictures.test/next", "http://pictures.test/next", "http://rebind.test/good"
    ]  # fmt: skip

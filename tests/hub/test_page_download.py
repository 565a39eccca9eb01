"""A first visit: the page is there while the model is being fetched, and says how far that is."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from hub_servers import FakeHub, environment, make_bytes

PARTS = {"model-00001-of-00002.safetensors": 2_400_000, "model-00002-of-00002.safetensors": 800_000}
REPOSITORY = {
    "config.json": json.dumps({"model_type": "glm"}).encode(),
    "model.safetensors.index.json": json.dumps({"weight_map": dict(zip("ab", PARTS, strict=True))}).encode(),
    **{name: make_bytes(count, count) for name, count in PARTS.items()},
}


def test_the_page_tells_bytes_and_share_of_a_download(tmp_path: Path) -> None:
    hub = FakeHub("org/toy", dict(REPOSITORY))
    hub.held = "model-00002-of-00002.safetensors"
    total = sum(map(len, REPOSITORY.values()))
    with hub.serving():
        command = [sys.executable, "-m", "glm4", "ui", "org/toy", "--no-browser", "--no-save", "--port", "0"]
        with subprocess.Popen(
            command, env=environment(tmp_path, endpoint=hub.url), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
            text=True,
        ) as program:  # fmt: skip
            try:
                assert program.stderr is not None
                line = program.stderr.readline()
                threading.Thread(target=program.stderr.read, daemon=True).start()
                (url,) = re.findall(r"http://127\.0\.0\.1:\d+", line)
                share = (total - PARTS[hub.held]) / total
                model = wait(url, lambda model: model["progress"] == share)
                assert model["state"] == "loading"
                assert model["stage"] == f"pulling org/toy, {share:.0%} of {total / 1e6:.0f} MB"
                assert httpx.get(f"{url}/ui/operator").json()["models"][0]["progress"] == share
                hub.released.set()
                model = wait(url, lambda model: model["state"] == "failed")
                assert "config.json" in model["error"]
                program.send_signal(signal.SIGTERM)
                assert program.wait(60) == 0
            finally:
                program.kill()


def wait(url: str, condition: Any) -> Any:
    """The model, once it is so."""
    deadline = time.monotonic() + 60
    while True:
        (model,) = httpx.get(f"{url}/ui/session").json()["models"]
        if condition(model):
            return model
        assert time.monotonic() < deadline, model
        time.sleep(0.05)

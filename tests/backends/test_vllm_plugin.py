"""The plugin for vLLM: a plain server of vLLM finds it, and a vLLM that it does not know stays as it is."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vllm_pictures import CONTEXT, LAYOUT, MODEL, PARAMS, UNNAMED, Answer, answers, assert_equal, with_picture

import vision_folder as vf
from glm4.backends.base import ModelFiles
from glm4.backends.vllm import plugin
from glm4.backends.vllm.overrides import model_overrides
from glm4.errors import UnsupportedModelError
from glm4.multimodal.image import ImageDecoder
from glm4.open_model import open_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).parents[2]
START = 600  # seconds in which the server must answer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vf.write_vision_folder(tmp_path_factory.mktemp("vllm") / "glm-4v", model=MODEL)


def _entry_point(folder: Path) -> Path:
    """Installed in a folder of its own, what pyproject.toml declares: an editable install may be older."""
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(r'^\[project\.entry-points\."vllm\.general_plugins"\]\n(\w+) = "(.+)"$', text, re.MULTILINE)
    assert found is not None
    info = folder / "glm4_declared-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: glm4-declared\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{found[1]} = {found[2]}\n")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's own, started with nothing about GLM-4V; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = [str(_entry_point(tmp_path_factory.mktemp("site"))), str(ROOT / "src")]
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port),
        "--host", "127.0.0.1", "--skip-tokenizer-init", "--enable-scale-out", "--dtype", "float32",
        "--max-model-len", str(CONTEXT), "--enforce-eager", "--generation-config", "vllm",
        "--kv-cache-memory-bytes", str(256 << 20),
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("log") / "vllm.log"
    with log.open("wb") as out:
        running = subprocess.Popen(
            command,
            env={**environment, "PYTHONPATH": os.pathsep.join(path), "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait(running, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        running.terminate()
        running.wait(60)


def _wait(running: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end:
        if running.poll() is not None:
            break
        with suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(1)
    pytest.fail("vLLM's server does not answer:\n" + log.read_text()[-6000:])


def _png(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (170, 230, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def _post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.load(response)


def test_a_plain_server_has_the_right_positions(server: str, folder: Path) -> None:
    """A picture larger than the model's, which vLLM decodes and our class resizes, as our own text side does it."""
    file = _png(11)
    prompt = with_picture(25, 15, ImageDecoder(LAYOUT.size).decode(file), "a file")
    opened = open_model(str(folder), options={"dtype": "fp32", "max_model_len": CONTEXT})
    expected = answers(opened.backend, {"it": prompt})["it"]
    opened.close()
    body = {
        "model": str(folder),
        "token_ids": prompt.short_ids,
        "content_parts": [
            {"type": "image_url", "url": "data:image/png;base64," + base64.b64encode(file).decode()},
        ],
        "sampling_params": {
            "temperature": 0, "max_tokens": PARAMS.max_tokens, "logprobs": 1, "ignore_eos": True,
            "logit_bias": dict.fromkeys(map(str, UNNAMED), -100),
        },
    }  # fmt: skip
    choice = _post(f"{server}/inference/v1/generate", body)["choices"][0]
    found: Answer = (choice["token_ids"], [one["logprob"] for one in choice["logprobs"]["content"]], 0)
    assert_equal(found, expected)


def test_a_vllm_that_it_does_not_know_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, folder: Path
) -> None:
    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    models = {name: model for name, model in ModelRegistry.models.items() if not name.lower().startswith("glm4v")}
    monkeypatch.setattr(ModelRegistry, "models", dict(models))
    configs = dict(_CONFIG_REGISTRY)
    with caplog.at_level(logging.WARNING, "glm4"):
        assert not plugin.register()
        monkeypatch.setattr("importlib.metadata.version", lambda name: "0.40.0")
        assert not plugin.register()
    assert ModelRegistry.models == models
    assert dict(_CONFIG_REGISTRY) == configs
    assert [one.levelname for one in caplog.records if one.name.startswith("glm4")] == ["WARNING"] * 2
    assert "0.40.0" in caplog.text
    with pytest.raises(UnsupportedModelError, match=r"tiny sees pictures.*wrong positions"):
        model_overrides(_files(folder))


def _files(folder: Path) -> ModelFiles:
    opened = open_model(str(folder), options={"dtype": "fp32", "max_model_len": CONTEXT})
    opened.close()
    assert opened.checkpoint is not None
    return ModelFiles(
        "tiny",
        opened.processor.tokenizer,
        MODEL.text.vocab_size,
        CONTEXT,
        folder,
        opened.checkpoint.variant,
        image=LAYOUT,
    )


def test_it_may_be_called_again() -> None:
    from vllm.model_executor.models.registry import ModelRegistry

    assert plugin.register()
    assert plugin.register()
    assert ModelRegistry.models["GLM4VForCausalLM"].module_name == "glm4.backends.vllm.glm4v"


def test_positions() -> None:
    from glm4.backends.vllm.glm4v import picture_positions

    assert picture_positions(4, []).tolist() == [0, 1, 2, 3]
    assert picture_positions(10, [(2, 6)]).tolist() == [0, 1, 2, 3, 3, 3, 3, 4, 5, 6]
    assert picture_positions(8, [(0, 4), (4, 3)]).tolist() == [0, 1, 1, 2, 3, 4, 5, 6]

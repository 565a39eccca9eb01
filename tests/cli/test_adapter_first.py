"""An adapter of another model is refused before weights are read."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from adapter_files import factors, settings, write_adapter
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.cli import main
from tiny import tiny_model, write_folder


def adapter_of(model: Path, folder: Path, *, layers: int = 1) -> Path:
    """An adapter of a model with `layers` times as many layers."""
    with open_checkpoint(model) as checkpoint:
        config = replace(checkpoint.config, num_hidden_layers=layers * checkpoint.config.num_hidden_layers)
    return write_adapter(folder, factors(config), settings())


@pytest.mark.parametrize("command", ["chat", "generate", "serve"])
def test_before_weights(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "model", tiny_model())
    adapter = str(adapter_of(folder, tmp_path / "other", layers=2))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr("glm4.checkpoints.checkpoint.Checkpoint.load_rows", lambda *_, **__: pytest.fail("was read"))
    monkeypatch.setattr("glm4.llm.LLM.__init__", lambda *_, **__: pytest.fail("was loaded"))
    lora = ["--lora", f"it={adapter}"] if command == "serve" else ["--adapter", adapter, "hi"]
    assert main([command, "-m", str(folder), *lora]) == 1
    assert "not a module of this model" in " ".join(capsys.readouterr().err.split())


def test_the_name_of_the_base_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "model", tiny_model())
    adapter = adapter_of(folder, tmp_path / "it")
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "/nowhere/else"}))
    assert main(["generate", "-m", str(folder), "--adapter", str(adapter), "hi", "--max-tokens", "1"]) == 0
    assert capsys.readouterr().out

"""`glm4 merge`, through the command line, and a chat with what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from processes import run

from adapter_files import factors, settings, write_adapter
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.cli import main
from tiny import tiny_model, write_folder, write_gguf


def adapter_of(source: Path, folder: Path) -> Path:
    with open_checkpoint(source) as checkpoint:
        return write_adapter(folder, factors(checkpoint.config, scale=0.1), settings())


@pytest.mark.parametrize("kind", ["chatglm", "gguf"])
def test_merge_then_describe_then_chat(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gguf = kind == "gguf"
    source = write_gguf(tmp_path / "m.gguf", "glm4") if gguf else write_folder(tmp_path / "m", tiny_model("chatglm"))
    adapter, out = adapter_of(source, tmp_path / "run" / "checkpoint-7"), tmp_path / "out"
    assert main(["merge", str(source), str(adapter.parent), "-o", str(out), "--shard-size", "100KB"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Glm4ForCausalLM, bf16: " if gguf else "GlmForCausalLM, bf16: ")
    assert "8 matrices compared: the largest error is " in shown
    assert "the adapter itself moves them by " in shown
    assert shown.endswith(f"{out}\n")
    assert main(["info", str(out), "--json"]) == 0
    capsys.readouterr()
    answer = run("chat", "-m", str(out), "hello", "--max-tokens", "3", home=tmp_path / "home")
    assert answer.returncode == 0, answer.stderr
    options = ["-o", str(out), "--force", "--json", "--no-check", "--dtype", "fp32"]
    assert main(["merge", str(source), str(adapter), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["path"], report["dtype"], report["check"]["logits"]) == (str(out), "fp32", None)


@pytest.mark.parametrize(
    ("adapter", "options", "says"),
    [
        ("a", ["-o", "-"], "standard output cannot be"),
        ("a", ["-o", "out", "--dtype", "int8"], "bf16 or fp32, not 'int8'"),
        ("a", ["-o", "out", "--shard-size", "5"], "--shard-size is a size such as 5GB"),
        ("a", ["-o", "m"], "holds the model"),
        ("a", ["-o", "a", "--force"], "holds 'adapter_"),
        ("m", ["-o", "out"], "there is no adapter at m"),
        ("prefix", ["-o", "out"], "cannot be merged; use it beside the model"),
        ("other", ["-o", "out"], "which is not a module of this model with 1 layers"),
    ],
)
def test_mistakes(
    adapter: str,
    options: list[str],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is noticed before weights are read; nothing is written."""
    monkeypatch.chdir(tmp_path)
    source = write_folder(tmp_path / "m", tiny_model(num_hidden_layers=1))
    adapter_of(source, tmp_path / "a")
    adapter_of(write_folder(tmp_path / "m2"), tmp_path / "other")
    prefix = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}
    write_adapter(tmp_path / "prefix", {"prompt_embeddings": np.zeros((4, 64), np.float32)}, prefix)
    before = sorted(tmp_path.iterdir())
    assert main(["merge", "m", adapter, *options]) != 0
    assert says in " ".join(capsys.readouterr().err.split())
    assert sorted(tmp_path.iterdir()) == before

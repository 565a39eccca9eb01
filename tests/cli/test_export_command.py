"""`glm4 export`, through the command line, and a chat with what it wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import run

from adapter_files import factors, settings, write_adapter
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.cli import main
from glm4.export.targets import TARGETS
from tiny import tiny_model, write_folder, write_gguf


def test_export_then_describe_then_chat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_gguf(tmp_path / "m.gguf", "chatglm"), tmp_path / "out.gguf"
    assert main(["export", str(source), "--to", "gguf", "--dtype", "q8_0", "-o", str(out)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("chatglm, q8_0: 17 tensors, ")
    assert shown.endswith(f"{out}\n")
    assert main(["info", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dtypes"]["Q8_0"] == 10
    answer = run("chat", "-m", str(out), "hello", "--max-tokens", "3", home=tmp_path / "home")
    assert answer.returncode == 0, answer.stderr


def test_export_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_gguf(tmp_path / "m.gguf", "qwen2"), tmp_path / "out.gguf"
    assert main(["export", str(source), "--to", "gguf", "-o", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == {
        "path": str(out),
        "architecture": "qwen2",
        "dtype": "bf16",
        "tensors": 26,
        "parameters": report["parameters"],
        "bytes": out.stat().st_size,
        "notes": [],
    }


def test_a_folder_in_shards_then_a_chat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_gguf(tmp_path / "m.gguf", "chatglm"), tmp_path / "out"
    options = ["--to", "hf", "--shard-size", "100KB", "-o", str(out)]
    assert main(["export", str(source), *options]) == 0
    assert capsys.readouterr().out.startswith("GlmForCausalLM, bf16: ")
    assert len(list(out.glob("model-*.safetensors"))) > 1
    answer = run("chat", "-m", str(out), "hello", "--max-tokens", "3", home=tmp_path / "home")
    assert answer.returncode == 0, answer.stderr
    assert main(["export", str(source), *options, "--force", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert sorted(report["files"]) == sorted(file.name for file in out.iterdir())


def test_an_adapter_alone_and_beside_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_gguf(tmp_path / "m.gguf", "chatglm")
    with open_checkpoint(source) as checkpoint:
        adapter = str(write_adapter(tmp_path / "adapter", factors(checkpoint.config), settings()))
    assert main(["export", str(source), "--to", "gguf", "--lora", adapter, "-o", str(tmp_path / "a.gguf")]) == 0
    assert capsys.readouterr().out.startswith("chatglm, f32: ")  # the default of adapters, not of models
    out = tmp_path / "ollama"
    assert main(["export", str(source), "--to", "ollama", "--lora", adapter, "-o", str(out)]) == 0
    assert capsys.readouterr().out.endswith(f"ollama create ollama -f {out}/Modelfile\n")
    assert {file.name for file in out.iterdir()} == {"Modelfile", "adapter.gguf", "model.gguf"}


def test_the_help_names_every_format_and_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for target in TARGETS.values():
        assert f"{target.name}: {', '.join(target.dtypes)}" in shown
        assert target.about in shown


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--to", "hf", "-o", "out", "--lora", "adapter"], "has no use for --lora; it belongs to --to gguf, ollama"),
        (["--to", "hf", "-o", "out", "--shard-size", "5"], "--shard-size is a size such as 5GB"),
        (["--to", "ollama", "-o", "out", "--shard-size", "5GB"], "has no use for --shard-size"),
        (["--to", "hf", "-o", "out", "--dtype", "q8_0"], "--to hf writes bf16, fp32, fp16, not 'q8_0'"),
        (["--to", "hf", "-o", "."], "holds the model to be exported"),
        (["--to", "hf", "-o", "old.gguf"], "is not a folder"),
        (["--to", "onnx", "-o", "out.gguf"], "--to is one of gguf"),
        (["--to", "gguf", "-o", "-"], "standard output cannot"),
        (["--to", "gguf", "-o", "out.gguf", "--dtype", "q2_k"], "not 'q2_k'"),
        (["--to", "gguf", "-o", "m.gguf"], "is the model to be exported"),
        (["--to", "gguf", "-o", "old.gguf"], "--force replaces it"),
        (["--to", "gguf"], "missing option"),
    ],
)
def test_mistakes(
    options: list[str],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_gguf(tmp_path / "m.gguf", "qwen2")
    (tmp_path / "old.gguf").write_bytes(b"old")
    assert main(["export", "m.gguf", *options]) == 2
    assert says in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "old.gguf"]


# Arguments: the largest file, then those of `glm4 export`.
_LIMITED = """
import resource, signal, sys
from glm4.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(["export", *sys.argv[2:]]))
"""


def exported_with_limit(limit: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A limit on the size of files fails like a full disk: in the middle of writing."""
    words = [str(one) for one in (limit, *arguments)]
    return subprocess.run([sys.executable, "-c", _LIMITED, *words], capture_output=True, text=True, timeout=120)


def test_a_disk_that_fills_leaves_the_old_file(tmp_path: Path) -> None:
    source, out = write_gguf(tmp_path / "m.gguf", "qwen2"), tmp_path / "out" / "out.gguf"
    out.parent.mkdir()
    out.write_bytes(b"old")
    done = exported_with_limit(100_000, source, "--to", "gguf", "--dtype", "f32", "--force", "-o", out)
    assert done.returncode == 1, done.stderr
    assert "no room left" in done.stderr
    assert out.read_bytes() == b"old"
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(
    ("target", "dtype"),
    [
        ("hf", "fp32"),
        ("chatglm", "fp32"),
        ("ollama", "f32"),
        pytest.param("openvino", "fp32", marks=pytest.mark.backends),
    ],
)
def test_a_disk_that_fills_leaves_no_folder(tmp_path: Path, target: str, dtype: str) -> None:
    gguf = target == "ollama"
    source = write_gguf(tmp_path / "m.gguf", "chatglm") if gguf else write_folder(tmp_path / "m", tiny_model("chatglm"))
    out = tmp_path / "exports" / "out"
    out.parent.mkdir()
    done = exported_with_limit(100_000, source, "--to", target, "--dtype", dtype, "-o", out)
    assert done.returncode == 1, done.stderr
    assert "no room left" in done.stderr, done.stderr
    assert list(out.parent.iterdir()) == []

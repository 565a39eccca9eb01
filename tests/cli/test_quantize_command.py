"""`glm4 quantize` and what other commands make of its output, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import run

from glm4.cli import main
from tiny import tiny_model, write_folder, write_gguf


def test_quantize_then_describe_then_chat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_folder(tmp_path / "source"), tmp_path / "out"
    assert main(["quantize", str(source), "--to", "int4", "-o", str(out), "--no-calibrate"]) == 0
    captured = capsys.readouterr()
    shown = captured.out
    assert "without calibration (--calibrate is closer" in captured.err
    assert "of outputs" not in shown
    assert "gate_up" in shown
    assert "bits per weight all in" in shown
    assert shown.endswith(f"{out}\n")
    assert main(["info", str(out), "--verify", "--json"]) == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert facts["format"] == "packed"
    assert facts["dtypes"]["int4"] == 10
    assert facts["verified"] is True
    assert "packed as int4 from source" in facts["notes"]
    assert "sha256" in captured.err
    assert main(["plan", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "int4"
    assert main(["plan", str(out), "--dtype", "bf16"]) == 2
    answer = run("chat", "-m", str(out), "hello", "--max-tokens", "3", home=tmp_path / "home")
    assert answer.returncode == 0, answer.stderr
    refused = run("chat", "-m", str(out), "hello", "--dtype", "int8", home=tmp_path / "home")
    assert refused.returncode == 2
    assert b"packed as int4" in refused.stderr


@pytest.mark.parametrize("target", ["int8", "int4"])
def test_calibration_is_the_default_of_small_models(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glm4.quantization.checkpoint.SEQUENCES", 1)
    source, out = write_folder(tmp_path / "source"), tmp_path / "out"
    assert main(["quantize", str(source), "--to", target, "-o", str(out)]) == 0
    captured = capsys.readouterr()
    assert f"{target} with calibration: about 1 min here" in captured.err
    assert "of outputs" in captured.out
    assert main(["info", str(out), "--verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dtypes"][target] == 10
    answer = run("chat", "-m", str(out), "hello", "--max-tokens", "3", home=tmp_path / "home")
    assert answer.returncode == 0, answer.stderr


def test_quantize_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_gguf(tmp_path / "model.gguf", "qwen2"), tmp_path / "out"
    assert main(["quantize", str(source), "--to", "int8", "-o", str(out), "--json", "--no-calibrate"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["path"] == str(out)
    assert report["kinds"]["down"]["format"] == "int8"
    assert report["bytes"] == (out / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--to", "int3", "-o", "out"], "int8 or int4"),
        (["--to", "int4"], "missing option"),
        (["--to", "int4", "-o", "source"], "holds the model"),
        (["--to", "int4", "-o", "source", "--force"], "holds the model"),
        (["--to", "int4", "-o", "empty"], "--force replaces it"),
        (["--to", "int4", "-o", "full"], "is not a packed checkpoint"),
        (["--to", "int4", "-o", "full", "--force"], "is not a packed checkpoint"),
        (["--to", "int4", "-o", "full/file"], "is not a packed checkpoint"),
    ],
)
def test_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "source")
    for folder in ("empty", "full"):
        (tmp_path / folder).mkdir()
    (tmp_path / "full" / "file").touch()
    assert main(["quantize", "source", *options]) == 2
    assert says in capsys.readouterr().err


def test_verify_is_for_packed_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(write_folder(tmp_path / "source")), "--verify"]) == 2
    assert "packed checkpoints" in capsys.readouterr().err


def test_verify_finds_a_flipped_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_folder(tmp_path / "source", tiny_model()), tmp_path / "out"
    assert main(["quantize", str(source), "--to", "int4", "-o", str(out), "--no-calibrate"]) == 0
    data = bytearray((out / "model.safetensors").read_bytes())
    data[-5000] ^= 4
    (out / "model.safetensors").write_bytes(data)
    assert main(["info", str(out), "--verify"]) == 1
    assert "damaged" in capsys.readouterr().err


def test_standard_output_cannot_be_a_folder(tmp_path: Path) -> None:
    done = run("quantize", str(write_folder(tmp_path / "m")), "--to", "int8", "-o", "-", home=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"--output is a folder" in done.stderr

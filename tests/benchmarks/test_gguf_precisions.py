"""The benchmark of dtypes on a GGUF file, on a tiny one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gguf_precisions
import tiny


def test_kept_codes_are_nearer_than_rounded_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny.write_gguf(tmp_path / "m.gguf", "llama", quantization="Q4_0", exceptions={"token_embd.weight": "Q8_0"})
    args = ["--model", str(path), "--tokens", "1500", "--rounds", "1"]
    assert gguf_precisions.main([*args, "--weights", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    scores = {score["format"]: score for score in report["scores"]}
    assert list(scores) == [f"{dtype}{mode}" for dtype in ("int8", "stored", "int4") for mode in (" weights", "+a8")]
    assert all(score["tokens"] == 1536 for score in scores.values())
    kld = {name: score["kld"] for name, score in scores.items()}
    assert 0 < kld["stored weights"] < kld["int4 weights"] / 4
    assert kld["stored+a8"] < kld["int4+a8"]
    size = {dtype: scores[f"{dtype}+a8"]["bits_per_weight"] for dtype in ("int4", "stored", "int8")}
    assert size["int4"] < size["stored"] < size["int8"]
    found = report["speeds"]
    assert found["int4"]["bytes"] < found["stored"]["bytes"] < found["int8"]["bytes"]
    assert found["int8"]["decode"] == found["int8"]["prefill"] == 1
    assert gguf_precisions.main(args) == 0
    table = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0] for row in table[2:5]] == ["| int8+a8", "| stored+a8", "| int4+a8"]
    assert len({row.count("|") for row in table[:5]}) == 1


def test_a_file_without_4_bit_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny.write_gguf(tmp_path / "m.gguf", "llama", quantization="Q8_0")
    assert gguf_precisions.main(["--model", str(path), "--tokens", "0", "--rounds", "1"]) == 0
    output = capsys.readouterr()
    assert "no 4-bit tensors" in output.err
    assert json.loads(output.out).keys() == {"int8", "int4"}

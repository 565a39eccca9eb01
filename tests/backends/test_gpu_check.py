"""`tools/gpu_check.py` without a GPU: the same code on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.append(str(TOOLS))

from gpu_check import COMPARED, LENGTHS, compare  # noqa: E402

ARGUMENTS = ("--shape", "tiny", "--device", "cpu", "--dtype", "fp32", "--requests", "1", "4", "--new", "4")


def check(folder: Path, *backends: str) -> dict[str, Any]:
    command = [sys.executable, str(TOOLS / "gpu_check.py"), *ARGUMENTS, "--backends", *backends]
    command += ["--folder", str(folder), "--json", str(folder / "report.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    for name in backends:
        assert name in done.stdout
    assert [path.name for path in folder.iterdir()] == ["report.json"]
    return report


def test_our_own_engine_is_measured(tmp_path: Path) -> None:
    report = check(tmp_path, "local")
    rates = report["backends"]["local"]["rates"]
    assert [rate["requests"] for rate in rates] == [1, 4]
    assert all(rate[name] > 0 for rate in rates for name in ("prefill", "decode", "first_token"))
    assert report["failed"] == {}


@pytest.mark.backends
def test_two_backends_agree_in_float32(tmp_path: Path) -> None:
    (found,) = check(tmp_path, "local", "transformers")["comparisons"]
    assert found["equal"] == found["answers"] == len(LENGTHS)
    assert found["equal_tokens"] == len(LENGTHS) * COMPARED
    assert 0 < found["logprob_difference_max"] < 1e-3


def test_a_difference_is_found() -> None:
    one: dict[str, Any] = {"ids": [1] * COMPARED, "logprobs": [-1.0] * COMPARED}
    ids, logprobs = [*one["ids"]], [*one["logprobs"]]
    ids[5], logprobs[2], logprobs[9] = 7, -1.5, -9.0  # what follows another id is no longer comparable
    found = compare([one, one], [one, {"ids": ids, "logprobs": logprobs}])
    assert (found["equal"], found["first_divergence"], found["equal_tokens"]) == (1, 5, COMPARED + 5)
    assert found["logprob_difference_max"] == 0.5

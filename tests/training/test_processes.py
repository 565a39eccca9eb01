"""Several processes on one machine take the steps of one process, and write one set of files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from run_files import env, losses, run_cli, write_inputs
from safetensors import safe_open

from tiny import write_folder

pytestmark = pytest.mark.train

COURSE = ["--validation-split", "5", "--max-steps", "9", "--save-steps", "4", "--set", "logging_steps=1"]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_processes_are_one_that_accumulates(tmp_path: Path, method: str) -> None:
    inputs = [*write_inputs(tmp_path, count=20), *COURSE, "--method", method]
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_cli(*inputs, "-o", str(one), "--accumulation", "2").returncode == 0
    done = run_cli(*inputs, "-o", str(two), processes=2)
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stderr
    assert done.stdout.count("glm4 chat") == 1
    ours, theirs = losses(one), losses(two)
    assert [row[0] for row in theirs] == [row[0] for row in ours]
    for left, right in zip(ours, theirs, strict=True):
        for a, b in zip(left[1:], right[1:], strict=True):
            assert a == (b if b is None else pytest.approx(b, rel=1e-5))
    extra = {"rng_state_0.pth", "rng_state_1.pth", "rng_state.pth"}
    files = [
        {path.relative_to(run).as_posix() for path in run.rglob("*") if path.name not in extra} for run in (one, two)
    ]
    assert files[0] == files[1]
    (two / "checkpoint-9" / "run_state.json").unlink()
    before = losses(two)
    assert run_cli(*inputs, "-o", str(two), processes=2).returncode == 0
    assert losses(two) == before


def test_checkpoints_of_divided_parameters(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base")
    script = Path(__file__).with_name("sharded_run.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(script), str(base), str(tmp_path / "sharded")],
        env=env({"PYTHONPATH": str(Path(__file__).parent)}), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["losses"] == pytest.approx(found["expected"], rel=1e-5)
    with safe_open(tmp_path / "sharded" / "adapter" / "adapter_model.safetensors", "np") as file:
        names = list(file.keys())
    with safe_open(tmp_path / "sharded" / "trainable.safetensors", "np") as file:
        trained = list(file.keys())
    assert len(names) == len(trained) == 24

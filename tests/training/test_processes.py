"""Several processes on one machine take the steps of one process, and write one set of files."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from run_files import losses, run_cli, write_inputs

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

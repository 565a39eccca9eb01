"""A run that is killed, stopped or out of disk goes on with the same numbers."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

from run_files import (
    PATIENCE,
    STOPPED,
    command,
    config_of_flags,
    env,
    finish_run,
    losses,
    start_run,
    write_inputs,
    write_rows,
)

from glm4.errors import DiskFullError, InvalidRequestError, TrainingError
from glm4.training.run import finetune
from glm4.training.run_folder import read_status

pytestmark = pytest.mark.train

STEPS = 24
COURSE = [
    "--epochs", "2", "--save-steps", "3", "--validation-split", "4", "--set", "logging_steps=2",
    "--set", "lora.lora_dropout=0.2", "--set", "save_total_limit=2", "--eval-steps", "5",
]  # fmt: skip


def wait_for_step(run: Path, step: int) -> None:
    """Until metrics of this step, or of a later one, are there."""
    deadline = time.monotonic() + PATIENCE
    while not any(row[0] >= step for row in losses(run)):
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.timeout(1800)
def test_kill_at_random_steps_changes_no_number(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path, count=28)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    config = config_of_flags(inputs, COURSE, ["-o", str(killed)])
    assert finish_run(replace(config, output=str(whole))) == 0
    for step in sorted(random.Random(time.time_ns()).sample(range(3, STEPS - 2), 3)):
        process = start_run(config)
        wait_for_step(killed, step)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert finish_run(config) == 0
    assert losses(killed) == losses(whole)
    assert losses(whole)[-1][0] == STEPS
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert len(list(killed.glob("checkpoint-*"))) <= 3  # the newest two and the best
    assert not list(killed.glob(".*partial"))


@pytest.mark.timeout(1800)
def test_sigterm_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path, count=28)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    course = [*COURSE, "--save-steps", "1000", "--eval-steps", "1000", "-o", str(stopped)]
    with subprocess.Popen(command(*inputs, *course), env=env({}), stderr=subprocess.PIPE, text=True) as process:
        wait_for_step(stopped, 2)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == STOPPED
    assert "the same command goes on" in errors
    (checkpoint,) = stopped.glob("checkpoint-*")
    assert 2 < int(checkpoint.name.partition("-")[2]) < STEPS
    assert read_status(stopped)["state"] == "stopped"
    assert not (stopped / "adapter_config.json").exists()
    config = config_of_flags(inputs, course)
    assert finish_run(config) == 0
    assert finish_run(replace(config, output=str(whole))) == 0
    assert losses(stopped) == losses(whole)
    assert read_status(stopped)["state"] == "done"


def test_a_full_disk_is_an_error_and_earlier_checkpoints_stay(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    run = tmp_path / "run"
    course = ["--max-steps", "8", "--save-steps", "2", "-o", str(run)]
    config = config_of_flags(inputs, course)
    whole = finetune(replace(config, output=str(tmp_path / "whole")))
    with smaller_files(60_000):  # the optimizer's state is larger, the rest is not
        with pytest.raises(DiskFullError, match="no room left"):
            finetune(config)
        assert not list(run.glob("checkpoint-*"))
        assert not list(run.glob(".*"))
        assert read_status(run)["state"] == "failed"
    finetune(replace(config, max_steps=8))
    assert losses(run) == losses(whole.output)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert len([path for path in before if path.parent.name == "checkpoint-4"]) > 5
    more = replace(config, output=str(run), save_steps=1)
    (run / "checkpoint-8" / "run_state.json").unlink()  # as if it had not been finished
    with smaller_files(60_000), pytest.raises(DiskFullError, match="goes on"):
        finetune(more)
    for path, content in before.items():
        if path.parent.name in ("checkpoint-4", "checkpoint-6"):
            assert path.read_bytes() == content


@contextmanager
def smaller_files(nbytes: int) -> Iterator[None]:
    """No file of this process may become larger: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    earlier = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, earlier)


def test_another_configuration_or_other_data_are_refused_by_name(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    config = config_of_flags(inputs, ["--max-steps", "3", "-o", str(tmp_path / "run")])
    finetune(config)
    with pytest.raises(InvalidRequestError, match=r"learning_rate was 0\.01 and is 0\.02; lora\.r was 8 and is 4"):
        finetune(replace(config, learning_rate=2e-2, lora=replace(config.lora, r=4)))
    before = losses(tmp_path / "run")
    finetune(replace(config, save_steps=7, per_device_eval_batch_size=3))  # nothing is left to do
    assert losses(tmp_path / "run") == before
    write_rows(tmp_path / "train.jsonl", 20)
    with pytest.raises(TrainingError, match="rows was 24 and is 20"):
        finetune(config)
    finetune(replace(config, resume=False, learning_rate=2e-2))
    assert [row[0] for row in losses(tmp_path / "run")] == [1, 3]


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    config = config_of_flags(write_inputs(tmp_path), ["--max-steps", "3", "-o", str(tmp_path / "run")])
    with pytest.raises(InvalidRequestError, match="name another folder"):
        finetune(config)

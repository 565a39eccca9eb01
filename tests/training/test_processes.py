"""Several processes on one machine take the steps of one process, and write one set of files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from run_files import PATIENCE, env, losses, run_cli, write_inputs
from safetensors import safe_open

from glm4.training.accelerator import accelerator_file, accelerators
from tiny import write_folder

pytestmark = [pytest.mark.train, pytest.mark.timeout(1800)]

COURSE = ["--validation-split", "5", "--max-steps", "9", "--save-steps", "4", "--set", "logging_steps=1"]


def test_two_processes_are_one_that_accumulates(tmp_path: Path) -> None:
    inputs = [*write_inputs(tmp_path, count=20), *COURSE]
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
        env=env({"PYTHONPATH": str(Path(__file__).parent)}), capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["losses"] == pytest.approx(found["expected"], rel=1e-5)
    with safe_open(tmp_path / "sharded" / "adapter" / "adapter_model.safetensors", "np") as file:
        names = list(file.keys())
    with safe_open(tmp_path / "sharded" / "trainable.safetensors", "np") as file:
        trained = list(file.keys())
    assert len(names) == len(trained) == 24


@pytest.mark.parametrize("name", accelerators())
def test_shipped_files_are_what_accelerate_reads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--config_file", str(accelerator_file(name)), "--num_processes", "8", "-m", "glm4", "finetune", "x.yaml"]
    args, given, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert (args.use_deepspeed, args.use_fsdp, args.multi_gpu) == (name[:4] == "zero", name == "fsdp", name == "ddp")
    assert args.num_processes == 8
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(given.deepspeed_config)  # as `accelerate launch` does
        _, found = prepare_deepspeed_cmd_env(args)
        assert found["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == name[4:]
    if args.use_fsdp:
        for key, value in prepare_multi_gpu_env(args).items():
            if "FSDP" in key:
                monkeypatch.setenv(key, value)
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2
        assert plugin.reshard_after_forward is True
        assert "FULL" in str(plugin.state_dict_type)

"""Whole runs with DPO and with answers at evaluations: every method, metrics, resumption."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from run_files import run_cli

from glm4.errors import InvalidRequestError
from glm4.training.config import DataConfig, PrefixConfig, TrainingConfig
from glm4.training.run import finetune
from glm4.training.run_folder import REFERENCES, SAMPLES, read_metrics
from tiny import write_folder

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("base"), chat_template=None)


def write_pairs(path: Path) -> Path:
    rows = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no way"} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_chats(path: Path) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "blue"}]} for i in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def configuration(base: Path, output: Path, data: Path, **changes: Any) -> TrainingConfig:
    settings: dict[str, Any] = {
        "model": str(base),
        "output": str(output),
        "data": DataConfig(train=(str(data),), validation=(str(data),)),
        "prefix": PrefixConfig(num_virtual_tokens=4),
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 6,
        "logging_steps": 1,
        "eval_steps": 3,
        "save_steps": 3,
        "device": "cpu",
    }
    return TrainingConfig(**(settings | changes))


def of(run: Path, name: str) -> list[float]:
    return [row[name] for row in read_metrics(run) if name in row]


RATES = {"lora": 2e-2, "ptuning_v2": 5e-2, "full": 2e-3, "freeze": 2e-3}


@pytest.mark.parametrize("method", list(RATES))
def test_dpo_learns_what_is_preferred(method: str, base: Path, tmp_path: Path) -> None:
    data, run = write_pairs(tmp_path / "pairs.jsonl"), tmp_path / "run"
    changes = {"freeze_layers": 1} if method == "freeze" else {}
    config = configuration(
        base, run, data, method=method, objective="dpo", dpo_beta=0.2, learning_rate=RATES[method], **changes
    )
    finetune(config)
    losses, rewards = of(run, "loss"), of(run, "eval_rewards/margins")
    if method != "ptuning_v2":  # which begins as the keys and values of some tokens
        assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # log 2: model and reference are the same
    assert losses[-1] < 0.3
    assert of(run, "rewards/accuracies")[-1] == of(run, "eval_rewards/accuracies")[-1] == 1
    assert rewards[-1] > 1
    assert of(run, "rewards/margins")[-1] == pytest.approx(
        of(run, "rewards/chosen")[-1] - of(run, "rewards/rejected")[-1], abs=1e-4
    )
    assert (run / REFERENCES).exists() == (method in ("full", "freeze"))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_dpo_goes_on_with_the_same_numbers(method: str, base: Path, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl")
    config = configuration(
        base,
        tmp_path / "whole",
        data,
        method=method,
        objective="dpo",
        learning_rate=RATES[method],
        lr_scheduler_type="constant",
    )
    finetune(config)
    stopped = replace(config, output=str(tmp_path / "run"))
    finetune(replace(stopped, max_steps=3))
    path = tmp_path / "run" / "training_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_steps": 6}))
    finetune(stopped)
    for name in ("loss", "eval_loss", "rewards/margins", "eval_rewards/chosen"):
        assert of(tmp_path / "run", name) == of(tmp_path / "whole", name)


def test_answers_at_evaluations(base: Path, tmp_path: Path) -> None:
    data, run = write_chats(tmp_path / "chats.jsonl"), tmp_path / "run"
    config = configuration(
        base, run, data, learning_rate=2e-2, max_steps=24, eval_steps=6, generate_every=2, generate_samples=5,
        generate_max_tokens=8,
    )  # fmt: skip
    finetune(config)
    assert len(of(run, "eval_loss")) == 4
    for name in ("exact_match", "rouge_l", "chrf", "right_stop"):
        early, late = of(run, f"eval_{name}")  # at steps 12 and 24
        assert 0 <= early <= late == 1
    samples = [json.loads(line) for line in (run / SAMPLES).read_text().splitlines()]
    assert [row["step"] for row in samples] == [12] * 5 + [24] * 5
    for row in samples:
        assert row["prompt"].endswith("?<|assistant|>")
        assert row["reference"] == "\nblue<|user|>"
        assert "blue" not in row["prompt"]
    assert all(row["answer"] == row["reference"] for row in samples[5:])


def test_answers_with_a_prefix_and_to_preferences(base: Path, tmp_path: Path) -> None:
    chats, pairs = write_chats(tmp_path / "chats.jsonl"), write_pairs(tmp_path / "pairs.jsonl")
    generation = {"generate_every": 1, "generate_samples": 2, "generate_max_tokens": 8}
    prefix = configuration(
        base,
        tmp_path / "prefix",
        chats,
        method="ptuning_v2",
        prefix=PrefixConfig(num_virtual_tokens=8),
        learning_rate=0.2,
        max_steps=40,
        eval_steps=40,
        **generation,
    )
    finetune(prefix)
    assert of(tmp_path / "prefix", "eval_exact_match") == [1.0]
    dpo = configuration(
        base, tmp_path / "dpo", pairs, objective="dpo", learning_rate=1e-3, max_steps=1, eval_steps=1, **generation
    )
    finetune(dpo)
    assert 0 <= of(tmp_path / "dpo", "eval_chrf")[0] <= 1
    row = json.loads((tmp_path / "dpo" / SAMPLES).read_text().splitlines()[0])
    assert row["reference"] == "\nyes<|user|>"


def test_validation_data_without_prompts_is_refused(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "text.txt"
    data.write_text("Once upon a time there was a text.\n" * 3)
    config = configuration(base, tmp_path / "run", data, generate_every=1)
    with pytest.raises(InvalidRequestError, match="generate_every needs validation data"):
        finetune(config)


@pytest.mark.slow
def test_two_processes_do_what_one_does_in_two_batches(base: Path, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl")
    flags = [
        "-m", str(base), "--data", str(data), "--validation", str(data), "--device", "cpu", "--method", "full",
        "--lr", "1e-3", "--batch-size", "2", "--max-steps", "2", "--eval-steps", "2", "--set", "objective=dpo",
        "--set", "logging_steps=1", "--set", "generate_every=1", "--set", "generate_samples=3",
        "--set", "generate_max_tokens=4",
    ]  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    for run, *more in ((one, "--accumulation", "2"), (two, "--accelerator", "ddp", "--processes", "2")):
        done = run_cli(*flags, "-o", str(run), *more)
        assert done.returncode == 0, done.stderr
    assert (one / SAMPLES).read_text() == (two / SAMPLES).read_text()
    for name in ("loss", "rewards/margins", "eval_loss", "eval_rewards/margins", "eval_chrf"):
        assert of(two, name) == pytest.approx(of(one, name), abs=1e-5)
        assert len(of(one, name)) == (1 if name.startswith("eval_") else 2)

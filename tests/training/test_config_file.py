"""Configurations from YAML and from the command line: what is read, what is refused and how."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("yaml")

from run_files import config_of_flags, write_inputs

from glm4.cli import main
from glm4.errors import InvalidRequestError
from glm4.training.accelerator import accelerator_file, accelerators, launch_command
from glm4.training.config import TrainingConfig
from glm4.training.config_file import as_dict, config_of, differences, presets, read_preset, read_yaml
from glm4.training.defaults import check_config, learning_rate
from tiny import write_folder


def written(folder: Path, text: str) -> Path:
    (folder / "config.yaml").write_text(text)
    return folder / "config.yaml"


def test_groups_lists_and_numbers_are_read(tmp_path: Path) -> None:
    text = """
model: starter
data: {train: a.jsonl, validation: [b.jsonl, c.jsonl]}
lora:
  r: 4
  use_dora: true
learning_rate: 2e-4
num_train_epochs: 2
report_to: tensorboard
"""
    config = config_of(read_yaml(written(tmp_path, text)), "config.yaml")
    assert config.data.train == ("a.jsonl",)
    assert config.data.validation == ("b.jsonl", "c.jsonl")
    assert (config.lora.r, config.lora.use_dora, config.learning_rate) == (4, True, 2e-4)
    assert config.num_train_epochs == 2.0
    assert config.report_to == ("tensorboard",)
    again = config_of(json.loads(json.dumps(as_dict(config))), "json")
    assert again == config
    assert differences(as_dict(config), replace(config, seed=1)) == {"seed": (42, 1)}
    assert differences(json.loads(json.dumps(as_dict(config))), config) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rte: 1", r"unknown key 'learning_rte'; did you mean learning_rate\?"),
        ("lora: {rank: 8, lora_alfa: 1}", r"unknown key 'lora.rank'"),
        ("lora: {lora_alfa: 1}", r"'lora.lora_alfa'; did you mean lora.lora_alpha\?"),
        ("r: 8", r"unknown key 'r'; did you mean lora.r\?"),
        ("train: a.jsonl", r"did you mean data.train\?"),
        ("lora: {r: eight}", "lora.r is a whole number, not 'eight'"),
        ("lora: 8", r"unknown key 'lora'"),
        ("seed: 1.5", "seed is a whole number"),
        ("learning_rate: .nan", "learning_rate is a number"),
        ("packing: 1", "packing is true or false"),
        ("method: lota", "method is one of lora, ptuning_v2, freeze, full, not 'lota'"),
        ("dtype: fp16", "fp16 cannot be trained: its gradients overflow"),
        ("data: {train: [1]}", "data.train is a list of texts"),
        ("- a\n- b", "lines such as"),
        ("a: [1", "not valid YAML"),
        ("seed: 1\nseed: 2", "appears twice"),
        ("a: &x [1]\nb: [*x, *x]", "aliases"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("a: " + "[" * 5000, "not valid YAML"),
        ("a: " + "x" * (1 << 20), "more than 1048576 bytes"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        config_of(read_yaml(written(tmp_path, text)), "config.yaml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": ""}, "model names no model"),
        ({"output": ""}, "output names no folder"),
        ({"data.train": []}, "data.train names no data"),
        ({"lora.r": 0}, "lora.r is between 1 and 512, not 0"),
        ({"learning_rate": -1}, "learning_rate is between"),
        ({"method": "freeze"}, "freeze_layers is needed"),
        ({"freeze_layers": 2}, "is for method freeze"),
        ({"method": "full", "quantize": "nf4"}, "quantize keeps the base in 4 bits"),
        ({"data.streaming": True}, "max_steps is needed"),
        ({"packing": True, "objective": "dpo"}, "packing is not for preferences"),
        ({"report_to": ["mlflow"]}, "tensorboard, wandb, swanlab"),
        ({"num_train_epochs": 0}, "num_train_epochs is above 0"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, object], said: str) -> None:
    valid = {"model": "starter", "output": "runs/x", "data.train": ["a.jsonl"]}
    check_config(config_of(valid, "test"))
    with pytest.raises(InvalidRequestError, match=said):
        check_config(config_of(valid | changes, "test"))


def test_every_method_has_a_learning_rate_of_its_own() -> None:
    base = TrainingConfig()
    assert learning_rate(base) == 2e-4
    assert learning_rate(replace(base, learning_rate=1e-3)) == 1e-3
    assert (
        learning_rate(replace(base, method="full"))
        < learning_rate(base)
        < learning_rate(replace(base, method="ptuning_v2"))
    )
    assert learning_rate(replace(base, objective="dpo")) < learning_rate(base)


def test_presets_are_configurations() -> None:
    assert {"glm-4-9b-chat-lora", "glm-4-9b-chat-qlora", "glm-4-9b-chat-sft", "starter-laptop"} <= set(presets())
    for name, about in presets().items():
        config = config_of({**read_preset(name), "output": "x", "data.train": ["a"]}, name)
        check_config(config)
        assert config.model in ("glm-4-9b-chat", "starter")
        assert len(about) > 20
        if config.accelerator:
            assert accelerator_file(config.accelerator).is_file()
    with pytest.raises(InvalidRequestError, match="no preset 'x'; there is glm"):
        read_preset("x")


def test_options_have_precedence_over_file_and_preset(tmp_path: Path) -> None:
    config = config_of_flags(["--preset", "starter-laptop", "--rank", "3", "--set", "lora.lora_alpha=7"])
    assert (config.lora.r, config.lora.lora_alpha, config.data.max_length) == (3, 7, 512)
    lists = config_of_flags(["--data", "a", "--data", "b", "--set", "report_to=wandb", "--set", "report_to=swanlab"])
    assert lists.data.train == ("a", "b")
    assert lists.report_to == ("wandb", "swanlab")


def test_a_dry_run_shows_configuration_and_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = write_inputs(tmp_path)
    assert main(["finetune", *inputs, "-o", str(tmp_path / "run"), "--validation-split", "0.25", "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["data"]["validation_split"] == 0.25
    assert "24 rows, 24 samples (6 for validation)" in shown.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty"),
        ('{"messages": [{"role": "user"', "train.jsonl:1"),
        ('{"messages": [{"role": "wizard", "content": "x"}]}', "wizard"),
    ],
)
def test_bad_data_ends_the_run_before_weights_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    folder = write_folder(tmp_path / "base")
    (tmp_path / "train.jsonl").write_text(content)
    data = str(tmp_path / "train.jsonl")
    assert main(["finetune", "-m", str(folder), "--data", data, "-o", str(tmp_path / "run"), "--dry-run"]) != 0
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize("arguments", [["--dtype", "fp16"], ["--set", "lora.rnk=3"], ["--set", "x"], ["no.yaml"]])
def test_a_wrong_command_line_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "-m", "starter", "-o", "x", "--data", "y", *arguments]) == 2
    assert "error: " in capsys.readouterr().err


def test_commands_for_several_processes(tmp_path: Path) -> None:
    assert accelerators() == ["ddp", "fsdp", "zero2", "zero3"]
    config = replace(TrainingConfig(), accelerator="zero3")
    command = launch_command(config, 8, ["finetune", "config.yaml"])
    assert command[-3:] == ["glm4", "finetune", "config.yaml"]
    assert command[command.index("--num_processes") + 1] == "8"
    assert command[command.index("--config_file") + 1].endswith("zero3.yaml")
    with pytest.raises(InvalidRequestError, match="neither a file nor one of ddp, fsdp, zero2, zero3"):
        launch_command(replace(config, accelerator="zero9"), 8, [])

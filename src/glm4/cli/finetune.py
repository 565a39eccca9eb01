"""`glm4 finetune`: train a model on your data."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from glm4.cli.parameters import Argument, Exit, Option, UsageError
from glm4.training.config import TrainingConfig
from glm4.training.config_file import presets

if TYPE_CHECKING:
    from glm4.training.run import RunResult

EXAMPLES = """
glm4 finetune -m starter --data train.jsonl -o runs/mine
glm4 finetune --preset glm-4-9b-chat-lora --data train.jsonl -o runs/mine
glm4 finetune config.yaml --learning-rate 1e-4 --set lora.use_dora=true
glm4 finetune config.yaml --dry-run
"""

_DATA, _METHOD, _COURSE = "Data", "Method", "Course of training"
_D = TrainingConfig()
_STOPPED = 130


@dataclass(frozen=True)
class FinetuneOptions:
    """Options for the usual keys of the configuration; None is what the file says."""

    model: Annotated[
        str | None, Option("--model", "-m", metavar="MODEL", help="An installed model, a folder, or a GGUF file.")
    ] = None
    output: Annotated[
        str | None,
        Option("--output", "-o", metavar="DIR", help="Folder of the run: checkpoints, metrics and the result."),
    ] = None
    data: Annotated[
        list[str] | None,
        Option(
            "--data",
            metavar="FILE",
            panel=_DATA,
            help="Rows to train on: a .jsonl, .json, .csv, .parquet or .txt file, a folder, or a data set of the hub;"
            " may be repeated.",
        ),
    ] = None
    validation: Annotated[
        list[str] | None,
        Option("--validation", metavar="FILE", panel=_DATA, help="Rows to evaluate with; may be repeated."),
    ] = None
    validation_split: Annotated[
        float | None,
        Option(metavar="N", panel=_DATA, help="Else this share, or number, of the training rows.", min=0),
    ] = None
    format: Annotated[
        str | None, Option("--format", metavar="NAME", panel=_DATA, help="Of the rows; by default it is recognized.")
    ] = None
    loss: Annotated[
        str | None,
        Option(
            "--loss",
            metavar="TURNS",
            panel=_DATA,
            help=f"Which turns of the assistant are learned: all, last, or text (no calls); default {_D.data.loss}.",
        ),
    ] = None
    max_length: Annotated[
        int | None,
        Option("--max-length", metavar="TOKENS", panel=_DATA, help=f"Of a sample; default {_D.data.max_length}."),
    ] = None
    method: Annotated[
        str | None,
        Option(
            "--method", metavar="NAME", panel=_METHOD, help=f"lora, ptuning_v2, freeze or full; default {_D.method}."
        ),
    ] = None
    quantize: Annotated[
        str | None,
        Option("--quantize", metavar="FORMAT", panel=_METHOD, help="nf4 keeps the base in 4 bits (QLoRA; a GPU)."),
    ] = None
    rank: Annotated[
        int | None, Option("--rank", metavar="N", panel=_METHOD, help=f"Of LoRA's factors; default {_D.lora.r}.")
    ] = None
    dtype: Annotated[
        str | None,
        Option("--dtype", metavar="FORMAT", panel=_METHOD, help="bf16 or fp32; by default bf16 on GPUs, fp32 else."),
    ] = None
    device: Annotated[
        str | None, Option("--device", metavar="NAME", panel=_METHOD, help="cpu, cuda or mps; default auto.")
    ] = None
    epochs: Annotated[
        float | None,
        Option(
            "--epochs",
            "--num-train-epochs",
            metavar="N",
            panel=_COURSE,
            help=f"Passes over the data; default {_D.num_train_epochs:g}.",
        ),
    ] = None
    max_steps: Annotated[
        int | None, Option("--max-steps", metavar="N", panel=_COURSE, help="End after this many steps instead.")
    ] = None
    batch_size: Annotated[
        int | None,
        Option(
            "--batch-size",
            "--per-device-train-batch-size",
            metavar="N",
            panel=_COURSE,
            help=f"Samples at a time; default {_D.per_device_train_batch_size}.",
        ),
    ] = None
    accumulation: Annotated[
        int | None,
        Option(
            "--accumulation",
            "--gradient-accumulation-steps",
            metavar="N",
            panel=_COURSE,
            help=f"Batches per step; default {_D.gradient_accumulation_steps}.",
        ),
    ] = None
    learning_rate: Annotated[
        float | None,
        Option("--learning-rate", "--lr", metavar="RATE", panel=_COURSE, help="By default one that fits the method."),
    ] = None
    seed: Annotated[
        int | None, Option("--seed", metavar="N", panel=_COURSE, help=f"Of order and dropout; default {_D.seed}.")
    ] = None
    eval_steps: Annotated[
        int | None,
        Option("--eval-steps", metavar="N", panel=_COURSE, help="Steps between evaluations; default: at checkpoints."),
    ] = None
    save_steps: Annotated[
        int | None,
        Option("--save-steps", metavar="N", panel=_COURSE, help=f"Steps between checkpoints; default {_D.save_steps}."),
    ] = None
    accelerator: Annotated[
        str | None,
        Option(
            "--accelerator",
            metavar="NAME",
            panel=_COURSE,
            help="Train with several processes: ddp, fsdp, zero2, zero3, or a file of `accelerate config`.",
        ),
    ] = None


# The options whose keys have other names.
_KEYS = {
    "data": "data.train",
    "validation": "data.validation",
    "validation_split": "data.validation_split",
    "format": "data.format",
    "loss": "data.loss",
    "max_length": "data.max_length",
    "rank": "lora.r",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "accumulation": "gradient_accumulation_steps",
}


def finetune(
    options: FinetuneOptions,
    config: Annotated[
        Path | None,
        Argument(
            metavar="CONFIG",
            help="A YAML file, also one of LLaMA-Factory or ms-swift; options below have precedence over it.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        Option("--preset", metavar="NAME", help="Begin with a shipped configuration: " + ", ".join(presets()) + "."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        Option("--set", metavar="KEY=VALUE", help="Any key of the configuration, such as lora.lora_dropout=0.05."),
    ] = None,
    resume: Annotated[
        bool | None,
        Option("--resume", "--no-resume", help="Go on from the newest checkpoint of the folder (the default), or not."),
    ] = None,
    processes: Annotated[
        int | None, Option("--processes", metavar="N", min=1, help="With --accelerator; by default one per GPU.")
    ] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Check configuration and data, show both, and do nothing else.")
    ] = False,
) -> None:
    """Train a model on your data: LoRA, P-Tuning v2, the last layers, or everything.

    The result is an adapter that `glm4 chat --adapter`, PEFT and vLLM load, or a whole model. A run that was stopped or
    killed goes on from its newest checkpoint, with the same numbers, if the same command is given again.

    Needs `pip install 'glm4[train]'`.
    """
    from glm4.training.defaults import check_config

    made = configuration(options, config, preset, set_, resume)
    check_config(made)
    if dry_run:
        _dry_run(made)
        return
    if made.accelerator and "RANK" not in os.environ:
        _launch(made, processes)
    if processes and not made.accelerator:
        raise UsageError("--processes says how many, but not how: --accelerator ddp, for one")
    _run(made)


def configuration(
    options: FinetuneOptions, file: Path | None, preset: str | None, more: list[str] | None, resume: bool | None
) -> TrainingConfig:
    """Preset, then file, then options, each with precedence over those before.

    Raises:
        Glm4Error: as `config_file.config_of` and `read_yaml`.
    """
    from glm4.cli import console
    from glm4.training.config_file import config_of, read_config, read_preset

    made = TrainingConfig()
    if preset:
        made = config_of(read_preset(preset), f"preset {preset}", made)
    if file is not None:
        made, notes = read_config(file.expanduser(), made)
        for note in notes:
            console.notice(f"{file}: {note}")
    given = {_KEYS.get(name, name): value for name, value in vars(options).items() if value is not None}
    if resume is not None:
        given["resume"] = resume
    for text in more or ():
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set takes KEY=VALUE, such as lora.r=16, not {text!r}")
        # Of one key said twice both are meant: a list.
        earlier = given.get(key)
        given[key] = value if earlier is None or key in vars(options) else [*_listed(earlier), value]
    return config_of(given, "the command line", made)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _launch(config: TrainingConfig, processes: int | None) -> None:
    """Start this command again, in several processes; does not return."""
    from glm4 import hub
    from glm4.cli import console
    from glm4.training.accelerator import launch_command

    with console.progress() as progress:
        hub.resolve(config.model, progress=progress)  # once, not in each of them
    command = launch_command(config, processes, sys.argv[1:])
    sys.stdout.flush()
    os.execv(command[0], command)  # noqa: S606 - our own interpreter, no shell


def _dry_run(config: TrainingConfig) -> None:
    from glm4.cli import console
    from glm4.cli.training_progress import data_lines, watching
    from glm4.training.config_file import as_dict
    from glm4.training.run import prepared

    with watching() as listener, prepared(config, listener=listener) as run:
        report, validation = run.report, len(run.validation)
    console.print_json(as_dict(config))
    for line in data_lines(report, validation) if report is not None else ():
        console.stderr().print(line, soft_wrap=True)


def _run(config: TrainingConfig) -> None:
    from glm4.cli import console
    from glm4.cli.training_progress import watching
    from glm4.training.run import finetune as run
    from glm4.training.run import is_writer

    if not is_writer():
        run(config)
        return
    with watching() as listener:
        result = run(config, listener=listener)
    if result.interrupted:
        console.notice(
            f"stopped after step {result.steps} of {result.total_steps}, with a checkpoint; the same command goes on"
        )
        raise Exit(_STOPPED)
    _show_result(config, result)


def _show_result(config: TrainingConfig, result: RunResult) -> None:
    from glm4.cli import console

    best = (
        "" if result.eval_loss is None else f", best validation loss {result.eval_loss:.4f} (step {result.best_step})"
    )
    out = console.stdout()
    out.print(f"{result.steps} steps, training loss {result.loss:.4f}{best}", soft_wrap=True)
    out.print(str(result.output), soft_wrap=True)
    output = shlex.quote(str(result.output))
    whole = config.method in ("freeze", "full")
    if result.best_step is not None and result.best_step < result.steps and not whole:
        console.notice(f"{result.output}/checkpoint-{result.best_step} has the adapter with the lowest validation loss")
    out.print(
        f"glm4 chat -m {output}" if whole else f"glm4 chat -m {shlex.quote(config.model)} --adapter {output}",
        soft_wrap=True,
    )

"""A whole fine-tuning run: `finetune`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from glm4 import hub
from glm4.checkpoints.checkpoint import Checkpoint, open_checkpoint
from glm4.training.config import TrainingConfig
from glm4.training.data.examples import TokenizedExample
from glm4.training.quiet import quiet_libraries
from glm4.variants import get_variant

Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class RunResult:
    """What a run has left.

    Attributes:
        output: the run's folder, with the adapter or the model.
        steps: optimizer steps done, those of earlier runs that it went on from included.
        loss: the last one logged.
    """

    output: Path
    steps: int
    loss: float


def finetune(
    config: TrainingConfig,
    *,
    train: Sequence[TokenizedExample],
    validation: Sequence[TokenizedExample] = (),
    progress: Progress | None = None,
) -> RunResult:
    """Train a model as a configuration says.

    Args:
        train, validation: rows instead of those that `config.data` names.

    Raises:
        Glm4Error: the configuration or the data cannot work; said before any weight is loaded.
    """
    variant = get_variant(config.model)
    path = hub.resolve(config.model, progress=progress)
    with open_checkpoint(path, variant=variant) as checkpoint, quiet_libraries():
        name = variant.repo_id if variant is not None and variant.repo_id else config.model
        return _train(config, checkpoint, name, train, progress)


def _train(
    config: TrainingConfig,
    checkpoint: Checkpoint,
    name: str,
    train: Sequence[TokenizedExample],
    progress: Progress | None,
) -> RunResult:
    from transformers import PrinterCallback

    from glm4.backends.transformers.device import choose_device
    from glm4.backends.transformers.weights import load_model
    from glm4.training.arguments import training_arguments
    from glm4.training.methods.table import METHODS
    from glm4.training.objective import LossModel
    from glm4.training.trainer import GlmTrainer, SupervisedObjective, collate

    device = choose_device(config.device)
    args = training_arguments(config, device)
    dtype = "bf16" if args.bf16 else "fp32"
    base: Any = load_model(checkpoint, args.device, dtype, progress)
    base.config._name_or_path = base.name_or_path = name
    if config.gradient_checkpointing:
        enable = getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)  # its new name
        enable({"use_reentrant": False})
    model = METHODS[config.method](base, config)
    trainer = GlmTrainer(
        model=LossModel(model, SupervisedObjective()),
        args=args,
        train_dataset=train,  # type: ignore[arg-type]  # a sequence is all it needs
        data_collator=partial(collate, pad_id=checkpoint.config.pad_token_id or 0),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    output = Path(config.output)
    model.save_pretrained(output)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return RunResult(output, trainer.state.global_step, losses[-1] if losses else float("nan"))

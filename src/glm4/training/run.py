"""A whole fine-tuning run: `finetune`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm4 import hub
from glm4.checkpoints.checkpoint import Checkpoint, open_checkpoint
from glm4.errors import Glm4Error
from glm4.requests.processor import Processor
from glm4.system.extras import Package, require_packages
from glm4.training.config import TrainingConfig
from glm4.training.data.dataset import DataReport, Datasets, load_datasets
from glm4.training.defaults import check_config, check_vision
from glm4.training.listener import Listener
from glm4.training.metrics_log import MetricsLog
from glm4.training.resume import prepare_folder
from glm4.variants import get_variant

if TYPE_CHECKING:
    from glm4.training.data.examples import TokenizedExample, TokenizedPreference

    Samples = Sequence[TokenizedExample] | Sequence[TokenizedPreference]

PACKAGES = (
    Package("torch", "2.8"),
    Package("transformers", "5.16", "5.24"),  # which renames the argument that prefixes go by
    Package("peft", "0.21"),
    Package("accelerate", "1.15"),
)


@dataclass(frozen=True)
class RunResult:
    """What a run has left.

    Attributes:
        output: the run's folder, with the adapter or the model unless it was interrupted.
        steps: optimizer steps done, those of earlier runs that it went on from included.
        total_steps: that there were to do.
        loss: of training, last logged; NaN if no step was taken.
        eval_loss: of the best evaluation, None if there was none; `best_step` is its step.
        interrupted: a signal stopped it, after a checkpoint.
    """

    output: Path
    steps: int
    total_steps: int
    loss: float
    eval_loss: float | None = None
    best_step: int | None = None
    interrupted: bool = False


@dataclass(frozen=True)
class Prepared:
    """Everything about a run that can be found wrong before weights are loaded.

    Attributes:
        name: of the base model, for adapters.
        train, validation: rows; `train` may be a stream.
        report: of the data; None if the rows were given.
    """

    config: TrainingConfig
    checkpoint: Checkpoint
    processor: Processor
    name: str
    train: Any
    validation: Samples
    report: DataReport | None = None


def finetune(
    config: TrainingConfig,
    *,
    train: Samples | None = None,
    validation: Samples = (),
    listener: Listener | None = None,
) -> RunResult:
    """Train a model as a configuration says.

    Under a launcher (`accelerate launch`, `torchrun`) every process calls this, and one of them writes.

    Args:
        train, validation: rows instead of those that `config.data` names.
        listener: is told what happens.

    Raises:
        Glm4Error: the configuration or the data cannot work, said before any weight is loaded; memory or disk are
            full; or the loss is no longer a number.
    """
    listener = listener or Listener()
    config = replace(config, output=str(Path(config.output).expanduser()) if config.output else "")
    check_config(config, has_rows=train is not None)
    require_packages("fine-tuning", "train", PACKAGES)
    with prepared(config, train=train, validation=validation, listener=listener) as run:
        from glm4.training.quiet import quiet_libraries

        with quiet_libraries():
            from glm4.training.session import train_run

            if not is_writer():
                return train_run(run, None, listener)
            prepare_folder(config)
            log = MetricsLog(Path(config.output))
            log.status(state="starting", step=0)
            with _failure_told(log):
                return train_run(run, log, listener)


@contextlib.contextmanager
def prepared(
    config: TrainingConfig, *, train: Samples | None = None, validation: Samples = (), listener: Listener
) -> Iterator[Prepared]:
    """Find model and data, and read the data. Needs no torch.

    Raises:
        Glm4Error: see `finetune`.
    """
    variant = get_variant(config.model)
    path = hub.resolve(config.model, progress=listener.loading)
    with open_checkpoint(path, variant=variant) as checkpoint, contextlib.ExitStack() as stack:
        check_vision(config, sees=checkpoint.config.vision is not None)
        processor = Processor.load(checkpoint)
        if processor.images is not None:
            stack.callback(processor.images.close)
        report = None
        if train is None:
            data = _read_data(config, processor, listener)
            report = data.report
            train, validation = data.train, data.validation  # type: ignore[assignment]  # a stream has no length
        # The adapter outlives this machine's folders, so a known model has its public name in it.
        name = variant.repo_id if variant is not None and variant.repo_id else config.model
        yield Prepared(config, checkpoint, processor, name, train, validation, report)


def _read_data(config: TrainingConfig, processor: Processor, listener: Listener) -> Datasets:
    return load_datasets(
        config.data,
        processor,
        preferences=config.objective == "dpo",
        max_steps=config.max_steps,
        seed=config.seed,
        progress=listener.loading,
    )


def is_writer() -> bool:
    """Whether this process, of those that a launcher started, writes files and messages."""
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def _failure_told(log: MetricsLog) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        told = str(error) if isinstance(error, Glm4Error) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError, Glm4Error):  # the disk may be full
            log.status(state="failed", error=told)
        raise

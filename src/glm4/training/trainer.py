"""`GlmTrainer`: Hugging Face's trainer with our loss, our order of batches, and checkpoints that lose nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from glm4.errors import TrainingError
from glm4.training import checkpoints
from glm4.training.batches import bucketed_batches
from glm4.training.objective import Batch, LossModel
from glm4.training.train_loader import EpochLoader, loader


@dataclass
class Window:
    """Sums since the last log line, of all processes once they are read.

    Attributes:
        sums: float64 [3]: loss, items, tokens.
        tokens: in all, since the run began.
    """

    sums: torch.Tensor
    tokens: int = 0


class GlmTrainer(transformers.Trainer):
    """The loss of an optimizer step is the mean over all its items, across accumulation and processes.

    Args:
        train: rows, or an iterable of them without a length.
        group_by_length: whether rows of similar length share a batch.
        stop: asked before every step: whether to save and stop after it.
    """

    model: LossModel
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: LossModel,
        args: transformers.TrainingArguments,
        *,
        train: Sequence[Any] | Iterable[Any],
        validation: Sequence[Any],
        group_by_length: bool,
        callbacks: Sequence[transformers.TrainerCallback] = (),
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=train,  # type: ignore[arg-type]  # read by our own loader only
            eval_dataset=validation or None,  # type: ignore[arg-type]
            callbacks=list(callbacks),
        )
        self.remove_callback(transformers.PrinterCallback)
        self._rows, self._validation = train, validation
        self._group_by_length = group_by_length
        self.objective = model.objective
        self.stop_requested = False
        self.interrupted = False
        number = torch.float32 if args.device.type == "mps" else torch.float64  # which has no float64
        self.window = Window(torch.zeros(3, dtype=number, device=args.device))

    # ---- Batches ----

    def get_train_dataloader(self) -> EpochLoader:
        """Batches of this process."""
        return self._loader(self._rows, self._train_batch_size, shuffle=True)

    def _loader(self, rows: Any, batch_size: int, *, shuffle: bool) -> EpochLoader:
        lengths = [len(row) for row in rows] if isinstance(rows, Sequence) else []
        batches_of = partial(
            bucketed_batches,
            lengths,
            batch_size,
            seed=self.args.seed,
            group=self._group_by_length or not shuffle,
            shuffle=shuffle,
        )
        return loader(
            rows,
            batches_of,
            self.objective.collate,
            batch_size=batch_size,
            process=self.args.process_index,
            processes=self.args.world_size,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> torch.Tensor:
        count = sum(self._count(batch) for batch in batch_samples)
        both = torch.tensor([[count, self.stop_requested]], dtype=torch.float64).to(self.window.sums)
        items, stops = self.accelerator.gather(both).sum(0)
        # One process that was told to stop stops them all, at the same step.
        self.interrupted = self.interrupted or bool(stops)
        return items.clamp(min=1).float()

    def _count(self, batch: Batch) -> int:
        return 0 if "blank" in batch else self.objective.count(batch)

    # ---- Loss ----

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The share of a batch in the loss of the step; gradients are averaged over processes, hence the factor."""
        count = self._count(inputs)
        blank = inputs.pop("blank", False)
        loss: torch.Tensor = model(**inputs)
        if blank:
            loss = loss * 0
        tokens = 0 if blank else int(inputs["attention_mask"].sum())
        self.window.sums += torch.stack([loss.detach().to(self.window.sums), *self.window.sums.new_tensor([count, tokens])])
        assert num_items_in_batch is not None
        loss = loss * (self.accelerator.num_processes / num_items_in_batch)
        return (loss, None) if return_outputs else loss

    def read_window(self) -> tuple[float, int]:
        """Mean loss per item and tokens since the last call, of all processes.

        Raises:
            TrainingError: the loss is not a number.
        """
        loss, items, tokens = self.accelerator.reduce(self.window.sums, "sum").tolist()
        self.window.sums.zero_()
        self.window.tokens += int(tokens)
        mean = loss / max(items, 1)
        if mean != mean or mean in (float("inf"), float("-inf")):
            raise TrainingError(
                f"the loss is no longer a number at step {self.state.global_step}; a lower learning_rate helps, or a"
                " longer warm-up. Checkpoints from before are intact"
            )
        return mean, int(tokens)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand a log line to the callbacks; the trainer's own summary at the end is not one."""
        if "train_runtime" in logs:
            return
        if "loss" in logs:
            logs["loss"], logs["num_tokens"] = self.read_window()
            logs |= self.objective.metrics(training=True)
        logs["epoch"] = round(self.state.epoch or 0.0, 6)
        self.state.log_history = [{**logs, "step": self.state.global_step}]  # the run's folder has them all
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    # ---- Evaluation ----

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean loss over all items of the validation rows."""
        model = self.model_wrapped
        model.eval()
        sums = torch.zeros_like(self.window.sums[:2])
        with torch.no_grad():
            for batch in self._loader(self._validation, self.args.per_device_eval_batch_size, shuffle=False):
                inputs = self._prepare_inputs(batch)
                if inputs.pop("blank", False):
                    model(**inputs)  # a part of what all processes compute together
                    continue
                sums += torch.stack([model(**inputs).to(sums), sums.new_tensor(self.objective.count(batch))])
        model.train()
        loss, items = self.accelerator.reduce(sums, "sum").tolist()
        metrics = {"eval_loss": loss / max(items, 1)}
        metrics |= {f"eval_{name}": value for name, value in self.objective.metrics(training=False).items()}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.log(dict(metrics))
        return metrics

    # ---- Checkpoints ----

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        checkpoints.save(self)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        checkpoints.load_weights(self, Path(resume_from_checkpoint))

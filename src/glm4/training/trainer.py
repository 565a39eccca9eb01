"""`GlmTrainer`: Hugging Face's trainer with our loss, our order of batches, and checkpoints that lose nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from glm4.errors import InvalidRequestError, TrainingError
from glm4.training import checkpoints
from glm4.training.generation_metrics import GenerationMetrics
from glm4.training.objective import LossModel
from glm4.training.sharding import gathered, optimizer_state, restore_optimizer
from glm4.training.train_loader import EpochLoader, Share, loader, reading_order, stream_loader, training_order

_OPTIMIZER, _SCHEDULER = "optimizer.pt", "scheduler.pt"


class GlmTrainer(transformers.Trainer):
    """The loss of an optimizer step is the mean over all its items, across accumulation and processes.

    Args:
        train: rows, or an iterable of them without a length.
        by_length: whether rows of similar length share a batch.
        max_tokens: packing: a batch is as many rows as have this many tokens together; 0 is none.
        write_adapter: writes that of a model into a folder, if the method has one.
        facts: what checkpoints note for the next run to compare.
        measure: more metrics of an evaluation, of a model at a step, computed in a precision; every process calls it.

    Attributes:
        stop_requested: set it to save and stop after the present step.
        interrupted: whether that was done.
        tokens: trained on so far, of all processes, up to the last log line.
        last_loss: of training, last logged.
    """

    model: LossModel
    control: transformers.TrainerControl
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: LossModel,
        args: transformers.TrainingArguments,
        *,
        train: Sequence[Any] | Iterable[Any],
        validation: Sequence[Any] = (),
        by_length: bool = True,
        max_tokens: int = 0,
        write_adapter: Callable[[Any, Path], None] | None = None,
        facts: Mapping[str, Any] | None = None,
        measure: GenerationMetrics | None = None,
        callbacks: Sequence[transformers.TrainerCallback] = (),
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=train,  # read by our own loader only
            eval_dataset=validation or None,
            callbacks=list(callbacks),
        )
        self.remove_callback(transformers.PrinterCallback)
        self.objective = model.objective
        self._rows, self._validation = train, validation
        self._by_length, self._max_tokens = by_length, max_tokens
        self._write_adapter = write_adapter
        self.facts = facts or {}
        self._measure = measure
        if measure is not None and self._is_sharded:
            raise InvalidRequestError(
                "generate_every needs the whole model in every process, which fsdp and zero3 do not have: use zero2 or"
                " ddp, or leave it out and ask the finished model",
                param="generate_every",
            )
        self.stop_requested = self.interrupted = False
        self.tokens, self.last_loss = 0, math.nan
        number = torch.float32 if args.device.type == "mps" else torch.float64  # which has no float64
        self._window = torch.zeros(3, dtype=number, device=args.device)  # since the last log line: loss, items, tokens

    # ---- Batches ----

    def get_train_dataloader(self) -> EpochLoader:
        """Batches of this process."""
        size, pin = self._train_batch_size, self.args.dataloader_pin_memory
        if not isinstance(self._rows, Sequence):
            return stream_loader(self._rows, size, self._make_batch, self._share, pin_memory=pin)
        order = training_order(
            _lengths(self._rows),
            size,
            self.args.gradient_accumulation_steps * self.args.world_size,
            seed=self.args.seed,
            by_length=self._by_length,
            max_tokens=self._max_tokens,
        )
        return loader(self._rows, order, self._make_batch, self._share, pin_memory=pin)

    @property
    def _share(self) -> Share:
        return Share(self.args.process_index, self.args.world_size)

    def _make_batch(self, rows: Sequence[Any]) -> dict[str, Any]:
        """The objective's batch, and what would have to be fetched from the device later."""
        batch = self.objective.collate(rows)
        mask = batch.get("attention_mask")
        tokens = int(batch["input_ids"].numel() if mask is None else mask.sum())
        return {**batch, "items": self.objective.count(batch), "tokens": tokens}

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor:
        count = sum(batch["items"] for batch in batch_samples)
        both = self._window.new_tensor([[count, float(self.stop_requested)]])
        items, stops = self.accelerator.gather(both).sum(0)
        # One process that was told to stop stops them all, at the same step.
        self.interrupted = self.interrupted or bool(stops)
        return items.clamp(min=1).float()

    # ---- Loss ----

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The share of a batch in the loss of the step; gradients are averaged over processes, hence the factor."""
        items, tokens = inputs.pop("items"), inputs.pop("tokens")
        loss: torch.Tensor = model(**inputs)
        if not items:
            loss = loss * 0
        counted = self._window.new_tensor([items, tokens])
        self._window += torch.cat([loss.detach().to(counted).reshape(1), counted])
        if num_items_in_batch is None:
            raise ValueError("the loss of a batch depends on the items of its whole step")
        loss = loss * (self.accelerator.num_processes / num_items_in_batch)
        return (loss, None) if return_outputs else loss

    def gather_window(self) -> list[float]:
        """Sums since the last log line of all processes, [loss, items, tokens]; the first process keeps them."""
        if self.args.world_size > 1:
            self._window = self.accelerator.reduce(self._window, "sum")
        sums: list[float] = self._window.tolist()
        if self.args.process_index:
            self._window.zero_()
        return sums

    def restore_window(self, sums: Sequence[float], tokens: int) -> None:
        """Go on from what a checkpoint has of `gather_window` and `tokens`."""
        self.tokens = tokens
        if not self.args.process_index:
            self._window.copy_(self._window.new_tensor(sums))

    def _read_window(self) -> tuple[float, int]:
        """Mean loss per item, and tokens, since the last call.

        Raises:
            TrainingError: the loss is not a number.
        """
        loss, items, tokens = self.gather_window()
        self._window.zero_()
        self.tokens += int(tokens)
        mean = loss / max(items, 1)
        if not math.isfinite(mean):
            raise TrainingError(
                f"the loss is no longer a number at step {self.state.global_step}: a lower learning_rate or a longer"
                " warm-up helps. Earlier checkpoints are intact"
            )
        return mean, int(tokens)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand a log line to the callbacks; the trainer's own summary at the end is not one."""
        if "train_runtime" in logs:
            return
        if "loss" in logs:
            logs["loss"], logs["num_tokens"] = self._read_window()
            self.last_loss, logs["tokens"] = logs["loss"], self.tokens
            logs |= self.objective.metrics(training=True)
        logs["epoch"] = round(self.state.epoch or 0.0, 6)
        self.state.log_history = [{**logs, "step": self.state.global_step}]  # the run's folder has them all
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    # ---- Evaluation ----

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean loss over all items of the validation rows."""
        model = self.model_wrapped
        order = reading_order(_lengths(self._validation), self.args.per_device_eval_batch_size)
        sums = torch.zeros_like(self._window[:2])
        model.eval()
        with torch.no_grad():
            for batch in loader(self._validation, order, self._make_batch, self._share):
                inputs = self._prepare_inputs(batch)
                items = inputs.pop("items")
                del inputs["tokens"]
                loss = model(**inputs).to(sums)
                sums += torch.stack([loss if items else loss * 0, sums.new_tensor(items)])
        model.train()
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums, "sum")
        loss_sum, count = sums.tolist()
        metrics = {"eval_loss": loss_sum / max(count, 1)}
        metrics |= {f"eval_{name}": value for name, value in self.objective.metrics(training=False).items()}
        if self._measure is not None:
            found = self._measure(self.model.model, self.state.global_step, self.accelerator.autocast)
            metrics |= {f"eval_{name}": value for name, value in found.items()}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.log(dict(metrics))
        return metrics

    @property
    def _is_sharded(self) -> bool:
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        return self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)

    # ---- Checkpoints ----

    def trained_weights(self) -> dict[str, torch.Tensor]:
        """What is trained, by its name in the model; empty but in the process that writes."""
        found = checkpoints.trainable_tensors(self)
        return {name.removeprefix("model."): tensor for name, tensor in found.items()}

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter, if the method has one; every process calls this."""
        if self._write_adapter is None:
            return
        with gathered(self.model):
            if self.args.should_save:
                self._write_adapter(self.model.model, folder)

    def save_optimizer(self, folder: Path) -> None:
        """Write the states of optimizer and schedule; every process calls this."""
        if not self.is_fsdp_enabled:
            self._save_optimizer_and_scheduler(str(folder))
            return
        state = optimizer_state(self.model, self.optimizer.optimizer)
        if self.args.should_save:
            torch.save(state, folder / _OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), folder / _SCHEDULER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)
        state = torch.load(folder / _OPTIMIZER, map_location="cpu", weights_only=True) if self.args.should_save else {}
        restore_optimizer(self.model, self.optimizer.optimizer, state)
        self.lr_scheduler.load_state_dict(torch.load(folder / _SCHEDULER, weights_only=True))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        checkpoints.save(self, self.facts)

    def restore_position(self, state: Mapping[str, Any]) -> None:
        """Go on from the `run_state.json` of a checkpoint, whose other files `train` reads."""
        self.restore_window(state["window"], state["tokens"])
        self.last_loss = state["loss"]

    def restore_finished(self, checkpoint: Path) -> None:
        """Take weights and position of a checkpoint after which there is nothing to train."""
        checkpoints.load_weights(self, checkpoint)
        self.state = transformers.TrainerState.load_from_json(str(checkpoint / checkpoints.TRAINER_STATE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        checkpoints.load_weights(self, Path(resume_from_checkpoint))


def _lengths(rows: Sequence[Any]) -> Sequence[int]:
    """Tokens of each row: of a preference, those of its longer answer."""
    if hasattr(rows, "lengths"):
        lengths: Sequence[int] = rows.lengths
        return lengths
    return [len(row) if hasattr(row, "__len__") else max(len(row.chosen), len(row.rejected)) for row in rows]

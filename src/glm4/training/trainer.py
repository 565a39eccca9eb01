"""`GlmTrainer`: Hugging Face's trainer with our loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from glm4.training.data.examples import TokenizedExample
from glm4.training.objective import Batch, LossModel


class SupervisedObjective:
    """Cross-entropy of the target tokens."""

    def count(self, batch: Batch) -> int:
        """Target tokens."""
        return int(batch["loss_mask"].sum())

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """As `Objective`."""
        logits = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
            use_cache=False,
        ).logits
        mask = batch["loss_mask"][:, 1:]
        return torch.nn.functional.cross_entropy(
            logits[:, :-1][mask].float(), batch["input_ids"][:, 1:][mask], reduction="sum"
        )


def collate(examples: Sequence[TokenizedExample], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded int64 ids, their mask and positions, bool loss_mask: all [B, T]."""
    shape = (len(examples), max(len(example) for example in examples))
    batch = {name: torch.zeros(shape, dtype=torch.int64) for name in ("attention_mask", "position_ids")}
    batch["input_ids"] = torch.full(shape, pad_id)
    batch["loss_mask"] = torch.zeros(shape, dtype=torch.bool)
    for row, example in enumerate(examples):
        length = len(example)
        batch["input_ids"][row, :length] = torch.from_numpy(example.ids.astype("int64"))
        batch["attention_mask"][row, :length] = 1
        batch["position_ids"][row, :length] = torch.arange(length)
        batch["loss_mask"][row, :length] = torch.from_numpy(example.mask)
    return batch


class GlmTrainer(transformers.Trainer):
    """The loss of an optimizer step is the mean over all its items, across accumulation and processes."""

    model: LossModel

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> torch.Tensor:
        count = sum(self.model.objective.count(batch) for batch in batch_samples)
        counted = torch.tensor(count, dtype=torch.float32, device=device)
        return self.accelerator.gather(counted).sum().clamp(min=1)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The share of a batch in the loss of the step; gradients are averaged over processes, hence the factor."""
        loss = model(**inputs) * (self.accelerator.num_processes / num_items_in_batch)
        return (loss, None) if return_outputs else loss

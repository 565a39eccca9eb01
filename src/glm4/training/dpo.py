"""Direct preference optimization: make the better answer of a pair likelier than the worse one, by more than the
model before training does (Rafailov et al. 2023, equation 7).

    loss = -log sigmoid(beta * ((log p(chosen) - log p(rejected)) - (log q(chosen) - log q(rejected))))

p is the model in training and q the reference, which is the model before training. No second copy of it is held: an
adapter or a prefix is set aside for one pass (`without_adapter`); where the weights themselves change (full, freeze),
the reference's log-probabilities are computed once before the first step (`dpo_references.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils import gather_object

from glm4.training.data.examples import TokenizedExample, TokenizedPreference
from glm4.training.forward import sequence_logprobs

Batch = Mapping[str, Any]
Collate = Callable[[Sequence[TokenizedExample]], Mapping[str, Any]]
SetAside = Callable[[Any], AbstractContextManager[Any]]


class DpoObjective:
    """The loss on preferences: the mean over pairs.

    Args:
        collate: makes a batch of examples; see `batches`.
        beta: how firmly the model is held to the reference.
        without_adapter: of a model: a context in which it is the reference; by default it is that as it stands.
    """

    def __init__(self, collate: Collate, beta: float, without_adapter: SetAside = nullcontext) -> None:
        self._collate = collate
        self._beta = beta
        self._without_adapter = without_adapter
        self._sums: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}

    def collate(self, pairs: Sequence[TokenizedPreference]) -> dict[str, Any]:
        """Both answers of each pair as rows of one batch: the better ones first, then the worse ones."""
        batch = dict(self._collate([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]))
        if all(pair.references for pair in pairs):
            batch["references"] = torch.tensor([pair.references for pair in pairs]).T.flatten()
        return batch

    def count(self, batch: Batch) -> int:
        """Pairs."""
        return len(batch["input_ids"]) // 2

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """As `Objective`."""
        # The reference comes first: setting adapters aside touches what the backward pass of the other would need.
        references = self.references(model, batch)
        logprobs = sequence_logprobs(model, _inputs(batch))
        losses, rewards = dpo_loss(logprobs, references, self._beta)
        sums = self._sums[model.training]
        sums["pairs"] += len(losses)
        for name, values in rewards.items():
            sums[name] += values.sum().item()
        return losses.sum()

    def references(self, model: Any, batch: Batch) -> torch.Tensor:
        """Log-probabilities of the rows under the reference: [2B] float32, without gradients."""
        if "references" in batch:
            return batch["references"]
        with torch.no_grad(), self._without_adapter(model):
            return sequence_logprobs(model, _inputs(batch))

    def metrics(self, *, training: bool) -> dict[str, float]:
        """Means over the pairs of all processes since the last call, by the names that TRL made usual.

        Every process calls this. A row that fills up the last step of an epoch counts here, though not in the loss.
        """
        total: Counter[str] = Counter()
        for sums in gather_object([self._sums[training]]):
            for name, value in sums.items():
                total[name] += value
        self._sums[training] = Counter()
        pairs = total.pop("pairs", 0)
        return {name: value / pairs for name, value in total.items()}


def _inputs(batch: Batch) -> Batch:
    return {name: tensor for name, tensor in batch.items() if name != "references"}


def dpo_loss(
    logprobs: torch.Tensor, references: torch.Tensor, beta: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of each pair, and its rewards.

    Args:
        logprobs: [2B] float32, of the model in training: B better answers, then their B worse ones.
        references: [2B] float32, the same of the reference.

    Returns:
        [B], and by name [B] without gradients.
    """
    chosen, rejected = (beta * (logprobs - references)).chunk(2)
    losses = -torch.nn.functional.logsigmoid(chosen - rejected)
    chosen, rejected = chosen.detach(), rejected.detach()
    return losses, {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": (chosen > rejected).float(),
        "rewards/margins": chosen - rejected,
    }

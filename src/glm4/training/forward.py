"""From a batch to its loss: the decoder without its logits, then the chunked loss of the rows that have a target.

Call these inside `forward` of the module that DDP, FSDP, DeepSpeed or autocast wrap, which act around that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
import transformers
from torch.utils.checkpoint import checkpoint

from glm4.training.loss import causal_loss

_CHANGES_LOGITS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)
"""Keys of configurations whose models do something to their logits. None that we train has one."""


def forward_loss(model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss of a batch, with gradient, and its number of targets.

    Args:
        model: a causal language model of transformers, or what wraps one.
        batch: of `batches.collate`. Entries other than those of `Batch` go to the decoder as they are.

    Returns:
        float32 [] and int64 [].
    """
    return _masked_loss(model, batch, "sum"), batch["loss_mask"][:, 1:].sum()


def sequence_logprobs(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the log-probabilities of each row's targets, with gradient: float32 [B]."""
    return -_masked_loss(model, batch, "none").sum(-1)


def causal_model(model: Any) -> Any:
    """The causal language model inside wrappers (DDP, FSDP, compilation, PEFT)."""
    while not isinstance(model, transformers.PreTrainedModel):
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    return model


def _masked_loss(model: Any, batch: Mapping[str, torch.Tensor], reduction: Literal["sum", "none"]) -> torch.Tensor:
    """Summed loss [], or losses [B, T - 1] that are 0 where there is no target."""
    if getattr(model, "_is_prompt_learning", False):
        raise TypeError("PEFT's prefix is not part of the model it wraps: use methods.prefix")
    inner = causal_model(model)
    config = inner.config.get_text_config()
    if changed := [key for key in _CHANGES_LOGITS if getattr(config, key, None) not in (None, 1.0)]:
        raise ValueError(
            f"{type(inner).__name__} changes its logits ({', '.join(changed)}), which training does not do"
        )
    inputs = dict(batch)
    loss_mask, padding_mask = inputs.pop("loss_mask"), inputs.pop("attention_mask", None)
    # Padding stands at the end, where no target's row attends to it: without a mask attention takes its fast path.
    if padding_mask is not None and not padding_mask[:, 0].all():
        raise ValueError("a training batch is padded at the right, and this one begins with padding")
    hidden = inner.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    has_target = loss_mask[:, 1:]
    targets = batch["input_ids"][:, 1:][has_target]
    losses = _head_loss(inner.get_output_embeddings(), hidden[has_target], targets, reduction)
    return losses if reduction == "sum" else losses.new_zeros(has_target.shape).masked_scatter(has_target, losses)


def _head_loss(
    head: Any, hidden: torch.Tensor, targets: torch.Tensor, reduction: Literal["sum", "none"]
) -> torch.Tensor:
    if hasattr(head, "modules_to_save"):  # PEFT's copy of a module that is trained in full
        copies = [] if head.disable_adapters else head.active_adapters
        head = head.modules_to_save[copies[0]] if copies else head.original_module
    if isinstance(head, torch.nn.Linear) and head.weight.is_floating_point():
        with _gathered(head.weight, head.bias) as (weight, bias):
            return causal_loss(hidden, weight, targets, bias=bias, reduction=reduction)
    losses = [
        checkpoint(_module_losses, head, *chunk, use_reentrant=False)
        for chunk in zip(hidden.split(_MODULE_CHUNK), targets.split(_MODULE_CHUNK), strict=True)
    ]
    every = torch.cat(losses) if losses else hidden.sum(-1).float()
    return every.sum() if reduction == "sum" else every


_MODULE_CHUNK = 256
"""Rows at a time of a head that is more than a matrix, such as one with LoRA: its logits are computed twice."""


def _module_losses(head: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(head(hidden).float(), targets, reduction="none")


@contextlib.contextmanager
def _gathered(weight: Any, bias: Any) -> Iterator[tuple[Any, Any]]:
    """The whole head, where FSDP 2 (as a DTensor) or DeepSpeed's ZeRO-3 has given each process a part of it.

    A frozen head is not needed in backward: its gradients are computed along with the loss.
    """
    with contextlib.ExitStack() as stack:
        if getattr(weight, "ds_status", None) is not None and weight.ds_status.name == "NOT_AVAILABLE":
            import deepspeed

            stack.enter_context(deepspeed.zero.GatheredParameters([p for p in (weight, bias) if p is not None]))
        yield tuple(p.full_tensor() if hasattr(p, "full_tensor") else p for p in (weight, bias))

"""From a batch to its loss: the decoder without its logits, then the chunked loss of the rows that have a target.

The loss is computed inside the model's own `forward`, so that whatever wraps the model (PEFT, DDP, FSDP, DeepSpeed,
autocast) sees one call, gathers what it has sharded, and finds the gradients that it waits for.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import transformers
from torch.utils.checkpoint import checkpoint

from glm4.training.loss import causal_loss

_CAPS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
"""Keys of configurations whose models do something to their logits. None that we train has one."""


def forward_loss(model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss of a batch, with gradient, and its number of targets.

    Args:
        model: a causal language model of transformers, or what wraps one.
        batch: of `batches.collate`. Entries other than those of `Batch` go to the decoder as they are.

    Returns:
        float32 [] and int64 [].
    """
    return _call(model, batch, "sum"), batch["loss_mask"][:, 1:].sum()


def sequence_logprobs(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the log-probabilities of each row's targets, with gradient: float32 [B]."""
    return -_call(model, batch, "none").sum(-1)


def prepare_model(model: Any) -> Any:
    """Teaches the causal language model inside `model` to compute losses; returns `model`.

    Called with the batch's `loss_mask`, its `forward` then returns the loss; called without, it is as before. Must
    come before accelerate or DeepSpeed wrap the model. Calling it again changes nothing.

    Raises:
        ValueError: the model's logits are scaled or capped, which the loss would not know of.
    """
    inner = causal_model(model)
    if getattr(inner, "computes_loss", False):
        return model
    config = inner.config.get_text_config()
    changed = [key for key in _CAPS if getattr(config, key, None) not in (None, 1.0)]
    if changed:
        raise ValueError(
            f"{type(inner).__name__} changes its logits ({', '.join(changed)}), which training does not do"
        )
    original: Callable[..., Any] = inner.forward

    def forward(
        self: Any, *args: Any, loss_mask: torch.Tensor | None = None, reduction: str = "sum", **kwargs: Any
    ) -> Any:
        if loss_mask is None:
            return original(*args, **kwargs)
        return _masked_loss(self, loss_mask, "sum" if reduction == "sum" else "none", **kwargs)

    inner.forward = types.MethodType(forward, inner)
    inner.computes_loss = True
    return model


def causal_model(model: Any) -> Any:
    """The causal language model inside wrappers (DDP, FSDP, compilation, PEFT)."""
    while not isinstance(model, transformers.PreTrainedModel):
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    return model


def _call(model: Any, batch: Mapping[str, torch.Tensor], reduction: str) -> torch.Tensor:
    prepare_model(model)
    inputs = dict(batch)
    mask = inputs.pop("attention_mask", None)
    # Padding stands at the end, where no target's row attends to it: without a mask attention takes its fast path.
    if mask is not None and not mask[:, 0].all():
        raise ValueError("a training batch is padded at the right, and this one begins with padding")
    loss: torch.Tensor = model(**inputs, use_cache=False, reduction=reduction)
    return loss


def _masked_loss(model: Any, loss_mask: torch.Tensor, reduction: Literal["sum", "none"], **inputs: Any) -> torch.Tensor:
    """Summed loss [], or losses [B, T - 1] that are 0 where there is no target. What PEFT adds as None is dropped."""
    ids: torch.Tensor = inputs["input_ids"]
    inputs = {name: value for name, value in inputs.items() if value is not None}
    hidden = model.base_model(**inputs).last_hidden_state[:, :-1]
    has_target = loss_mask[:, 1:]
    losses = _head_loss(model.get_output_embeddings(), hidden[has_target], ids[:, 1:][has_target], reduction)
    if reduction == "sum":
        return losses
    return losses.new_zeros(has_target.shape).masked_scatter(has_target, losses)


def _head_loss(
    head: Any, hidden: torch.Tensor, targets: torch.Tensor, reduction: Literal["sum", "none"]
) -> torch.Tensor:
    if hasattr(head, "modules_to_save"):  # PEFT's copy of a module that is trained in full
        head = head.modules_to_save[head.active_adapters[0]]
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
def _gathered(weight: Any, bias: Any) -> Any:
    """The whole head where FSDP 2 (a DTensor) or DeepSpeed's ZeRO-3 has given each process a part of it."""
    with contextlib.ExitStack() as stack:
        if getattr(weight, "ds_status", None) is not None and weight.ds_status.name == "NOT_AVAILABLE":
            import deepspeed

            stack.enter_context(deepspeed.zero.GatheredParameters([p for p in (weight, bias) if p is not None]))
        yield tuple(p.full_tensor() if hasattr(p, "full_tensor") else p for p in (weight, bias))

"""Cross-entropy of a vocabulary too large for its logits to be kept: computed chunk by chunk, for targets only.

Logits of 4,096 tokens over 151,552 ids are 2.5 GB in float32, and as much again for their gradient. Here no more than
one chunk of them exists at a time. Where it can be done the gradient is computed along with the loss, while the chunk
is at hand, so that logits are never computed twice.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch.autograd.function import once_differentiable

_CHUNK_NBYTES = {"cpu": 160 << 20}
_DEVICE_CHUNK_NBYTES = 320 << 20
"""Of float32 logits at a time: where matrix products are about as fast as they get on the vocabularies of GLM-4."""

_SLAB_ROWS = 1 << 14


def causal_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    chunk_tokens: int = 0,
    reduction: Literal["sum", "none"] = "sum",
) -> torch.Tensor:
    """Negative log-likelihood of `targets` under softmax(hidden @ weightᵀ + bias), in float32.

    Matrix products run in the type of the weight, or of autocast where that is on, and accumulate in float32; all
    else is float32. Logits of 16-bit weights are rounded to 16 bits on the CPU, as the model's own head rounds them.

    Args:
        hidden: [N, H], only rows that have a target.
        weight: [V, H] of the output head. If it requires a gradient, it gets one.
        targets: int64 [N].
        bias: [V].
        chunk_tokens: rows of logits at a time; 0 chooses.
        reduction: "sum" [], or "none" [N]. A sum gets all gradients without computing logits again; so does "none"
            with a head that is not trained.

    Returns:
        float32. Backward may run once, as gradients are handed over, not copied.
    """
    if not chunk_tokens:
        nbytes = _CHUNK_NBYTES.get(hidden.device.type, _DEVICE_CHUNK_NBYTES)
        chunk_tokens = max(16, nbytes // (4 * weight.shape[0]))
    device_type = hidden.device.type
    compute = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else weight.dtype
    with torch.autocast(device_type, enabled=False):
        loss: torch.Tensor = _HeadLoss.apply(
            hidden, weight, bias, targets, chunk_tokens, compute, reduction == "sum", torch.is_grad_enabled()
        )
    return loss


class _Wanted(NamedTuple):
    """Which gradients to compute: a name each of `_Swept`."""

    hidden: bool = False
    weight: bool = False
    bias: bool = False


class _Swept(NamedTuple):
    """float32 [N] losses, and gradients in the types of their tensors."""

    losses: torch.Tensor
    hidden: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        chunk_tokens: int,
        compute: torch.dtype,
        summed: bool,
        training: bool,
    ) -> torch.Tensor:
        wanted = _Wanted(*ctx.needs_input_grad[:3]) if training else _Wanted()
        # A gradient of the head sums over rows; it has to know the factor of each row, unless that is the same for all.
        ctx.again = (wanted.weight or wanted.bias) and not summed
        swept = _sweep(hidden, weight, bias, targets, chunk_tokens, compute, _Wanted() if ctx.again else wanted)
        if ctx.again:
            ctx.save_for_backward(hidden, weight, bias, targets)
            ctx.settings = (chunk_tokens, compute, wanted)
        elif any(wanted):
            ctx.gradients = swept[1:]
        return swept.losses.sum() if summed else swept.losses

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.again:
            swept = _sweep(*ctx.saved_tensors, *ctx.settings, factors=factor)
            return (swept.hidden, swept.weight, swept.bias, *[None] * 5)
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss were handed over by an earlier backward()")
        (hidden, weight, bias), ctx.gradients = ctx.gradients, None
        for_rows = factor[:, None] if factor.dim() else factor
        scaled = [_scale(hidden, for_rows), _scale(weight, factor), _scale(bias, factor)]
        return (*scaled, *[None] * 5)


def _scale(gradient: torch.Tensor | None, factor: torch.Tensor) -> torch.Tensor | None:
    return None if gradient is None else gradient.mul_(factor)


def _sweep(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    chunk_tokens: int,
    compute: torch.dtype,
    wanted: _Wanted,
    *,
    factors: torch.Tensor | None = None,
) -> _Swept:
    """Losses and gradients of the sum of losses, each multiplied by `factors` float32 [N] if given."""
    num_rows = len(hidden)
    matrix = weight.to(compute)
    losses = torch.empty(num_rows, dtype=torch.float32, device=hidden.device)
    for_hidden = torch.empty_like(hidden) if wanted.hidden else None
    # Rounding after each chunk would add up.
    for_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted.weight else None
    for_bias = torch.zeros_like(weight[:, 0], dtype=torch.float32) if wanted.bias else None
    # Chunks of equal size: a last one of a few rows would read the whole matrix for little.
    for rows in torch.arange(num_rows).chunk(max(1, -(-num_rows // chunk_tokens))) if num_rows else ():
        span = slice(int(rows[0]), int(rows[-1]) + 1)
        inputs = hidden[span].to(compute)
        exponentials, sums = _exponentials(inputs, matrix, bias, targets[span], losses[span])
        if not any(wanted):
            continue
        # softmax - onehot is (exponentials - sum * onehot) / sum: the division is left to the small side of a product.
        exponentials.scatter_add_(1, targets[span, None], -sums)
        shares = sums.reciprocal() if factors is None else factors[span, None] / sums
        errors = exponentials.to(compute)
        if for_hidden is not None:
            for_hidden[span] = (errors @ matrix).float() * shares
        if for_weight is not None:
            _add_product(for_weight, errors.T, (inputs * shares).to(compute))
        if for_bias is not None:
            for_bias.add_((exponentials * shares).sum(0))
    return _Swept(
        losses,
        for_hidden,
        None if for_weight is None else for_weight.to(weight.dtype),
        None if for_bias is None or bias is None else for_bias.to(bias.dtype),
    )


def _exponentials(
    inputs: torch.Tensor,
    matrix: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    losses: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """exp(logits - maximum) float32 [C, V] and its row sums [C, 1]; writes the losses [C]."""
    logits = _product(inputs, matrix.T)
    if bias is not None:
        logits += bias
    logits -= logits.amax(-1, keepdim=True)
    of_targets = logits.gather(1, targets[:, None])
    sums = logits.exp_().sum(-1, keepdim=True)
    losses.copy_((sums.log() - of_targets)[:, 0])
    return logits, sums


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """In float32."""
    if left.dtype != torch.float32 and left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
        return
    for start in range(0, len(left), _SLAB_ROWS):  # the product alone would be as large as the total
        slab = slice(start, start + _SLAB_ROWS)
        total[slab] += _product(left[slab], right)

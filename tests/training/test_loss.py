"""The chunked loss is the plain one: values, gradients, and how much memory it takes."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch_models import (
    CLASSES,
    gradients,
    labels,
    largest_difference,
    plain_mean_loss,
    random_batch,
    random_model,
    recompute,
)  # fmt: skip

from glm4.training.forward import causal_model, forward_loss, sequence_logprobs
from glm4.training.loss import causal_loss

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
]


def head(rows: int = 37, dtype: str = "float32", seed: int = 0) -> tuple[Any, Any, Any, Any]:
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 24, generator=random).to(getattr(torch, dtype))
    weight = torch.randn(101, 24, generator=random).to(getattr(torch, dtype))
    bias = torch.randn(101, generator=random).to(getattr(torch, dtype))
    return hidden, weight, bias, torch.randint(101, (rows,), generator=random)


def plain(hidden: Any, weight: Any, bias: Any, targets: Any, reduction: str) -> Any:
    logits = hidden.float() @ weight.float().T + (0 if bias is None else bias.float())
    return torch.nn.functional.cross_entropy(logits, targets, reduction=reduction)


@pytest.mark.parametrize("chunk_tokens", [1, 16, 36, 37, 1000])
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("trained", ["", "w", "wb", "h", "hw", "hwb"])
def test_equals_plain_cross_entropy(trained: str, reduction: Any, chunk_tokens: int) -> None:
    tensors = head()
    results = []
    for chunked in (True, False):
        hidden, weight, bias = (t.clone().requires_grad_(n in trained) for t, n in zip(tensors, "hwb", strict=False))
        if chunked:
            loss = causal_loss(hidden, weight, tensors[3], bias=bias, chunk_tokens=chunk_tokens, reduction=reduction)
        else:
            loss = plain(hidden, weight, bias, tensors[3], reduction)
        assert loss.requires_grad == bool(trained)
        if trained:  # factors that differ from row to row
            factor = torch.linspace(-1, 2, 37) if reduction == "none" else torch.tensor(0.3)
            (loss * factor).sum().backward()
        results.append([loss.detach(), hidden.grad, weight.grad, bias.grad])
    for ours, expected in zip(*results, strict=True):
        assert (ours is None) == (expected is None)
        if ours is not None:
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_tokens", [1, 8])
def test_bfloat16_adds_up_in_float32(chunk_tokens: int) -> None:
    """The gradient of the head sums over 512 rows of one sign; sums in bfloat16 would stop growing at 256."""
    hidden = torch.ones(512, 24, dtype=torch.bfloat16)
    weight = torch.zeros(101, 24, dtype=torch.bfloat16, requires_grad=True)
    loss = causal_loss(hidden, weight, torch.full((512,), 3), chunk_tokens=chunk_tokens)
    loss.backward()
    assert weight.grad.dtype == torch.bfloat16
    assert weight.grad[3, 0].item() == pytest.approx(-512 * 100 / 101, rel=4e-3)
    assert weight.grad[4, 0].item() == pytest.approx(512 / 101, rel=4e-3)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(512 * 4.61512, rel=1e-4)


def test_bfloat16_is_as_near_as_the_plain_way() -> None:
    tensors = head(dtype="bfloat16")
    expected = [t.float().requires_grad_() for t in tensors[:2]]
    plain(expected[0], expected[1], None, tensors[3], "sum").backward()
    ours = [t.clone().requires_grad_() for t in tensors[:2]]
    causal_loss(ours[0], ours[1], tensors[3], chunk_tokens=16).backward()
    theirs = [t.clone().requires_grad_() for t in tensors[:2]]
    torch.nn.functional.cross_entropy((theirs[0] @ theirs[1].T).float(), tensors[3], reduction="sum").backward()
    for our, their, right in zip(ours, theirs, expected, strict=True):
        error, usual = ((t.grad.float() - right.grad).norm() for t in (our, their))
        assert error < 1.5 * usual
        assert usual < 0.02 * right.grad.norm()


def test_autocast_decides_the_type_of_products() -> None:
    hidden, weight, _, targets = head()
    hidden.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = causal_loss(hidden, weight, targets)
    loss.backward()
    expected = causal_loss(hidden.bfloat16(), weight.bfloat16(), targets)
    assert hidden.grad.dtype == torch.float32
    assert loss.item() == expected.item()


def test_large_logits_and_certain_targets() -> None:
    """No overflow, and no cancellation in 1 - p."""
    weight = torch.eye(4) * 100
    hidden = torch.eye(4)[:2].clone().requires_grad_()
    loss = causal_loss(hidden, weight, torch.tensor([0, 2]), reduction="none")
    assert loss.tolist() == pytest.approx([0, 100])
    loss.sum().backward()
    assert hidden.grad.isfinite().all()
    near = torch.tensor([[0.1, 0, 0, 0]], requires_grad=True)  # p = 1 - 1.4e-4
    causal_loss(near, weight, torch.tensor([0])).backward()
    assert near.grad[0, 0].item() == pytest.approx(-100 * 3 * 4.53999e-5 / (1 + 3 * 4.53999e-5), rel=1e-3)


def test_no_row_has_a_target() -> None:
    hidden, weight, _, targets = head()
    weight.requires_grad_()
    chosen = hidden.requires_grad_()[:0]
    loss = causal_loss(chosen, weight, targets[:0])
    loss.backward()
    assert loss.item() == 0
    assert not weight.grad.any()
    assert not hidden.grad.any()


def test_backward_runs_once() -> None:
    hidden, weight, _, targets = head()
    loss = causal_loss(hidden.requires_grad_(), weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="handed over"):
        loss.backward()


def test_one_chunk_of_logits_exists_at_a_time() -> None:
    """By what torch allocates: at most two tensors of [chunk, vocabulary] at once, and none of [rows, vocabulary]."""
    rows, chunk, vocabulary = 512, 8, 4096
    hidden = torch.randn(rows, 16, requires_grad=True)
    weight = torch.randn(vocabulary, 16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        causal_loss(hidden, weight, torch.zeros(rows, dtype=torch.int64), chunk_tokens=chunk).backward()
    held = peak = largest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            largest, peak = max(largest, event.nbytes()), max(peak, held)
    assert largest == 4 * chunk * vocabulary
    assert peak < 2.1 * largest + 4 * 4 * rows * 16


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_models_loss_and_gradients_are_those_of_transformers(name: str, tied: bool) -> None:
    model, batch = random_model(name, tied=tied), random_batch()
    loss, count = forward_loss(model, batch)
    (loss / count).backward()
    ours = gradients(model)
    expected = plain_mean_loss(model, batch)
    expected.backward()
    assert count == (labels(batch)[:, 1:] != -100).sum()
    assert (loss / count).item() == pytest.approx(expected.item(), abs=1e-5)
    assert largest_difference(ours, gradients(model)) < 1e-5


@pytest.mark.parametrize("name", CLASSES)
def test_sequence_logprobs_are_those_of_all_logits(name: str) -> None:
    model, batch = random_model(name), random_batch()
    factors = torch.tensor([0.02, -0.05, 0.01])
    ours = sequence_logprobs(model, batch)
    (ours * factors).sum().backward()
    found = gradients(model)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    chosen = logits.log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    expected = (chosen * batch["loss_mask"][:, 1:]).sum(-1)
    (expected * factors).sum().backward()
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert largest_difference(found, gradients(model)) < 1e-5


def test_padding_changes_nothing() -> None:
    model, batch = random_model(), random_batch((23, 17, 9))
    together = sequence_logprobs(model, batch)
    for row, length in enumerate((23, 17, 9)):
        alone = {name: tensor[row : row + 1, :length] for name, tensor in batch.items()}
        assert sequence_logprobs(model, alone)[0].item() == pytest.approx(together[row].item(), abs=1e-4)


def test_left_padding_is_refused() -> None:
    batch = random_batch()
    batch["attention_mask"] = batch["attention_mask"].flip(1)
    with pytest.raises(ValueError, match="padded at the right"):
        forward_loss(random_model(), batch)


def test_models_that_change_their_logits_are_refused() -> None:
    model = random_model()
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        forward_loss(model, random_batch())


@pytest.mark.parametrize("reentrant", [False, True])
def test_full_training_with_checkpointing(reentrant: bool) -> None:
    model, batch = random_model(), random_batch()
    forward_loss(model, batch)[0].backward()
    expected = gradients(model)
    recompute(model, reentrant)
    forward_loss(model, batch)[0].backward()
    assert largest_difference(gradients(model), expected) < 1e-5


def test_a_head_that_is_more_than_a_matrix() -> None:
    """LoRA on the output layer."""
    import peft

    torch.manual_seed(0)
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    model, batch = peft.get_peft_model(random_model(), settings), random_batch()
    assert causal_model(model) is model.get_base_model()
    loss, count = forward_loss(model, batch)
    (loss / count).backward()
    ours = gradients(model)
    plain_mean_loss(model, batch).backward()
    assert any("lm_head" in name for name in ours)
    assert largest_difference(ours, gradients(model)) < 1e-5
    logprobs = sequence_logprobs(model, batch)
    assert -logprobs.sum().item() == pytest.approx(loss.item(), rel=1e-5)


def test_a_head_that_peft_trains_in_full() -> None:
    import peft

    model = peft.get_peft_model(random_model(), peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    batch = random_batch()
    with torch.no_grad():
        causal_model(model).lm_head.modules_to_save["default"].weight.mul_(2)
    loss, count = forward_loss(model, batch)
    assert (loss / count).item() == pytest.approx(plain_mean_loss(model, batch).item(), abs=1e-5)
    with model.disable_adapter():
        base, _ = forward_loss(model, batch)
        assert (base / count).item() == pytest.approx(plain_mean_loss(model, batch).item(), abs=1e-5)
    assert base.item() != pytest.approx(loss.item(), rel=1e-3)

"""LoRA by PEFT on our models, with our loss: the gradients of PEFT's own way, and of the formula written by hand."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import peft
import torch
from torch_models import CLASSES, gradients, largest_difference, plain_mean_loss, random_batch, random_model, recompute

from glm4.training.forward import causal_model, forward_loss

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
]


def lora(name: str, **settings: Any) -> Any:
    """PEFT's model with random factors on every matrix of the layers."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=False, **settings)
    return peft.get_peft_model(random_model(name), config)


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
@pytest.mark.parametrize("name", CLASSES)
def test_gradients_are_those_of_transformers_and_peft(name: str, settings: dict[str, bool]) -> None:
    model, batch = lora(name, **settings), random_batch()
    expected = plain_mean_loss(model, batch)
    expected.backward()
    wanted = gradients(model)
    for reentrant in (None, False, True):
        if reentrant is not None:
            recompute(causal_model(model), reentrant)
            causal_model(model).enable_input_require_grads()
        loss, count = forward_loss(model, batch)
        (loss / count).backward()
        assert (loss / count).item() == pytest.approx(expected.item(), abs=1e-5)
        assert largest_difference(gradients(model), wanted) < 1e-5


@pytest.mark.parametrize(("settings", "scale"), [({}, 6 / 4), ({"use_rslora": True}, 6 / 4**0.5)])
@pytest.mark.parametrize("name", CLASSES)
def test_gradients_are_those_of_the_formula(name: str, settings: dict[str, bool], scale: float) -> None:
    """W + scale * B A in place of W: then dA = scale * Bᵀ dW and dB = scale * dW Aᵀ."""
    model, batch = lora(name, **settings), random_batch()
    loss, count = forward_loss(model, batch)
    (loss / count).backward()
    found = gradients(model)
    plain = random_model(name)
    factors = {key.removeprefix("base_model.model."): value for key, value in model.named_parameters()}
    places = [key.removesuffix(".lora_A.default.weight") for key in factors if key.endswith("lora_A.default.weight")]
    expected = {}
    for place in places:
        a, b = (factors[f"{place}.lora_{side}.default.weight"].detach() for side in "AB")
        plain.get_submodule(place).weight.data += scale * b @ a
    plain_mean_loss(plain, batch).backward()
    for place in places:
        a, b = (factors[f"{place}.lora_{side}.default.weight"].detach() for side in "AB")
        d = plain.get_submodule(place).weight.grad
        expected[f"base_model.model.{place}.lora_A.default.weight"] = scale * b.T @ d
        expected[f"base_model.model.{place}.lora_B.default.weight"] = scale * d @ a.T
    assert len(places) == {"Glm": 12, "Glm4": 12}.get(name, 14)
    assert largest_difference(found, expected) < 1e-5

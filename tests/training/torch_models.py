"""Tiny random models of transformers, batches for them and gradients by name, for tests of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

from glm4.training.batches import Batch, collate
from glm4.training.data.examples import TokenizedExample

torch.set_num_threads(1)  # tiny products are not worth waiting for another thread
VOCABULARY = 320
CLASSES = ("Glm", "Glm4", "Qwen2", "Llama")


def random_model(name: str = "Glm", *, seed: int = 0, tied: bool = False, dtype: str = "float32") -> Any:
    """A `<name>ForCausalLM` in evaluation mode: two layers, four heads, two of keys and values."""
    sizes: dict[str, Any] = {"head_dim": 16} if name.startswith("Glm") else {}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=1, tie_word_embeddings=tied, **sizes,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config).to(getattr(torch, dtype))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model.eval()


def random_examples(lengths: Sequence[int], *, seed: int = 0) -> list[TokenizedExample]:
    """About half of the tokens carry loss."""
    random = np.random.default_rng(seed)
    examples = []
    for length in lengths:
        mask = random.random(length) < 0.5
        mask[0], mask[-1] = False, True
        examples.append(TokenizedExample(random.integers(2, VOCABULARY, length).astype(np.int32), mask))
    return examples


def random_batch(lengths: Sequence[int] = (23, 17, 9), *, seed: int = 0) -> Batch:
    return collate(random_examples(lengths, seed=seed), pad_id=0)


def labels(batch: Batch) -> torch.Tensor:
    """As transformers wants them."""
    return batch["input_ids"].masked_fill(~batch["loss_mask"], -100)


def plain_mean_loss(model: Any, batch: Batch, **inputs: Any) -> torch.Tensor:
    """transformers' own loss, of all logits."""
    attended = batch.get("attention_mask")
    loss: torch.Tensor = model(
        input_ids=batch["input_ids"], attention_mask=attended, labels=labels(batch), use_cache=False, **inputs
    ).loss
    return loss


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Of all trained parameters, which are then cleared."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return found


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Over all gradients, and there must be some that are not 0."""
    assert first.keys() == second.keys()
    assert max(float(value.abs().max()) for value in second.values()) > 1e-4
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def recompute(model: Any, reentrant: bool) -> None:
    """Gradient checkpointing, in training mode."""
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)  # its new name
    enable({"use_reentrant": reentrant})
    model.train()

"""Greedy answers in batches are those of one prompt at a time without a cache, under every method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import peft
import torch
import transformers

from glm4.training.config import PrefixConfig, TrainingConfig
from glm4.training.generation import greedy_answers
from glm4.training.methods.prefix import add_prefix, insert_prefix

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
]

STOPS = frozenset({7, 11})
PROMPTS = [np.random.RandomState(length).randint(20, 300, length).astype(np.int32) for length in (9, 3, 17, 5, 1)]


def tiny(architecture: str) -> Any:
    config, model = {
        "glm": (transformers.GlmConfig, transformers.GlmForCausalLM),
        "glm4": (transformers.Glm4Config, transformers.Glm4ForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    }[architecture]
    transformers.set_seed(3)
    extra = {} if architecture == "qwen2" else {"head_dim": 16}
    settings = config(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, initializer_range=0.15, **extra,
    )  # fmt: skip
    return model(settings)


def with_method(model: Any, method: str) -> Any:
    if method == "lora":
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn_like(parameter)
    elif method == "ptuning_v2":
        add_prefix(model, TrainingConfig(prefix=PrefixConfig(num_virtual_tokens=6)))
    elif method == "projection":
        insert_prefix(model, PrefixConfig(num_virtual_tokens=6, projection=True, hidden_size=32))
    return model


def one_by_one(model: Any, prompt: np.ndarray[Any, Any], max_tokens: int) -> list[int]:
    """The same by the forward pass that is trained."""
    ids = prompt.tolist()
    for _ in range(max_tokens):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in STOPS:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("method", ["full", "lora", "ptuning_v2", "projection"])
@pytest.mark.parametrize("architecture", ["glm", "glm4", "qwen2"])
def test_batches_with_a_cache_change_nothing(architecture: str, method: str) -> None:
    model = with_method(tiny(architecture), method)
    expected = [one_by_one(model.eval(), prompt, 12) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in expected}) > 1
    model.train()
    base = model.get_base_model() if method == "lora" else model
    base.activation_checkpointing_enable({"use_reentrant": False})
    for batch_size in (1, 2, 5):
        assert greedy_answers(model, PROMPTS, STOPS, max_tokens=12, batch_size=batch_size) == expected
    assert model.training
    if hasattr(base.base_model, "prefix"):
        assert base.base_model.prefix.on


def test_answers_end_with_the_first_stop_token() -> None:
    model = with_method(tiny("glm"), "full")
    free = greedy_answers(model, PROMPTS, frozenset(), max_tokens=12, batch_size=3)
    assert [len(answer) for answer in free] == [12] * len(PROMPTS)
    stop = free[2][4]
    ended = greedy_answers(model, PROMPTS, frozenset({stop}), max_tokens=12, batch_size=3)
    for before, after in zip(free, ended, strict=True):
        assert after == (before[: before.index(stop) + 1] if stop in before else before)
    assert ended[2][-1] == stop
    assert greedy_answers(model, [], STOPS, max_tokens=12, batch_size=3) == []


def test_a_computation_in_bf16() -> None:
    model = with_method(tiny("glm"), "lora")
    answers = greedy_answers(
        model, PROMPTS, STOPS, max_tokens=3, batch_size=5, precision=lambda: torch.autocast("cpu", torch.bfloat16)
    )
    assert [len(answer) for answer in answers] == [3] * len(PROMPTS)

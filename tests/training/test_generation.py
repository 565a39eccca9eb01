"""Greedy answers in batches are those of one prompt at a time without a cache, under every method."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import peft
import torch
import transformers
from torch_vision import tiny as tiny_vision

import vision_models as vm
from glm4.checkpoints.vision_config import image_layout
from glm4.multimodal.image import encode_picture
from glm4.requests.image_inputs import ImageInputs, ImageOptions
from glm4.training.batches import collate
from glm4.training.config import PrefixConfig, TrainingConfig
from glm4.training.data.examples import TokenizedExample
from glm4.training.generation import greedy_answers
from glm4.training.methods.prefix import add_prefix, insert_prefix
from glm4.training.vision.batches import PictureCollator

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
]

STOPS = frozenset({7, 11})
COLLATE = partial(collate, pad_id=0)


def prompt(ids: np.ndarray[Any, Any]) -> TokenizedExample:
    return TokenizedExample(ids.astype(np.int32), np.zeros(len(ids), np.bool_))


PROMPTS = [prompt(np.random.RandomState(length).randint(20, 300, length)) for length in (9, 3, 17, 5, 1)]


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


def one_by_one(model: Any, prompt: TokenizedExample, max_tokens: int) -> list[int]:
    """The same by the forward pass that is trained."""
    ids = prompt.ids.tolist()
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
        assert greedy_answers(model, PROMPTS, COLLATE, STOPS, max_tokens=12, batch_size=batch_size) == expected
    assert model.training
    if hasattr(base.base_model, "prefix"):
        assert base.base_model.prefix.on


def test_answers_end_with_the_first_stop_token() -> None:
    model = with_method(tiny("glm"), "full")
    free = greedy_answers(model, PROMPTS, COLLATE, frozenset(), max_tokens=12, batch_size=3)
    assert [len(answer) for answer in free] == [12] * len(PROMPTS)
    stop = free[2][4]
    ended = greedy_answers(model, PROMPTS, COLLATE, frozenset({stop}), max_tokens=12, batch_size=3)
    for before, after in zip(free, ended, strict=True):
        assert after == (before[: before.index(stop) + 1] if stop in before else before)
    assert ended[2][-1] == stop
    assert greedy_answers(model, [], COLLATE, STOPS, max_tokens=12, batch_size=3) == []


def test_a_computation_in_bf16() -> None:
    model = with_method(tiny("glm"), "lora")
    answers = greedy_answers(
        model,
        PROMPTS,
        COLLATE,
        STOPS,
        max_tokens=3,
        batch_size=5,
        precision=lambda: torch.autocast("cpu", torch.bfloat16),
    )
    assert [len(answer) for answer in answers] == [3] * len(PROMPTS)


def test_pictures_are_seen_in_a_batch_as_alone(tmp_path: Path) -> None:
    shape = vm.VISION_MODELS["glm-4v"]
    model = tiny_vision(tmp_path)
    layout = image_layout(model.model.vision.config)
    assert layout is not None
    images = ImageInputs.of(layout, ImageOptions())
    pictures = PictureCollator(COLLATE, images)
    random = np.random.RandomState(1)

    def seeing(before: int, after: int) -> TokenizedExample:
        marks = [shape.begin_of_image] + [shape.end_of_text] * (shape.num_rows - 2) + [shape.end_of_image]
        ids = np.concatenate([random.randint(2, 19, before), marks, random.randint(2, 19, after)])
        noise = random.randint(0, 256, (40, 90, 3)).astype(np.uint8)
        return replace(prompt(ids), images=(encode_picture(noise),), image_starts=(before,))

    prompts = [seeing(2, 5), prompt(random.randint(2, 19, 3)), seeing(6, 1), seeing(2, 5)]

    def answer(*some: TokenizedExample) -> list[list[int]]:
        return greedy_answers(model, some, pictures, frozenset(), max_tokens=6, batch_size=len(some))

    alone = [answer(one)[0] for one in prompts]
    assert answer(*prompts) == alone
    others = [answer(replace(prompts[0], images=one.images))[0] for one in (prompts[2], prompts[3])]
    assert any(other != alone[0] for other in others)  # another picture, another answer
    images.close()

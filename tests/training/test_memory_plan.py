"""The estimate of training's memory: its counts, the published figures, and advice that fits and is needed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from glm4.errors import OutOfMemoryError
from glm4.model.shapes import SHAPES
from glm4.model.tensors import num_parameters
from glm4.training.config import DataConfig, LoraConfig, PrefixConfig, TrainingConfig
from glm4.training.memory import estimate
from glm4.training.memory_advice import advise, memory_note

GLM = SHAPES["glm-4-9b-chat"]
GB = 10**9
QKV = LoraConfig(target_modules=("q_proj", "k_proj", "v_proj"))


def config(length: int = 1025, **changes: Any) -> TrainingConfig:
    return TrainingConfig(data=DataConfig(max_length=length), **changes)


def test_what_is_trained() -> None:
    assert estimate(config(lora=QKV), GLM).trained == 40 * 8 * (3 * 4096 + 4096 + 2 * 256)
    assert estimate(config(method="full"), GLM).trained == num_parameters(GLM)
    assert estimate(config(method="ptuning_v2", prefix=PrefixConfig(512)), GLM).trained == 512 * 40 * 2 * 256
    last = estimate(config(method="freeze", freeze_layers=39), GLM).trained
    layer = (num_parameters(GLM) - 2 * 151552 * 4096 - 4096) // 40
    assert last == layer + 151552 * 4096 + 4096
    tied = SHAPES["starter"]
    head_stays = estimate(config(method="freeze", freeze_layers=24), tied).trained
    assert head_stays == tied.hidden_size
    dora = estimate(config(lora=replace(QKV, use_dora=True)), GLM).trained
    assert dora - estimate(config(lora=QKV), GLM).trained == 40 * (4096 + 512)
    apart, fused = (estimate(config(), GLM, fused=fused).trained for fused in (False, True))
    assert apart - fused == 40 * 8 * 4096


@pytest.mark.parametrize(
    ("changes", "devices", "least", "most"),
    [
        ({"lora": QKV}, 1, 19.5, 22),
        ({"method": "ptuning_v2", "prefix": PrefixConfig(512)}, 1, 19.5, 22),
        ({"method": "full", "accelerator": "zero3"}, 8, 25, 80),
        ({"method": "full", "accelerator": "zero3"}, 4, 35, 80),
        ({"quantize": "nf4"}, 1, 7, 12),
    ],
    ids=["lora", "ptuning_v2", "full on 8", "full on 4", "qlora"],
)
def test_the_published_figures(changes: dict[str, Any], devices: int, least: float, most: float) -> None:
    """22 GB for LoRA and 21 GB for P-Tuning v2, with all logits at once (2 GB more than here); 8 x 80 GB in full."""
    found = estimate(config(**changes), GLM, devices=devices)
    assert least * GB < found.total < most * GB, found


def test_what_takes_more_takes_more() -> None:
    plain = config(2048, per_device_train_batch_size=2)
    total = estimate(plain, GLM).total
    larger: list[dict[str, Any]] = [
        {"gradient_checkpointing": False},
        {"per_device_train_batch_size": 4},
        {"data": DataConfig(max_length=4096)},
        {"dtype": "fp32"},
        {"method": "full"},
        {"method": "freeze", "freeze_layers": 38},
        {"objective": "dpo"},
        {"lora": LoraConfig(r=64)},
        {"lora": LoraConfig(use_dora=True)},
    ]
    for changes in larger:
        assert estimate(replace(plain, **changes), GLM).total > total, changes
    full = replace(plain, method="full")
    divided = [estimate(replace(full, accelerator=name), GLM, devices=8).total for name in ("", "zero2", "zero3")]
    assert divided == sorted(divided, reverse=True)
    assert estimate(replace(plain, gradient_accumulation_steps=8), GLM).total == total
    assert estimate(plain, SHAPES["glm-4-9b-0414"]).total > total  # two more norms


def test_loading_is_the_peak_of_a_model_that_is_divided_later() -> None:
    found = estimate(config(method="full", accelerator="zero3"), GLM, devices=64)
    assert found.total == found.loading > 4 * num_parameters(GLM)
    assert sum(found.parts.values()) < 0.5 * found.total


@pytest.mark.parametrize(
    ("changes", "available", "devices", "wanted"),
    [
        ({"gradient_checkpointing": False}, 23, 1, ("gradient_checkpointing: true",)),
        ({"per_device_train_batch_size": 8}, 23, 1,
         ("per_device_train_batch_size: 1 with gradient_accumulation_steps: 8",)),
        ({"gradient_checkpointing": False}, 16, 1, ("gradient_checkpointing: true", "quantize: nf4")),
        ({"method": "full"}, 76, 1, ("method: lora",)),
        ({"method": "full"}, 76, 8, ("accelerator: zero3",)),
        ({"method": "full"}, 12, 1, ("method: lora", "quantize: nf4")),
        ({"data": DataConfig(max_length=65536)}, 23, 1, ("data.max_length: 4096",)),
        ({}, 6, 1, None),
    ],
)  # fmt: skip
def test_the_nearest_change_that_fits(
    changes: dict[str, Any], available: int, devices: int, wanted: tuple[str, ...] | None
) -> None:
    """It fits, and without any one of the changes it would not."""
    before = config(2048, **changes) if "data" not in changes else TrainingConfig(**changes)
    found = advise(before, GLM, available * GB, devices=devices)
    assert (None if found is None else found.changes) == wanted
    if found is not None:
        assert estimate(found.config, GLM, devices=devices).total <= available * GB
        assert estimate(before, GLM, devices=devices).total > available * GB


def test_what_a_run_says_before_it_loads_weights() -> None:
    """Nothing if it fits, what to change if only the weights do, and an error if they do not."""
    before = config(2048, per_device_train_batch_size=8)
    assert memory_note(before, GLM, 40 * GB, device="gpu") == ""
    note = memory_note(before, GLM, 23 * GB, device="gpu")
    assert "needs about 30.9 GB and 23.0 GB are free" in note
    assert note.endswith("per_device_train_batch_size: 1 with gradient_accumulation_steps: 8 would fit")
    with pytest.raises(OutOfMemoryError, match=r"are free; .*quantize: nf4 would fit"):
        memory_note(before, GLM, 16 * GB, device="gpu")
    with pytest.raises(OutOfMemoryError, match="a smaller model would fit"):
        memory_note(before, GLM, 4 * GB, device="gpu")


def test_on_a_processor_shorter_numbers_are_a_way() -> None:
    before = config(512, per_device_train_batch_size=2)
    found = advise(before, GLM, 24 * GB, device="cpu")
    assert found is not None
    assert found.changes == ("dtype: bf16",)

"""What to change in a training configuration that needs more memory than there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from glm4.errors import OutOfMemoryError
from glm4.model.config import ModelConfig
from glm4.training.config import TrainingConfig
from glm4.training.memory import Device, estimate

_SHORTEST = 512


class Advice(NamedTuple):
    """A configuration that fits, and the settings in which it differs, as they are written in a file."""

    config: TrainingConfig
    changes: tuple[str, ...]


def advise(
    config: TrainingConfig, model: ModelConfig, available: int, *, device: Device = "gpu", devices: int = 1
) -> Advice | None:
    """The nearest configuration that needs at most `available` bytes per process; None if there is none.

    Changes are tried in this order, each in addition to those before, and then those that turn out not to be needed
    are taken back: recomputing activations, smaller batches that are accumulated, dividing the model among devices,
    bf16 on a processor, shorter samples, a base in 4 bits, LoRA instead of training weights.
    """

    def fits(one: TrainingConfig) -> bool:
        return estimate(one, model, device=device, devices=devices).total <= available

    taken: list[_Change] = []
    for change in _changes(device, devices):
        if _apply(config, [*taken, change])[0] == _apply(config, taken)[0]:
            continue
        taken.append(change)
        if fits(_apply(config, taken)[0]):
            break
    else:
        return None
    for change in list(reversed(taken)):
        fewer = [one for one in taken if one is not change]
        if fits(_apply(config, fewer)[0]):
            taken = fewer
    return Advice(*_apply(config, taken))


def memory_note(
    config: TrainingConfig,
    model: ModelConfig,
    free: int,
    *,
    device: Device,
    devices: int = 1,
    fused: bool = True,
) -> str:
    """What to tell the user of a run that is about to load its weights; empty if it fits.

    Args:
        config: `data.max_length` being the longest sample there is.
        free: bytes that this process can still take; libraries are loaded already.

    Raises:
        OutOfMemoryError: not even the weights fit.
    """
    needed = estimate(config, model, device=device, devices=devices, fused=fused)
    program = needed.program if device == "cpu" else 0
    if needed.total - program <= free:
        return ""
    advice = advise(config, model, free + program, device=device, devices=devices)
    change = "a smaller model would" if advice is None else f"{'; '.join(advice.changes)} would"
    text = (
        f"this run needs about {needed.total / 1e9:.1f} GB and {(free + program) / 1e9:.1f} GB are free; {change} fit"
    )
    if max(needed.weights, needed.loading - needed.program) > free:
        raise OutOfMemoryError(text)
    return text


_Change = Callable[[TrainingConfig], tuple[TrainingConfig, str]]


def _apply(config: TrainingConfig, changes: Sequence[_Change]) -> tuple[TrainingConfig, tuple[str, ...]]:
    words: dict[str, str] = {}
    for change in changes:
        config, text = change(config)
        words[text.partition(":")[0]] = text  # a later value of the same setting replaces the earlier one
    return config, tuple(words.values())


def _changes(device: Device, devices: int) -> list[_Change]:
    halvings = [_half_length] * 8
    return [
        _checkpointing,
        _single_rows,
        *([_divided] if devices > 1 else []),
        *([_short_numbers] if device == "cpu" else []),
        *halvings,
        *([_four_bits] if device == "gpu" else []),
        _adapter,
        *([_four_bits] if device == "gpu" else []),
    ]


def _checkpointing(config: TrainingConfig) -> tuple[TrainingConfig, str]:
    return replace(config, gradient_checkpointing=True), "gradient_checkpointing: true"


def _single_rows(config: TrainingConfig) -> tuple[TrainingConfig, str]:
    steps = config.per_device_train_batch_size * config.gradient_accumulation_steps
    changed = replace(config, per_device_train_batch_size=1, gradient_accumulation_steps=steps)
    return changed, f"per_device_train_batch_size: 1 with gradient_accumulation_steps: {steps}"


def _divided(config: TrainingConfig) -> tuple[TrainingConfig, str]:
    return replace(config, accelerator="zero3"), "accelerator: zero3"


def _short_numbers(config: TrainingConfig) -> tuple[TrainingConfig, str]:
    return replace(config, dtype="bf16"), "dtype: bf16"


def _half_length(config: TrainingConfig) -> tuple[TrainingConfig, str]:
    length = config.data.max_length
    length = max(length // 2, min(length, _SHORTEST))
    return replace(config, data=replace(config.data, max_length=length)), f"data.max_length: {length}"


def _four_bits(config: TrainingConfig) -> tuple[TrainingConfig, str]:
    changed = replace(config, quantize="nf4") if config.method == "lora" else config
    return changed, "quantize: nf4"


def _adapter(config: TrainingConfig) -> tuple[TrainingConfig, str]:
    changed = replace(config, method="lora") if config.method in ("full", "freeze") else config
    return changed, "method: lora"

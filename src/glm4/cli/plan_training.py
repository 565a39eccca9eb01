"""`glm4 plan MODEL --train METHOD`: how much memory fine-tuning needs, and what to change if that does not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glm4.cli.parameters import UsageError
from glm4.cli.plan import METHODS

if TYPE_CHECKING:
    from glm4.model.config import ModelConfig
    from glm4.training.config import TrainingConfig
    from glm4.training.memory import TrainingMemory

_DTYPES = ("auto", "bf16", "fp32")
_GPU_SIZES = (8, 12, 16, 24, 32, 48, 80, 96, 141, 192)
_GPU_SHARE = 0.96  # of the gigabytes that a GPU is sold with; the driver and fragments of free memory have the rest


@dataclass(frozen=True)
class TrainingPlan:
    """What is asked: the options of `glm4 plan` that go with `--train`.

    Attributes:
        gpu: gigabytes of each GPU; None plans for this machine's processor, and says which GPUs have room.
    """

    method: str
    dtype: str
    max_length: int
    batch: int
    accumulation: int
    checkpointing: bool
    devices: int
    zero: int | None
    gpu: float | None
    frozen_layers: int | None

    def config(self, layers: int) -> TrainingConfig:
        """As a configuration of `glm4 finetune`.

        Raises:
            UsageError: an option has no such value, or two do not go together.
        """
        from glm4.training.config import DataConfig, TrainingConfig

        if self.method not in METHODS:
            raise UsageError(f"--train is one of {', '.join(METHODS)}, not {self.method!r}")
        if self.dtype not in _DTYPES:
            raise UsageError(f"with --train, --dtype is one of {', '.join(_DTYPES)}, not {self.dtype!r}")
        if self.zero is not None and (self.zero not in (2, 3) or self.devices < 2):
            raise UsageError("--zero is 2 or 3, and divides among several --devices")
        given: Any = {"method": self.method, "dtype": self.dtype}
        if self.method == "qlora":
            given |= {"method": "lora", "quantize": "nf4"}
        if self.method == "freeze":
            frozen = layers // 2 if self.frozen_layers is None else self.frozen_layers
            if frozen >= layers:
                raise UsageError(f"--freeze-layers is below the model's {layers} layers")
            given["freeze_layers"] = frozen
        return TrainingConfig(
            data=DataConfig(max_length=self.max_length),
            per_device_train_batch_size=self.batch,
            gradient_accumulation_steps=self.accumulation,
            gradient_checkpointing=self.checkpointing,
            accelerator="" if self.zero is None else f"zero{self.zero}",
            **given,
        )


def plan_training(plan: TrainingPlan, name: str, model: ModelConfig, *, as_json: bool) -> None:
    """Print the estimate, whether it fits, and what to change if it does not."""
    from glm4.cli import console
    from glm4.system import memory
    from glm4.training.memory import estimate
    from glm4.training.memory_advice import advise

    config = plan.config(model.num_hidden_layers)
    here = plan.gpu is None
    available = memory.available_memory() // plan.devices if here else int(1e9 * _GPU_SHARE * (plan.gpu or 0))
    device: Any = "cpu" if here else "gpu"
    needed = estimate(config, model, device=device, devices=plan.devices)
    on_gpu = estimate(config, model, device="gpu", devices=plan.devices)
    advice = None
    if needed.total > available:
        advice = advise(config, model, available, device=device, devices=plan.devices)
    changes = None if advice is None else list(advice.changes)
    if as_json:
        facts = ("device", "dtype", "devices", "tokens", "parameters", "trained")
        console.print_json(
            {
                "model": name,
                "method": plan.method,
                **{key: getattr(needed, key) for key in facts},
                "bytes": {**needed.parts, "loading": needed.loading, "total": needed.total, "available": available},
                "fits": needed.total <= available,
                "changes": changes,
                "gpu_bytes": on_gpu.total,
                "smallest_gpu": _smallest_gpu(on_gpu.total),
            }
        )
        return
    _show(plan, name, needed, available)
    out = console.stdout()
    out.print(_verdict(needed, available, changes, here=here), soft_wrap=True)
    if here:
        out.print(_gpus(on_gpu, quantized=config.quantize != "none"), soft_wrap=True)
    elif advice is not None:
        total = estimate(advice.config, model, device=device, devices=plan.devices).total
        out.print(f"It then needs {console.human_bytes(total)}.")


def _show(plan: TrainingPlan, name: str, needed: TrainingMemory, available: int) -> None:
    from rich.table import Table
    from rich.text import Text

    from glm4.cli.console import human_bytes, stdout

    out = stdout()
    devices = "" if plan.devices == 1 else f", each of {plan.devices} devices"
    out.print(
        f"{name}: {plan.method} in {needed.dtype}, {plan.max_length:,} tokens x {plan.batch}{devices}; "
        f"{needed.trained / 1e6:,.1f}M parameters trained",
        style="bold",
        soft_wrap=True,
    )
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    for part, nbytes in needed.parts.items():
        if nbytes:
            table.add_row(part, human_bytes(nbytes))
    if needed.loading > sum(needed.parts.values()):
        table.add_row("while loading", human_bytes(needed.loading))
    table.add_row(Text("needed at the peak", "bold"), human_bytes(needed.total))
    table.add_row(Text("available", "dim"), human_bytes(available))
    out.print(table)


def _verdict(needed: TrainingMemory, available: int, changes: list[str] | None, *, here: bool) -> str:
    where = "here, on the processor" if here else "on such a GPU"
    if needed.total <= available:
        return f"It fits {where}."
    if changes is None:
        return f"It does not fit {where}, and no settings of this model do; take a smaller model."
    return f"It does not fit {where}. The nearest that does: {'; '.join(changes)}."


def _smallest_gpu(nbytes: int) -> int | None:
    return next((size for size in _GPU_SIZES if nbytes <= 1e9 * _GPU_SHARE * size), None)


def _gpus(needed: TrainingMemory, *, quantized: bool) -> str:
    from glm4.cli.console import human_bytes

    size = _smallest_gpu(needed.total)
    each = "On a GPU" if needed.devices == 1 else f"On each of {needed.devices} GPUs"
    room = "more than one has" if size is None else f"which one of {size} GB has"
    weights = f"{needed.dtype} over 4-bit weights" if quantized else needed.dtype
    return f"{each}, in {weights}, it needs {human_bytes(needed.total)}, {room} (--gpu GB says what to change)."

"""Peak memory of fine-tuning runs on the CPU, each in a process of its own, beside what `glm4 plan --train` says.

    python benchmarks/train_memory.py                       the smoke model, every method
    python benchmarks/train_memory.py --model starter --cases lora "lora, kept"

`training/memory.py` is where the two should meet. Rows are random ids, as long as they may be, so that every batch is
of the size that is planned for; two steps are taken, the second with the optimizer's moments. Large blocks of memory
are returned at once, as in runs that are short of it; otherwise glibc holds up to as much again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

import harness
from glm4 import hub
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.hf_layout import hf_class
from glm4.training.config import DataConfig, LoraConfig, PrefixConfig, TrainingConfig
from glm4.training.data.examples import TokenizedExample
from glm4.training.memory import TrainingMemory, estimate

STEPS = 2
CASES: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "lora": {},
        "lora, kept": {"gradient_checkpointing": False},
        "lora of q, k, v": {"lora": LoraConfig(target_modules=("q_proj", "k_proj", "v_proj"))},
        "dora": {"lora": LoraConfig(use_dora=True)},
        "lora, bf16": {"dtype": "bf16"},
        "ptuning_v2": {"method": "ptuning_v2", "prefix": PrefixConfig(64)},
        "freeze": {"method": "freeze"},  # half of the layers
        "full": {"method": "full"},
    }
)


@dataclass(frozen=True)
class Peak:
    """What one process took, and what the plan says."""

    name: str
    measured: int
    planned: TrainingMemory

    @property
    def ratio(self) -> float:
        return self.planned.total / self.measured


def config_of(case: str, model: str, length: int, batch: int, layers: int) -> TrainingConfig:
    """A run's configuration, without its output."""
    config = TrainingConfig(
        model=model,
        data=DataConfig(max_length=length),
        per_device_train_batch_size=batch,
        max_steps=STEPS,
        device="cpu",
        dtype="fp32",
        resume=False,
    )
    config = replace(config, **CASES[case])
    return replace(config, freeze_layers=layers // 2) if config.method == "freeze" else config


def shape_of(model: str) -> tuple[Any, bool]:
    """The shape of a model, and whether its class has gate and up as one matrix."""
    with open_checkpoint(hub.resolve(model, allow_download=False)) as checkpoint:
        return checkpoint.config, hf_class(checkpoint).fused_gate_up


def train(case: str, model: str, length: int, batch: int) -> None:
    """The process that is measured, in the way of one that is short of memory."""
    from glm4.system.memory import map_large_blocks
    from glm4.training.run import finetune

    map_large_blocks()
    shape, _ = shape_of(model)
    rng = np.random.default_rng(0)
    mask = np.arange(length) > 0
    ids = [rng.integers(3, shape.vocab_size - 1, length).astype(np.int32) for _ in range(STEPS * batch)]
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(case, model, length, batch, shape.num_hidden_layers)
        finetune(replace(config, output=folder), train=[TokenizedExample(row, mask) for row in ids])


def peak(case: str, model: str, length: int, batch: int) -> Peak:
    """Run it in another process and plan it in this one."""
    words = ["--case", case, "--model", model, "--length", length, "--batch", batch]
    done = harness.finish([sys.executable, str(Path(__file__).resolve()), *map(str, words)])
    shape, fused = shape_of(model)
    config = config_of(case, model, length, batch, shape.num_hidden_layers)
    return Peak(case, done.peak_nbytes, estimate(config, shape, device="cpu", fused=fused))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smoke")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        train(args.case, args.model, args.length, args.batch)
        return
    print(f"{args.model}, {args.length} tokens x {args.batch}")
    for case in args.cases:
        found = peak(case, args.model, args.length, args.batch)
        parts = {name: round(nbytes / 1e6) for name, nbytes in found.planned.parts.items() if nbytes}
        print(
            f"{case:16} measured {found.measured / 1e6:7.0f} MB, planned {found.planned.total / 1e6:7.0f} MB "
            f"({found.ratio:.2f})  {json.dumps(parts)}",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""One training run by `glm4`, data preparation included: a process of its own for `finetune.py`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.append(sys.path.pop(0))  # this folder has a `kernels`, too, which PEFT would take for the package

from finetune_data import peak_nbytes
from glm4.training.config import DataConfig, LoraConfig, TrainingConfig
from glm4.training.listener import Listener, Summary
from glm4.training.run import finetune


class Watch(Listener):
    """Seconds from the first step to the last, and the loss of every step."""

    def __init__(self) -> None:
        self.start = self.end = 0.0
        self.losses: list[float] = []
        self.tokens = 0

    def started(self, summary: Summary) -> None:
        self.start = time.perf_counter()

    def stepped(self, step: int, total: int) -> None:
        self.end = time.perf_counter()

    def logged(self, row: Mapping[str, Any]) -> None:
        if "loss" in row:
            self.losses.append(float(row["loss"]))
            self.tokens = int(row["tokens"])


def train(spec: Mapping[str, Any]) -> dict[str, Any]:
    """One epoch; the adapter is saved."""
    watch = Watch()
    config = TrainingConfig(
        model=spec["model"],
        output=spec["output"],
        data=DataConfig(train=(spec["rows"],), max_length=1 << 16),
        lora=LoraConfig(r=spec["rank"], lora_alpha=spec["alpha"]),
        dtype="fp32",
        device="cpu",
        num_train_epochs=1,
        per_device_train_batch_size=spec["batch"],
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        seed=spec["seed"],
        logging_steps=1,
        save_steps=0,
        resume=False,
    )
    finetune(config, listener=watch)
    seconds = watch.end - watch.start
    return {"seconds": seconds, "peak": peak_nbytes(), "losses": watch.losses, "tokens": watch.tokens}


if __name__ == "__main__":
    print(json.dumps(train(json.loads(Path(sys.argv[1]).read_text()))))

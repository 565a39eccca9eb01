"""Folders of training runs, as `glm4 finetune` writes them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


def write_run(folder: Path, steps: int = 4, **status: Any) -> Path:
    """What a trainer writes."""
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = [
        {"step": step, "loss": 2.0 / step, "learning_rate": 1e-4, "tokens_per_second": 100.0 + step}
        for step in range(1, steps + 1)
    ]
    rows.append({"step": steps, "eval_loss": 0.75})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "samples.jsonl").write_text(
        "".join(
            json.dumps({"step": n, "prompt": "<b>q</b>", "answer": f"a{n}", "reference": "r"}) + "\n" for n in (1, 2)
        )
    )
    whole = {"state": "running", "step": steps, "total_steps": 2 * steps, "epoch": 0.5, "pid": os.getpid(),
             "updated": time.time()} | status  # fmt: skip
    (folder / "training_config.json").write_text(json.dumps({"model": "tiny", "method": "lora"}, indent=2))
    (folder / "status.json").write_text(json.dumps(whole))
    return folder

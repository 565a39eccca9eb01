"""The folder of a training run, as trainer, `glm4 merge` and the web page see it. Needs no torch.

run/
  training_config.json   the TrainingConfig, complete
  status.json            {"state": "starting|running|done|failed", "step", "total_steps", "epoch", "pid",
                         "updated", "error"}
  metrics.jsonl          one object per log line: {"step", "epoch", "time", "loss", "learning_rate", "grad_norm",
                         "tokens_per_second", "tokens"} or {"step", "eval_loss", …}; a resumed run continues it.
                         With DPO "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins" (and
                         "eval_rewards/…"); with generation "eval_exact_match", "eval_rouge_l", "eval_chrf",
                         "eval_right_stop", "eval_valid_calls", "eval_right_calls" (`answer_tasks.AnswerScores`)
  samples.jsonl          {"step", "prompt", "answer", "reference"} of generation at evaluations, special tokens shown
  references.json, validation_references.json      of DPO without an adapter: `dpo_references`
  loss.png               the plot
  checkpoint-<step>/     complete or absent
  adapter_config.json, adapter_model.safetensors   at the end; or a whole model in Hugging Face's layout
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, TypeAlias

STATUS, METRICS, SAMPLES, CONFIG, PLOT = (
    "status.json",
    "metrics.jsonl",
    "samples.jsonl",
    "training_config.json",
    "loss.png",
)
REFERENCES, VALIDATION_REFERENCES = "references.json", "validation_references.json"
MAX_RUNS = 200
_MAX_READ = 16 << 20
_SILENT_SECONDS = 60.0

Row: TypeAlias = dict[str, Any]


def find_runs(folder: Path) -> list[Path]:
    """The folder itself if it is a run, else the runs directly below it, the newest first; at most `MAX_RUNS`."""
    if (folder / STATUS).is_file():
        return [folder]
    try:
        found = [entry for entry in folder.iterdir() if (entry / STATUS).is_file()]
        return sorted(found, key=lambda run: (run / STATUS).stat().st_mtime_ns, reverse=True)[:MAX_RUNS]
    except OSError:
        return []


def read_status(run: Path) -> Row:
    """`status.json`, and `model` and `method` of the configuration; what cannot be read is left out.

    A run whose process ended without a word has the state "stopped".
    """
    config = _object(run / CONFIG)
    status = {key: config[key] for key in ("model", "method") if key in config} | _object(run / STATUS)
    silent = time.time() - float(status.get("updated") or 0) > _SILENT_SECONDS
    if status.get("state") in ("starting", "running") and silent and not _is_alive(status.get("pid")):
        status["state"] = "stopped"
    return status


def read_metrics(run: Path) -> list[Row]:
    """Rows of `metrics.jsonl`, in order; of a very long file the last ones."""
    return _objects(_tail(run / METRICS, _MAX_READ))


def read_samples(run: Path, last: int) -> list[Row]:
    """The last rows of `samples.jsonl`, the newest first."""
    return _objects(_tail(run / SAMPLES, _MAX_READ))[-last:][::-1]


def _tail(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most))
            data = file.read(most)
    except OSError:
        return b""
    return data if size <= most else data.partition(b"\n")[2]


def _object(path: Path) -> Row:
    """A whole file of a single object."""
    rows = _objects(_tail(path, 1 << 16).replace(b"\n", b" "))
    return rows[0] if rows else {}


def _objects(data: bytes) -> list[Row]:
    """The JSON objects of lines; a line that is being written, or is broken, is left out."""
    rows = []
    for line in data.split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:  # UnicodeDecodeError is one
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _is_alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

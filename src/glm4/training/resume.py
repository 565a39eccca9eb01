"""Whether a run goes on, and from where. Needs no torch."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from glm4.errors import InvalidRequestError, shown
from glm4.system.atomic_file import atomic_file
from glm4.system.atomic_folder import remove_abandoned
from glm4.training.config import TrainingConfig
from glm4.training.config_file import as_dict, differences
from glm4.training.run_folder import CONFIG, METRICS, PLOT, SAMPLES, STATUS

_CHECKPOINT = re.compile(r"checkpoint-[0-9]{1,12}", re.ASCII)
# What may change between two runs that are one: where it computes, and what is written and measured.
_HARMLESS = frozenset({
    "output", "resume", "device", "save_steps", "save_total_limit", "report_to", "generate_every", "generate_samples",
    "generate_max_tokens", "per_device_eval_batch_size", "accelerator", "eval_steps", "data.validation",
    "gradient_checkpointing",
})  # fmt: skip


def prepare_folder(config: TrainingConfig) -> None:
    """Make the run's folder ready to begin, or to go on; called by one process.

    Raises:
        InvalidRequestError: it has something else, or a run with another configuration.
    """
    run = Path(config.output)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequestError(f"cannot make the folder {run}: {error.strerror or error}", param="output") from None
    stored = _stored(run)
    if stored is None and any(entry.name[0] != "." for entry in run.iterdir()):
        raise InvalidRequestError(f"{run} has files in it that are not of a run; name another folder", param="output")
    if stored is not None and config.resume and _has_checkpoints(run):
        _check_same(run, stored, config)
    elif stored is not None:
        _clear(run)
    remove_abandoned(run)
    with atomic_file(run / CONFIG) as file:
        file.write(json.dumps(as_dict(config), indent=2).encode() + b"\n")


def _stored(run: Path) -> dict[str, Any] | None:
    try:
        value = json.loads((run / CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _has_checkpoints(run: Path) -> bool:
    return any(_CHECKPOINT.fullmatch(entry.name) for entry in run.iterdir())


def _check_same(run: Path, stored: dict[str, Any], config: TrainingConfig) -> None:
    changed = {key: both for key, both in differences(stored, config).items() if key not in _HARMLESS}
    if changed:
        said = "; ".join(f"{key} was {shown(old)} and is {shown(new)}" for key, (old, new) in changed.items())
        raise InvalidRequestError(
            f"{run} has checkpoints of a run with another configuration: {said}. Go on with the earlier values, name"
            " another output, or begin anew with resume: false (--no-resume), which deletes those checkpoints",
            param=next(iter(changed)),
        )


def _clear(run: Path) -> None:
    """Delete what an earlier run wrote."""
    for entry in run.iterdir():
        if _CHECKPOINT.fullmatch(entry.name):
            shutil.rmtree(entry)
    for name in (METRICS, SAMPLES, STATUS, PLOT):
        (run / name).unlink(missing_ok=True)

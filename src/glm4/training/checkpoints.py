"""Checkpoints of a run: complete or absent, and enough to go on with the very same numbers.

checkpoint-<step>/
  trainable.safetensors   every number that is trained, as it is trained
  adapter_*               the adapter so far, if the method has one: usable like the one at the end
  optimizer.pt, scheduler.pt, rng_state*.pth   torch files, read with weights_only
  trainer_state.json      position of Hugging Face's trainer
  run_state.json          ours: sums since the last log line, what the data and the machine were
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from glm4.errors import DiskFullError, TrainingError
from glm4.system.atomic_folder import atomic_folder, partial_of
from glm4.training.sharding import fill, whole_tensor

if TYPE_CHECKING:
    from glm4.training.trainer import GlmTrainer

WEIGHTS, RUN_STATE, TRAINER_STATE = "trainable.safetensors", "run_state.json", "trainer_state.json"
_NAME = re.compile(r"checkpoint-([0-9]{1,12})", re.ASCII)
# The system's reasons, as safetensors repeats them; torch.save has none, and says only that bytes are missing.
_NO_ROOM = ("no space left", "quota exceeded", "file too large", "unexpected pos", "pytorchstreamwriter")


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, by its name; -1 if it is none, or not complete."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match and (checkpoint / RUN_STATE).is_file() else -1


def find_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, the oldest first."""
    return sorted((entry for entry in run.glob("checkpoint-*") if step_of(entry) >= 0), key=step_of)


def read_run_state(checkpoint: Path) -> dict[str, Any]:
    """The contents of `run_state.json`.

    Raises:
        TrainingError: it is damaged.
    """
    try:
        state = json.loads((checkpoint / RUN_STATE).read_text())
        return {**state, "window": list(map(float, state["window"])), "loss": float(state["loss"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{checkpoint} is damaged ({error}); delete it to go on from the one before") from None


def save(trainer: GlmTrainer, facts: Mapping[str, Any]) -> Path:
    """Write the checkpoint of the present step; every process calls this.

    Args:
        facts: what `run_state.json` has beside the position, for the next run to compare.

    Raises:
        DiskFullError: there is no room; nothing of this checkpoint is left, and earlier ones are as they were.
    """
    state = trainer.state
    run = Path(trainer.args.output_dir)
    target = run / f"checkpoint-{state.global_step}"
    if state.best_global_step:
        state.best_model_checkpoint = str(run / f"checkpoint-{state.best_global_step}")
    sums = trainer.gather_window()
    with disk_errors(target), _staged(trainer, target) as folder:
        weights = trainable_tensors(trainer)
        trainer.save_adapter(folder)
        trainer.save_optimizer(folder)
        trainer._save_scaler(str(folder))
        trainer._save_rng_state(str(folder))
        if trainer.args.should_save:
            save_file(weights, folder / WEIGHTS)
            state.save_to_json(str(folder / TRAINER_STATE))
            ours = {"window": sums, "tokens": trainer.tokens, "loss": trainer.last_loss, **facts}
            (folder / RUN_STATE).write_text(json.dumps(ours, indent=2) + "\n")
    if trainer.args.should_save:
        _delete_old(run, trainer.args.save_total_limit or 0, state.best_global_step)
    return target


def trainable_tensors(trainer: GlmTrainer) -> dict[str, torch.Tensor]:
    """Copies of all trained numbers in memory, by name; empty but in the process that writes them."""
    found = {}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            whole = whole_tensor(parameter)  # every process takes part
            if trainer.args.should_save:
                found[name] = whole.cpu().contiguous()
    return found


def load_weights(trainer: GlmTrainer, checkpoint: Path) -> None:
    """Read `trainable.safetensors` into the model.

    Raises:
        TrainingError: it has other tensors than the model trains.
    """
    weights = load_file(checkpoint / WEIGHTS)
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    wrong = set(weights) ^ set(trained) or {n for n in weights if weights[n].shape != trained[n].shape}
    if wrong:
        raise TrainingError(f"{checkpoint} is not of this model and method: {sorted(wrong)[0]} does not fit")
    for name, parameter in trained.items():
        fill(parameter, weights[name])


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn what torch and safetensors raise on a full disk into our error.

    Raises:
        DiskFullError: in their place.
    """
    try:
        yield
    except DiskFullError as error:
        raise DiskFullError(f"{error}; free some space and run the same command again: it goes on") from None
    except Exception as error:
        if any(text in str(error).lower() for text in _NO_ROOM):
            raise DiskFullError(
                f"no room left in {target.parent} while writing {target.name}; earlier checkpoints are intact. Free"
                " some space and run the same command again: it goes on"
            ) from error
        raise


@contextlib.contextmanager
def _staged(trainer: GlmTrainer, target: Path) -> Iterator[Path]:
    """`atomic_folder`, filled by all processes."""
    barrier = trainer.accelerator.wait_for_everyone
    if not trainer.args.should_save:
        barrier()  # it is made
        yield partial_of(target.absolute())
        barrier()  # everything is in it
        barrier()  # it has its name
        return
    with atomic_folder(target) as folder:
        barrier()
        yield folder
        barrier()
        readable(folder)
    barrier()


def readable(folder: Path) -> None:
    """Give safetensors files, which their library makes the owner's alone, the mode of the files beside them."""
    mask = os.umask(0o077)
    os.umask(mask)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o666 & ~mask)


def _delete_old(run: Path, most: int, best: int | None) -> None:
    """Keep the newest and the best one in any case."""
    found = find_checkpoints(run)
    spare = [folder for folder in found[:-1] if step_of(folder) != best]
    for folder in spare[: len(found) - most] if most else ():
        # A half deleted folder must not look complete.
        (folder / RUN_STATE).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

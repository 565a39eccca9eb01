"""What a run leaves in its folder: an adapter in PEFT's format, or a whole model in Hugging Face's layout.

GLM-4V has a layout of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from glm4.backends.transformers.device import TORCH_DTYPES
from glm4.checkpoints.checkpoint import Checkpoint
from glm4.checkpoints.hf_layout import hf_config, hf_tensors, read_hf_rows
from glm4.checkpoints.safetensors_writer import PlannedTensor, plan_shards, write_shards
from glm4.export.text_side import write_hf_text
from glm4.system.atomic_folder import atomic_folder
from glm4.training.checkpoints import disk_errors, readable
from glm4.training.methods.table import METHODS
from glm4.training.vision.saving import write_vision_model

if TYPE_CHECKING:
    from glm4.training.run import Prepared
    from glm4.training.trainer import GlmTrainer

SHARD_BYTES = 5_000_000_000
# Whoever finds one of these finds all that belongs to it, so they come last.
_LAST = ("adapter_config.json", "config.json")
_STORED = {"bf16": "BF16", "fp32": "F32"}


def write_result(trainer: GlmTrainer, run: Prepared, dtype: str) -> None:
    """Write the adapter or the model; every process calls this.

    Raises:
        DiskFullError: there is no room; the checkpoints are intact.
    """
    output = Path(run.config.output)
    target = output / "result"
    has_adapter = METHODS[run.config.method].save is not None
    weights = {} if has_adapter else trainer.trained_weights()
    if not trainer.args.should_save:
        trainer.save_adapter(target)
        return
    with disk_errors(target), atomic_folder(target) as folder:
        if has_adapter:
            trainer.save_adapter(folder)
        else:
            _write_model(folder, run, weights, dtype)
        readable(folder)
    for entry in sorted(target.iterdir(), key=lambda file: file.name in _LAST):
        entry.replace(output / entry.name)
    target.rmdir()


def _write_model(folder: Path, run: Prepared, weights: dict[str, torch.Tensor], dtype: str) -> None:
    """All files of the model, with what was trained in place of the base's tensors."""
    checkpoint = run.checkpoint
    if checkpoint.config.vision is not None:
        write_vision_model(folder, checkpoint, run.processor, weights, dtype, SHARD_BYTES)
        return
    write_hf_text(folder, checkpoint, run.processor)
    settings = hf_config(checkpoint, str(TORCH_DTYPES[dtype]).removeprefix("torch."))
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    planned = [PlannedTensor(tensor.name, tensor.shape, _STORED[dtype]) for tensor in hf_tensors(checkpoint)]
    write_shards(folder, plan_shards(planned, SHARD_BYTES), _encoded(checkpoint, weights, dtype))


def _encoded(
    checkpoint: Checkpoint, weights: dict[str, torch.Tensor], dtype: str
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    for tensor in hf_tensors(checkpoint):
        trained = weights.get(tensor.name)
        if trained is None:
            trained = torch.from_numpy(read_hf_rows(checkpoint, tensor, 0, tensor.shape[0]))
        stored: Any = trained.to(TORCH_DTYPES[dtype]).contiguous()
        yield tensor.name, stored.view(torch.uint8).numpy().reshape(-1)

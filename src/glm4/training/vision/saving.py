"""Writes a trained GLM-4V in the layout of glm-4v-9b, which our engine opens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glm4.backends.transformers.device import TORCH_DTYPES
from glm4.checkpoints.chatglm_layout import chatglm_config, chatglm_tensors
from glm4.checkpoints.checkpoint import Checkpoint
from glm4.checkpoints.hf_layout import HfTensor, text_class
from glm4.checkpoints.safetensors_writer import PlannedTensor, plan_shards, write_shards
from glm4.export.text_side import write_chatglm_text
from glm4.requests.processor import Processor
from glm4.training.vision.loading import vision_model_tensors

_STORED = {"bf16": "BF16", "fp32": "F32"}


def write_vision_model(
    folder: Path,
    checkpoint: Checkpoint,
    processor: Processor,
    weights: Mapping[str, torch.Tensor],
    dtype: str,
    shard_bytes: int,
) -> None:
    """Fill a folder with all files of a model, one tensor in memory at a time.

    Args:
        checkpoint: of the base, which what is not in `weights` comes from.
        weights: what was trained, by its name in the model.
        dtype: "fp32" or "bf16".
    """
    write_chatglm_text(folder, checkpoint, processor)
    settings = chatglm_config(checkpoint, str(TORCH_DTYPES[dtype]).removeprefix("torch."))
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    planned = [PlannedTensor(tensor.name, tensor.shape, _STORED[dtype]) for tensor in chatglm_tensors(checkpoint)]
    write_shards(folder, plan_shards(planned, shard_bytes), _encoded(checkpoint, weights, dtype))


def _encoded(
    checkpoint: Checkpoint, weights: Mapping[str, torch.Tensor], dtype: str
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    pieces: dict[str, list[HfTensor]] = {}
    for piece in vision_model_tensors(text_class(checkpoint), checkpoint.config):
        pieces.setdefault(piece.canonical, []).append(piece)
    for tensor in chatglm_tensors(checkpoint):
        rows = [_rows(checkpoint, piece, weights.get(piece.name)) for piece in pieces[tensor.canonical]]
        stored: Any = torch.cat(rows).to(TORCH_DTYPES[dtype]).contiguous()
        yield tensor.name, stored.view(torch.uint8).numpy().reshape(-1)


def _rows(checkpoint: Checkpoint, piece: HfTensor, trained: torch.Tensor | None) -> torch.Tensor:
    if trained is not None:
        return trained.reshape(piece.stop - piece.start, -1)
    rows = checkpoint.load_rows(piece.canonical, piece.start, piece.stop)
    return torch.from_numpy(rows).reshape(piece.stop - piece.start, -1)

"""From an adapter on disk, of either kind, to one in memory that the engine can use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from glm4.checkpoints.adapter_folder import adapter_type, find_adapter
from glm4.checkpoints.checkpoint import Checkpoint
from glm4.checkpoints.peft_adapter import AdapterFile, check_base
from glm4.checkpoints.peft_prefix import PREFIX_TYPE, PrefixFile
from glm4.kernels.base import Kernels
from glm4.loading.lora import read_adapter
from glm4.model.config import ModelConfig
from glm4.model.layers import LayerWeights
from glm4.model.prefix import Adapter, PrefixAdapter


def read_any_adapter(
    path: Path,
    config: ModelConfig,
    model_type: str,
    kernels: Kernels,
    *,
    format: str,
    max_nbytes: int,
    layers: Sequence[LayerWeights],
    max_model_len: int,
) -> Adapter:
    """Read a PEFT adapter: LoRA, for which see `read_adapter`, or a prefix, for which see `read_prefix`.

    Args:
        path: its folder, or that of a training run, see `find_adapter`.

    Raises:
        CheckpointError: there is no adapter.
    """
    path = find_adapter(path)
    if adapter_type(path) == PREFIX_TYPE:
        return read_prefix(path, config, model_type, max_nbytes=max_nbytes, max_model_len=max_model_len)
    return read_adapter(path, config, model_type, kernels, format=format, max_nbytes=max_nbytes, layers=layers)


def check_adapter(path: Path, checkpoint: Checkpoint) -> None:
    """Compare an adapter with the model that it is to change, by what their files' headers say.

    Args:
        path: as for `read_any_adapter`.

    Raises:
        Glm4Error: it cannot be used with this model; see `AdapterFile`, `PrefixFile` and `check_base`.
    """
    folder = find_adapter(path)
    if adapter_type(folder) == PREFIX_TYPE:
        PrefixFile(folder, checkpoint.config, checkpoint.model_type).close()
        return
    with AdapterFile(folder, checkpoint.config, checkpoint.model_type) as file:
        check_base(folder, file.base, checkpoint.variant)


def read_prefix(
    path: Path, config: ModelConfig, model_type: str, *, max_nbytes: int, max_model_len: int
) -> PrefixAdapter:
    """Read a prefix; see `checkpoints.peft_prefix` for what is accepted and the errors.

    Args:
        model_type: of the checkpoint; see `PrefixFile`.
        max_nbytes, max_model_len: see `PrefixFile.check_room`, for these errors, too.
    """
    with PrefixFile(path, config, model_type) as file:
        file.check_room(max_model_len, max_nbytes, np.dtype(np.float32).itemsize)
        keys, values = file.load()
        return PrefixAdapter(keys, values, str(path))

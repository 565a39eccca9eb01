"""From any checkpoint to a model class of transformers on a device, one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers

from glm4.backends.transformers.device import TORCH_DTYPES
from glm4.checkpoints.checkpoint import Checkpoint
from glm4.checkpoints.hf_layout import HfTensor, hf_class, hf_config, hf_tensors, read_hf_rows

Progress = Callable[[str, float, float], None]

SLAB_NBYTES = 64 << 20
"""Of float32 rows that are held beside the weights while they are read."""


def store_parameter(model: Any, name: str, value: torch.Tensor) -> None:
    """Gives a model one of its parameters, by its full name."""
    owner, _, parameter = name.rpartition(".")
    setattr(model.get_submodule(owner), parameter, torch.nn.Parameter(value, requires_grad=False))


def load_model(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: str,
    progress: Progress | None = None,
    store: Callable[[Any, str, torch.Tensor], None] = store_parameter,
) -> Any:
    """The checkpoint's model, in evaluation mode.

    Args:
        dtype: "fp32" or "bf16".
        progress: called with ("loading", done, total) in bytes.
        store: what takes each parameter as it is read, with the model and the parameter's name.

    Raises:
        TensorError: tensors are missing, left over or misshapen, raised before any data is read.
    """
    checkpoint.check()
    model = _empty_model(checkpoint, dtype, device)
    return fill_model(model, checkpoint, list(hf_tensors(checkpoint)), device, dtype, progress, store)


def fill_model(
    model: Any,
    checkpoint: Checkpoint,
    tensors: Sequence[HfTensor],
    device: torch.device,
    dtype: str,
    progress: Progress | None = None,
    store: Callable[[Any, str, torch.Tensor], None] = store_parameter,
) -> Any:
    """The same model with these tensors of the checkpoint as its parameters, and without gradients.

    Args:
        model: without memory for its parameters.
    """
    total, done = sum(math.prod(one.shape) for one in tensors) * TORCH_DTYPES[dtype].itemsize, 0
    expected = {name for name, _ in model.named_parameters()}
    for tensor in tensors:
        target = torch.empty(tensor.shape, dtype=TORCH_DTYPES[dtype], device=device)
        _fill(target, checkpoint, tensor)
        store(model, tensor.name, target)
        expected.discard(tensor.name)
        done += target.nbytes
        if progress is not None:
            progress("loading", done, total)
    if checkpoint.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
        expected.discard("lm_head.weight")
    if expected:  # a class of a later release with further parameters
        raise RuntimeError(f"{type(model).__name__} has parameters without a tensor: {sorted(expected)[:3]}")
    return model


def _empty_model(checkpoint: Checkpoint, dtype: str, device: torch.device) -> Any:
    """The model without memory for its parameters."""
    cls = hf_class(checkpoint)
    settings = hf_config(checkpoint, str(TORCH_DTYPES[dtype]).removeprefix("torch."))
    config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):
        model = getattr(transformers, cls.name)(config)
    # Its frequencies are computed, not stored.
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    return model.eval()


def _fill(target: torch.Tensor, checkpoint: Checkpoint, tensor: HfTensor) -> None:
    rows = tensor.stop - tensor.start
    flat = target.view(rows, -1)  # convolutions are matrices, and some vectors have further dimensions
    # Rows that change places are read whole, however many are asked for.
    step = rows if tensor.rotary else max(1, SLAB_NBYTES // (4 * flat.shape[1]))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        flat[start:stop] = torch.from_numpy(read_hf_rows(checkpoint, tensor, start, stop)).view(stop - start, -1)

"""The base of QLoRA: matrices of the layers in 4 bits (NF4 with doubly quantized scales), all else as it is."""

from __future__ import annotations

from typing import Any

import torch

from glm4.backends.transformers.device import TORCH_DTYPES
from glm4.backends.transformers.weights import Progress, load_model, store_parameter
from glm4.checkpoints.checkpoint import Checkpoint
from glm4.errors import MissingExtraError

_BLOCK = 64
"""Numbers that share a scale. On the CPU bitsandbytes mixes scales up where a row does not end with a block."""


def load_quantized(checkpoint: Checkpoint, device: torch.device, dtype: str, progress: Progress | None = None) -> Any:
    """As `load_model`, in 4 bits. Each matrix is quantized as it is read, so that no two are whole at a time.

    Embeddings, norms, biases, the output layer and matrices whose rows are no whole blocks stay in `dtype`, in which
    products are computed, too.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingExtraError("quantize: nf4 needs bitsandbytes: pip install 'glm4[qlora]'") from error

    def store(model: Any, name: str, value: torch.Tensor) -> None:
        place, _, kind = name.rpartition(".")
        module = model.get_submodule(place)
        of_layer = type(module) is torch.nn.Linear and module is not model.get_output_embeddings()
        if kind != "weight" or not of_layer or module.in_features % _BLOCK:
            store_parameter(model, name, value)
            return
        layer = bitsandbytes.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=False,
            compute_dtype=TORCH_DTYPES[dtype],
            quant_type="nf4",
            device="meta",
        )
        layer.bias = module.bias
        layer.weight = bitsandbytes.nn.Params4bit(value, quant_type="nf4", blocksize=_BLOCK, module=layer).to(device)
        # In evaluations on the CPU it would repack its weight for a kernel without gradients, and training after that
        # would have none.
        layer.support_avx512bf16_for_cpu = False
        parent, _, child = place.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.train(module.training))

    model = load_model(checkpoint, device, dtype, progress, store)
    model.is_loaded_in_4bit = True  # PEFT asks for it
    return model

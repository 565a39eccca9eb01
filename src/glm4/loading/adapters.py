"""From an adapter on disk, of either kind, to one in memory that the engine can use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glm4.checkpoints.peft_prefix import PrefixFile, is_prefix
from glm4.errors import InvalidRequestError, OutOfMemoryError
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
    """Read a PEFT adapter: LoRA, for which see `read_adapter`, or a prefix, for which see `read_prefix`."""
    if is_prefix(path):
        return read_prefix(path, config, model_type, max_nbytes=max_nbytes, max_model_len=max_model_len)
    return read_adapter(path, config, model_type, kernels, format=format, max_nbytes=max_nbytes, layers=layers)


def read_prefix(
    path: Path, config: ModelConfig, model_type: str, *, max_nbytes: int, max_model_len: int
) -> PrefixAdapter:
    """Read a prefix; see `checkpoints.peft_prefix` for what is accepted and the errors.

    Args:
        model_type: of the checkpoint; see `PrefixFile`.
        max_nbytes: maximum bytes of keys and values.
        max_model_len: the context, which must hold the virtual tokens, one of a prompt and one of an answer.

    Raises:
        OutOfMemoryError: they would exceed `max_nbytes`; nothing was read.
        InvalidRequestError: they would exceed the context.
    """
    with PrefixFile(path, config, model_type) as file:
        check_room(path, file.num_virtual_tokens, max_model_len)
        needed = 8 * file.num_virtual_tokens * config.num_hidden_layers * config.key_value_size
        if needed > max_nbytes:
            raise OutOfMemoryError(
                f"the adapter in {path} needs {needed / 1e6:.1f} MB, but {max(0, max_nbytes) / 1e6:.1f} MB are left "
                "for adapters; unload one, or raise the limit"
            )
        keys, values = file.load()
        return PrefixAdapter(keys, values, str(path))


def check_room(path: Path, num_virtual: int, max_model_len: int) -> None:
    """Refuse a prefix that leaves no room for a text.

    Raises:
        InvalidRequestError: virtual tokens, one of a prompt and one of an answer exceed the context.
    """
    if num_virtual + 2 > max_model_len:
        raise InvalidRequestError(
            f"the {num_virtual} virtual tokens of the adapter in {path} take all of the context of {max_model_len};"
            " load the model with a larger max_model_len (`--context`)",
            param="max_model_len",
        )

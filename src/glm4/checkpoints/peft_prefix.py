"""Reader of P-Tuning v2 adapters in PEFT's format (`PREFIX_TUNING`): keys and values of virtual tokens for each layer.

The file has one tensor, `prompt_embeddings` [virtual tokens, layers * 2 * KV heads * head_dim]: for each virtual token
the key of the first layer, its value, the key of the second layer and so on. Keys are as attention reads them, after
the rotary embedding. A projection (`prefix_projection`) is needed for training only; PEFT saves what it computes.

Both files are untrusted until checked: every option of the configuration is honored, known not to affect inference, or
refused by name; sizes must be those of the model, and there may be no other tensor. Nothing is unpickled.

Does not cover: numbers are trusted, and can make the model produce nonsense; an adapter of another model with the same
shapes is not recognized as such.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from glm4.checkpoints.hf_layout import HF_CLASSES
from glm4.checkpoints.json_file import read_json_object
from glm4.checkpoints.peft_adapter import CONFIG_FILE, MAX_CONFIG_BYTES, WEIGHT_FILE, check_files
from glm4.checkpoints.safetensors import SafetensorsSource
from glm4.checkpoints.tensor_source import Float32
from glm4.errors import InvalidRequestError, OutOfMemoryError, TensorError, UnsupportedModelError
from glm4.model.config import ModelConfig

PREFIX_TYPE = "PREFIX_TUNING"
_TENSOR = "prompt_embeddings"
_HONORED = frozenset({
    "peft_type", "num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers", "num_transformer_submodules",
})  # fmt: skip
# These say how the adapter was trained or found; they do not affect the use of what was saved.
_WITHOUT_EFFECT = frozenset({
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "prefix_projection", "encoder_hidden_size", "init_weights",
})  # fmt: skip


class PrefixFile:
    """An opened prefix, with every size checked. Close it, or use it as a context manager.

    Attributes:
        num_virtual_tokens: at least 1, and less than the model's context.
    """

    def __init__(self, path: Path, config: ModelConfig, model_type: str) -> None:
        """Opens the prefix in the folder `path` for a model of that shape.

        Args:
            model_type: "chatglm", "glm", "glm4", "llama" or "qwen2": whose order of channels the keys have.

        Raises:
            CheckpointError: not an adapter, or a malformed file.
            UnsupportedModelError: it uses an option that is not implemented, or belongs to a model of another shape.
            TensorError: the tensor is missing or misshapen, or there are others.
        """
        self.path = path
        self._config = config
        check_files(path)
        settings, where = read_json_object(path / CONFIG_FILE, MAX_CONFIG_BYTES), str(path / CONFIG_FILE)
        self._half_split = _half_split(config, model_type, where)
        self.num_virtual_tokens = _check_settings(settings, config, where)
        self._source = SafetensorsSource(path / WEIGHT_FILE)
        try:
            self._check_tensors()
        except BaseException:
            self._source.close()
            raise

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of keys, and of values: [layers, virtual tokens, KV heads, head_dim]."""
        config = self._config
        return config.num_hidden_layers, self.num_virtual_tokens, config.num_key_value_heads, config.head_dim

    def check_room(self, max_model_len: int, max_nbytes: int, itemsize: int) -> None:
        """Check that it can be used, before it is read.

        Args:
            max_model_len: the context, which must hold the virtual tokens, one of a prompt and one of an answer.
            max_nbytes: maximum bytes of keys and values with `itemsize` bytes per number.

        Raises:
            InvalidRequestError, OutOfMemoryError: it does not fit.
        """
        count, needed = self.num_virtual_tokens, 2 * math.prod(self.shape) * itemsize
        if count + 2 > max_model_len:
            raise InvalidRequestError(
                f"the {count} virtual tokens of the adapter in {self.path} leave no room in the context of"
                f" {max_model_len}; load the model with a larger max_model_len (`--context`)",
                param="max_model_len",
            )
        if needed > max_nbytes:
            raise OutOfMemoryError(
                f"the adapter in {self.path} needs {needed / 1e6:.1f} MB, but {max(0, max_nbytes) / 1e6:.1f} MB are"
                " left for adapters; unload one, or raise the limit"
            )

    def _check_tensors(self) -> None:
        others = sorted(set(self._source.names()) - {_TENSOR})
        if others:
            raise TensorError(f"{self.path} holds {others[0]!r:.200}, which is not a part of a prefix")
        if _TENSOR not in self._source.names():
            raise TensorError(f"{self.path} lacks {_TENSOR!r}; the file is incomplete")
        layers, count, heads, dim = self.shape
        expected = (count, layers * 2 * heads * dim)
        if self._source.info(_TENSOR).shape != expected:
            raise TensorError(
                f"{self.path}: {_TENSOR!r} has the shape {self._source.info(_TENSOR).shape}; {count} virtual tokens of"
                f" this model need {expected}"
            )

    def load(self) -> tuple[Float32, Float32]:
        """Keys, in our order of channels, and values: float32, each of the `shape`.

        Raises:
            UnsupportedModelError: the tensor is not F32, F16 or BF16.
            TensorError: a number is not finite.
        """
        layers, count, heads, dim = self.shape
        both = self._source.read(_TENSOR).reshape(count, layers, 2, heads, dim)
        if not np.isfinite(both).all():
            raise TensorError(f"{self.path}: {_TENSOR!r} has numbers that are not finite; the file is damaged")
        keys, values = (np.ascontiguousarray(both[:, :, part].swapaxes(0, 1)) for part in (0, 1))
        if self._half_split:
            interleave_key_channels(keys, self._config)
        return keys, values

    def close(self) -> None:
        """Unmaps the file."""
        self._source.close()

    def __enter__(self) -> PrefixFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def interleave_key_channels(keys: Float32, config: ModelConfig) -> None:
    """Reorder half-split rotary channels of keys [..., head_dim] to adjacent pairs, in place.

    As `interleave_rotary_rows` does for the rows that keys are computed from.
    """
    turned = keys[..., : config.rotary_dim]
    turned[...] = turned.reshape(*turned.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(turned.shape)


def split_key_channels(keys: Float32, config: ModelConfig) -> None:
    """Reorder adjacent rotary channels of keys [..., head_dim] to half-split ones, in place."""
    turned = keys[..., : config.rotary_dim]
    turned[...] = turned.reshape(*turned.shape[:-1], -1, 2).swapaxes(-1, -2).reshape(turned.shape)


def _half_split(config: ModelConfig, model_type: str, where: str) -> bool:
    row = HF_CLASSES.get(model_type)
    if row is None:  # a packed checkpoint names its source, which may be anything
        raise UnsupportedModelError(f"{where}: adapters of models of type {model_type!r:.40} are not supported")
    if config.rotary_half_split and not row.half_split:
        # Such a checkpoint and its model in transformers differ, and the file does not say which one was trained.
        raise UnsupportedModelError(
            f"{where}: a prefix for a ChatGLM checkpoint with original_rope false is not supported; train LoRA for it"
        )
    return row.half_split


def _check_settings(settings: Mapping[str, Any], config: ModelConfig, where: str) -> int:
    """The number of virtual tokens."""
    if settings.get("peft_type") != PREFIX_TYPE:
        raise UnsupportedModelError(f"{where}: peft_type is {settings.get('peft_type')!r:.40}, not {PREFIX_TYPE}")
    for key, value in settings.items():
        if key not in _HONORED and key not in _WITHOUT_EFFECT and value not in (None, False, [], {}):
            raise UnsupportedModelError(f"{where}: {key!r:.60} is set to {value!r:.60}, which is not supported")
    if settings.get("num_transformer_submodules") not in (None, 1):
        raise UnsupportedModelError(f"{where}: num_transformer_submodules must be 1: this model has only a decoder")
    sizes = {
        "num_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_key_value_heads,
        "token_dim": config.key_value_size,
    }
    for key, size in sizes.items():
        if settings.get(key) != size or type(settings[key]) is not int:
            raise UnsupportedModelError(
                f"{where}: {key} is {settings.get(key)!r:.40}, and this model needs {size}; the adapter was trained for"
                " another model"
            )
    count, most = settings.get("num_virtual_tokens"), config.max_position_embeddings - 2
    if type(count) is not int or not 1 <= count <= most:
        raise UnsupportedModelError(
            f"{where}: num_virtual_tokens must be 1 to {most} with this model's context, not {count!r:.40}"
        )
    return count

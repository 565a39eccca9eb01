"""LoRA adapters beside the weights of a model class: `y = W x + B (A x)` for the rows that use one; and prefixes.

They are read by our own reader of PEFT's format, so that adapters of both layouts fit, whatever file the model came
from, and added by hooks, so that requests with several adapters and without one share a forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from glm4.checkpoints.adapter_folder import adapter_type, find_adapter
from glm4.checkpoints.checkpoint import Checkpoint, split_rotary_rows
from glm4.checkpoints.hf_layout import hf_class, hf_tensors
from glm4.checkpoints.peft_adapter import AdapterFile
from glm4.checkpoints.peft_prefix import PREFIX_TYPE, PrefixFile, split_key_channels
from glm4.errors import OutOfMemoryError, TensorError
from glm4.model.config import ModelConfig

_MATRICES = ("qkv", "o", "gate_up", "down")


@dataclass(frozen=True)
class Place:
    """A matrix of the class: rows start..stop-1 of ours."""

    layer: int
    matrix: str
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class DeviceAdapter:
    """An adapter on the device.

    Attributes:
        factors: name of a module -> A [rank, columns] and B [rows, rank], which includes the scale.
        path: the folder it was loaded from.
        rank: largest rank of a module.
    """

    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    num_virtual_tokens: ClassVar[int] = 0

    path: str
    rank: int

    @property
    def nbytes(self) -> int:
        """Bytes of the factors."""
        return sum(a.nbytes + b.nbytes for a, b in self.factors.values())


@dataclass(frozen=True, eq=False)
class DevicePrefix:
    """The keys and values of an adapter's virtual tokens on the device, with which a sequence's cache begins.

    Attributes:
        layers: per layer keys, after the rotary embedding, and values, each [1, key/value heads, tokens, head_dim].
        path: the folder it was loaded from.
    """

    rank: ClassVar[int] = 0

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    path: str

    @property
    def num_virtual_tokens(self) -> int:
        """Columns of the cache that it takes."""
        return int(self.layers[0][0].shape[2])

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)

    def cache(self) -> DynamicCache:
        """A cache that holds them, for one sequence."""
        made = DynamicCache()
        for number, (keys, values) in enumerate(self.layers):
            made.update(keys, values, number)
        return made


@dataclass(frozen=True)
class AdapterLayout:
    """What reading adapters needs to know of a model whose checkpoint is closed.

    Attributes:
        model_type: of the checkpoint, see `AdapterFile`.
        half_split: the class has rotary rows half-split.
        places: name of a module -> what it holds.
    """

    config: ModelConfig
    model_type: str
    half_split: bool
    places: Mapping[str, Place]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> AdapterLayout:
        """The layout of a checkpoint's model."""
        places = {}
        for tensor in hf_tensors(checkpoint):
            words = tensor.canonical.split(".")
            if words[-1] in _MATRICES:
                module = tensor.name.removesuffix(".weight")
                places[module] = Place(int(words[1]), words[-1], tensor.start, tensor.stop)
        return cls(checkpoint.config, checkpoint.model_type, hf_class(checkpoint).half_split, places)

    def read(
        self, path: Path, device: torch.device, dtype: torch.dtype, *, max_nbytes: int, max_model_len: int
    ) -> DeviceAdapter | DevicePrefix:
        """Read an adapter; see `checkpoints.peft_adapter` and `peft_prefix` for what is accepted and the errors.

        Raises:
            OutOfMemoryError: it would exceed `max_nbytes`.
            InvalidRequestError: a prefix leaves no room in the context.
            TensorError: a number is not finite.
        """
        path = find_adapter(path)
        if adapter_type(path) == PREFIX_TYPE:
            return self._read_prefix(path, device, dtype, max_nbytes, max_model_len)
        return self._read_lora(path, device, dtype, max_nbytes)

    def _read_prefix(
        self, path: Path, device: torch.device, dtype: torch.dtype, max_nbytes: int, max_model_len: int
    ) -> DevicePrefix:
        with PrefixFile(path, self.config, self.model_type) as file:
            file.check_room(max_model_len, max_nbytes, dtype.itemsize)
            keys, values = file.load()
        if self.half_split:
            split_key_channels(keys, self.config)
        both = [torch.from_numpy(part).transpose(1, 2).to(device, dtype).contiguous() for part in (keys, values)]
        return DevicePrefix(tuple(zip(*(part.split(1) for part in both), strict=True)), str(path))

    def _read_lora(self, path: Path, device: torch.device, dtype: torch.dtype, max_nbytes: int) -> DeviceAdapter:
        factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        with AdapterFile(path, self.config, self.model_type) as file:
            nbytes = 0
            for (layer, matrix), parts in self._modules(file).items():
                a, b = file.load(layer, matrix)
                if not (np.isfinite(a).all() and np.isfinite(b).all()):
                    raise TensorError(f"{path}: the factors of layer {layer} are not finite; the file is damaged")
                if matrix == "qkv" and self.half_split:
                    split_rotary_rows(b, self.config)
                for module, place in parts:
                    pair = _pair(a, b[place.start : place.stop])
                    if pair is None:
                        continue
                    nbytes += sum(part.size for part in pair) * dtype.itemsize
                    if nbytes > max_nbytes:
                        raise OutOfMemoryError(
                            f"the adapter in {path} is larger than the {max(0, max_nbytes) / 1e6:.1f} MB that are left"
                            " for adapters; unload one, or raise the limit"
                        )
                    a_on, b_on = (torch.from_numpy(part).to(device, dtype) for part in pair)
                    factors[module] = a_on, b_on
            return DeviceAdapter(factors, str(path), file.rank)

    def _modules(self, file: AdapterFile) -> dict[tuple[int, str], list[tuple[str, Place]]]:
        """The modules that hold parts of each matrix which the file changes."""
        found: dict[tuple[int, str], list[tuple[str, Place]]] = {}
        for module, place in self.places.items():
            if (place.layer, place.matrix) in file.shapes:
                found.setdefault((place.layer, place.matrix), []).append((module, place))
        return found


def _pair(a: NDArray[np.float32], b: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """The factors of some rows, without the ranks that only other rows use; None if none is left."""
    used = b.any(axis=0)
    return (np.ascontiguousarray(a[used]), np.ascontiguousarray(b[:, used])) if used.any() else None


class AdapterHooks:
    """Adds the adapters of a batch to the outputs of a model's matrices."""

    def __init__(self, model: Any, layout: AdapterLayout) -> None:
        self._groups: list[tuple[DeviceAdapter, torch.Tensor | None]] = []
        for name in layout.places:
            model.get_submodule(name).register_forward_hook(self._hook(name))

    def use(self, adapters: Sequence[DeviceAdapter | DevicePrefix | None], device: torch.device) -> None:
        """Name the adapter of each sequence of the next forward pass; prefixes are in the cache already."""
        self._groups = []
        for adapter in dict.fromkeys(one for one in adapters if isinstance(one, DeviceAdapter)):
            rows = [row for row, one in enumerate(adapters) if one is adapter]
            index = None if len(rows) == len(adapters) else torch.tensor(rows, device=device)
            self._groups.append((adapter, index))

    def _hook(self, name: str) -> Any:
        def add(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            for adapter, rows in self._groups:
                pair = adapter.factors.get(name)
                if pair is None:
                    continue
                x = inputs[0] if rows is None else inputs[0].index_select(0, rows)
                change = torch.nn.functional.linear(torch.nn.functional.linear(x, pair[0]), pair[1])
                output = output + change if rows is None else output.index_add(0, rows, change)
            return output

        return add

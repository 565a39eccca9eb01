"""What an adapter in PEFT's format changes of GLM-4V's tower and projector, for whoever folds it into the weights.

Names are those of `glm4 finetune` (`model.vision.…`) or of the original code (`transformer.vision.…`). Matrices have
LoRA factors, as those of the text model (`peft_adapter`); the projector may be there in full instead, as PEFT saves it
for `modules_to_save`. Every tensor must be one of the two, with the shape that the model needs.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import numpy as np

from glm4.checkpoints.chatglm_layout import chatglm_name
from glm4.checkpoints.safetensors import SafetensorsSource
from glm4.checkpoints.tensor_source import Float32
from glm4.errors import TensorError, UnsupportedModelError
from glm4.model.config import ModelConfig
from glm4.model.tensors import VISION_PART, ModelTensor, file_shape, model_tensors

PROJECTOR = "vision.linear_proj"
"""The module that may be trained in full, as `modules_to_save` names it."""
_FILE_PREFIX = "transformer.vision."
_NAME = re.compile(r"base_model\.model\.((?:model|transformer)\.vision\.)(.+)", re.ASCII)
_FACTOR = re.compile(r"(.+)\.lora_(A\.weight|B\.weight|magnitude_vector)", re.ASCII)


class ModuleSettings(Protocol):
    """Of `adapter_config.json`, by a module's name from the model's root."""

    @property
    def saved(self) -> Collection[str]:
        """`modules_to_save`; nothing but `PROJECTOR`."""
        ...

    def rank(self, module: str) -> int:
        """The rank of a module."""
        ...

    def scale(self, module: str) -> float:
        """What B A is multiplied by."""
        ...


def is_vision_name(name: str) -> bool:
    """Whether a tensor of an adapter belongs to tower or projector."""
    return _NAME.fullmatch(name) is not None


class VisionPart:
    """The part of an opened adapter. The source stays the caller's.

    Attributes:
        matrices: canonical name -> rank of a matrix with factors.
        replaced: canonical names of the tensors that were trained in full.
    """

    def __init__(
        self,
        path: Path,
        source: SafetensorsSource,
        names: Collection[str],
        settings: ModuleSettings,
        config: ModelConfig,
        *,
        dora: bool,
    ) -> None:
        """Checks the tensors with these names.

        Raises:
            UnsupportedModelError: a module that cannot be adapted, or that this model does not have.
            TensorError: a tensor is missing or misshapen.
        """
        self._path, self._source, self._config, self._dora = path, source, config, dora
        self._tensors = {
            chatglm_name(tensor).removeprefix(_FILE_PREFIX): tensor
            for tensor in model_tensors(config).values()
            if tensor.row.part == VISION_PART
        }
        self.replaced: dict[str, str] = {}
        self.matrices: dict[str, int] = {}
        self._factors: dict[str, tuple[str, float]] = {}
        for name in sorted(names):
            self._add(name, settings)
        self._check(settings.saved)

    def _add(self, name: str, settings: ModuleSettings) -> None:
        match = _NAME.fullmatch(name)
        prefix, below = match.groups() if match else ("", name)
        if below in self._tensors and below.startswith("linear_proj."):
            tensor = self._tensors[below]
            self._check_shape(name, file_shape(tensor, self._config))
            self.replaced[tensor.name] = name
            return
        factor = _FACTOR.fullmatch(below)
        matrix = self._tensors.get(f"{factor[1]}.weight") if factor else None
        if factor is None or matrix is None or len(file_shape(matrix, self._config)) != 2:
            raise UnsupportedModelError(
                f"{self._path}: {name!r} is neither a factor of a matrix of this model's tower or projector, nor a"
                " tensor of its projector"
            )
        module = prefix + factor[1]
        stem, rank = f"base_model.model.{module}.lora_", settings.rank(module)
        rows, columns = matrix.shape
        wanted: dict[str, tuple[int, ...]] = {"A.weight": (rank, columns), "B.weight": (rows, rank)}
        if self._dora:
            wanted["magnitude_vector"] = (rows,)
        for ending, shape in wanted.items():
            self._check_shape(stem + ending, shape)
        if factor[2] not in wanted:
            raise UnsupportedModelError(f"{self._path}: {name!r} belongs to a DoRA adapter, but use_dora is not set")
        self.matrices[matrix.name] = rank
        self._factors[matrix.name] = (stem, settings.scale(module))

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self._source.names():
            raise TensorError(f"{self._path} lacks {name!r}; the file is incomplete")
        found = self._source.info(name).shape
        if found != shape:
            raise TensorError(f"{self._path}: {name!r} has the shape {found}; this model needs {shape}")

    def _check(self, saved: Collection[str]) -> None:
        projector: list[ModelTensor] = [t for below, t in self._tensors.items() if below.startswith("linear_proj.")]
        missing = [tensor.name for tensor in projector if saved and tensor.name not in self.replaced]
        if missing:
            raise TensorError(f"{self._path} lacks {', '.join(missing)} of the projector, which modules_to_save names")
        if self.replaced and not saved:
            raise UnsupportedModelError(
                f"{self._path} holds tensors of the projector that modules_to_save does not name"
            )

    def read(self, name: str) -> Float32:
        """A tensor that was trained in full, in its canonical shape."""
        return self._source.read(self.replaced[name])

    def factors(self, name: str) -> tuple[Float32, Float32, Float32 | None]:
        """Of a matrix: A [rank, columns] and B [rows, rank] with its scale; with DoRA the norms of rows [rows]."""
        stem, scale = self._factors[name]
        a, b = (self._source.read(f"{stem}{letter}.weight") for letter in "AB")
        return a, b * np.float32(scale), self._source.read(stem + "magnitude_vector") if self._dora else None

"""The reference model of `quality.py`: a checkpoint in float32, moved off every quantisation grid.

Weights that come from a GGUF file of 4 to 8 bits lie on the grids of its formats; quantising them again to the same
formats would cost nothing and flatter these. So channels are rescaled at random, without changing the function:

    norm weight j / s_j            and  column j of the matrix that follows * s_j
    row j of V (and its bias) / s_j  and  the columns of O that read it * s_j
    row j of UP / s_j              and  column j of DOWN * s_j
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glm4.errors import TensorError
from glm4.kernels import PackedWeight
from glm4.kernels.base import Kernels
from glm4.kernels.formats import empty_packed
from glm4.kernels.group_codes import GroupCodes
from glm4.loading.weights import CanonicalTensors
from glm4.model.config import ModelConfig
from glm4.model.forward_batch import ForwardBatch
from glm4.model.kv_cache import KVCache, pages_for
from glm4.model.layers import ModelWeights, Tensor
from glm4.model.precision import PRECISIONS
from glm4.model.transformer import Transformer
from glm4.quantization.calibration import Part, calibrated, run_layer
from glm4.quantization.checkpoint import calibrated_extras
from quality_text import REPOSITORY

Float = NDArray[np.float32]
Packed = dict[str, PackedWeight | Float]
LOW, HIGH = 0.8, 1.25


class Tensors:
    """Canonical tensors held in memory, as `load_model` of the package reads them.

    A matrix passes through `function` on its way out.
    """

    def __init__(
        self, config: ModelConfig, tensors: dict[str, Float], function: Callable[[str, Float], Float] | None = None
    ) -> None:
        self.config = config
        self.model_type = config.architecture
        self.tensors = tensors
        self._function = function
        self._last: tuple[str, Float] | None = None

    def check(self) -> None:
        """Nothing to check: the tensors come from a checked checkpoint."""

    def tensor_names(self) -> list[str]:
        return list(self.tensors)

    @property
    def packed(self) -> None:
        """Nothing is packed yet."""

    @property
    def stored_precision(self) -> None:
        """The tensors are float32, on no grid."""

    def has_codes(self, name: str) -> bool:
        return False

    def load_codes(self, name: str, start: int, stop: int) -> GroupCodes:
        raise TensorError(f"{name} has no 4-bit codes")

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def load(self, name: str) -> Float:
        tensor = self.tensors[name]
        if tensor.ndim == 1 or self._function is None:
            return tensor
        if self._last is None or self._last[0] != name:  # slabs of one matrix are asked for one after the other
            self._last = (name, self._function(name, tensor))
        return self._last[1]

    def load_rows(self, name: str, start: int, stop: int) -> Float:
        return self.load(name)[start:stop]

    def map(self, function: Callable[[str, Float], Float]) -> Tensors:
        """The same model with every matrix replaced; vectors stay."""
        return Tensors(self.config, self.tensors, function)


def off_grid(checkpoint: CanonicalTensors, seed: int = 0) -> Tensors:
    """All tensors of a checkpoint, rescaled; a tied head becomes a matrix of its own and leaves its grid too."""
    rng = np.random.default_rng(seed)
    config = replace(checkpoint.config, tie_word_embeddings=False)
    # Copies: what a checkpoint hands out may be mapped from a file.
    tensors = {name: np.array(checkpoint.load(name)) for name in checkpoint.tensor_names()}
    if "lm_head" not in tensors:
        tensors["lm_head"] = tensors["embed_tokens"].copy()

    def factors(count: int) -> Float:
        return rng.uniform(LOW, HIGH, count).astype(np.float32)

    def shift(norm: str, matrix: str) -> None:
        s = factors(config.hidden_size)
        tensors[norm] /= s
        tensors[matrix] *= s

    query, key_value, width = config.query_size, config.key_value_size, config.intermediate_size
    group = config.num_attention_heads // config.num_key_value_heads
    for i in range(config.num_hidden_layers):
        layer = f"layers.{i}."
        shift(layer + "input_layernorm", layer + "qkv")
        shift(layer + "post_attention_layernorm", layer + "gate_up")
        s = factors(key_value)
        tensors[layer + "qkv"][query + key_value :] /= s[:, None]
        if layer + "qkv_bias" in tensors:
            tensors[layer + "qkv_bias"][query + key_value :] /= s
        heads = s.reshape(config.num_key_value_heads, 1, config.head_dim)
        tensors[layer + "o"] *= np.broadcast_to(heads, (len(heads), group, config.head_dim)).reshape(query)
        s = factors(width)
        tensors[layer + "gate_up"][width:] /= s[:, None]
        tensors[layer + "down"] *= s
    shift("norm", "lm_head")
    return Tensors(config, tensors)


def kept_off_grid(checkpoint: CanonicalTensors, seed: int, folder: Path | None) -> Tensors:
    """`off_grid`, mapped from files in `folder`: runs side by side share the memory."""
    if folder is None:
        return off_grid(checkpoint, seed)
    if not folder.exists():
        partial = folder.with_suffix(".part")
        partial.mkdir(parents=True, exist_ok=True)
        for name, tensor in off_grid(checkpoint, seed).tensors.items():
            np.save(partial / f"{name}.npy", tensor)
        partial.rename(folder)
    names = dict.fromkeys([*checkpoint.tensor_names(), "lm_head"])
    tensors = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
    return Tensors(replace(checkpoint.config, tie_word_embeddings=False), tensors)


def packed_model(name: str, tensors: Tensors, kernels: Kernels, calibration: Callable[[], NDArray[np.int32]]) -> Packed:
    """All tensors, matrices packed as a row of PRECISIONS says, or calibrated: "int4-cal", "int8-cal"."""
    precision = PRECISIONS[name.removesuffix("-cal")]
    if name.endswith("-cal"):
        frequent = calibrated_extras(tensors.config, precision, ()).get("frequent_tokens", 0)
        return gathered(calibrated(tensors, precision.linear, calibration(), kernels, frequent))
    loaded = {tensor: tensors.load(tensor) for tensor in tensors.tensor_names()}
    return {t: w if w.ndim == 1 else kernels.pack(precision.format_of(t), w) for t, w in loaded.items()}


def kept_packed(name: str, folder: Path, make: Callable[[], Packed]) -> Packed:
    """`packed_model`, read from files of `folder` where the same code has made it: calibration takes minutes to hours.

    Args:
        name: of the file's folder; tells apart whatever `make` depends on besides the code.
    """
    folder = folder / f"{name}-{_code_digest()}"
    if not folder.exists():
        partial = folder.with_suffix(".part")
        partial.mkdir(parents=True, exist_ok=True)
        for tensor, value in make().items():
            if isinstance(value, PackedWeight):
                np.save(partial / f"{tensor}.{value.format}.{value.rows}x{value.cols}.npy", value.data)
            else:
                np.save(partial / f"{tensor}.npy", value)
        partial.rename(folder)
    made: Packed = {}
    for path in folder.iterdir():
        data = np.load(path)
        if data.dtype == np.uint8:
            tensor, format, shape = path.stem.rsplit(".", 2)
            rows, cols = shape.split("x")
            made[tensor] = weight = empty_packed(format, int(rows), int(cols))  # aligned, as np.load's need not be
            weight.data[:] = data
        else:
            made[path.stem] = data
    return made


def _code_digest() -> str:
    """Of whatever decides what rounding makes of a weight."""
    package = REPOSITORY / "src" / "glm4"
    code = [path for part in ("quantization", "kernels", "model") for path in (package / part).rglob("*.py")]
    return sha256(b"".join(path.read_bytes() for path in sorted([*code, *(REPOSITORY / "csrc").iterdir()]))).hexdigest()


def gathered(parts: Iterable[Part]) -> Packed:
    """The parts of each matrix in one piece."""
    made: Packed = {}
    pieces: dict[str, list[PackedWeight]] = {}
    for part in parts:
        if part.packed is None:
            made[part.name] = part.source
        else:
            pieces.setdefault(part.name, []).append(part.packed)
    for name, packed in pieces.items():
        weight = empty_packed(packed[0].format, sum(piece.rows for piece in packed), packed[0].cols)
        np.concatenate([piece.data for piece in packed], out=weight.data)
        made[name] = weight
    return made


def assembled(config: ModelConfig, packed: Packed, kernels: Kernels) -> Transformer:
    """The model that runs on those packed tensors."""
    return Transformer(config, ModelWeights(packed), kernels)


def hidden_states(model: Transformer, ids: NDArray[np.int32], sequence: int) -> Float:
    """Hidden states before the final norm, [N, hidden_size], of text cut into sequences of `sequence` tokens."""
    parts = []
    for start in range(0, len(ids), sequence):
        part = ids[start : start + sequence]
        cache = KVCache(model.config, pages_for(len(part)), "fp32")
        pages = cache.allocate(cache.num_pages)
        parts.append(model.forward(part, ForwardBatch.build([pages], [0], [len(part)]), cache))
    return np.concatenate(parts)


def hidden_by_layer(tensors: CanonicalTensors, ids: NDArray[np.int32], sequence: int, kernels: Kernels) -> Float:
    """`hidden_states` in float32 with one layer in memory beside the tensors; N is a multiple of `sequence`."""
    embedded = np.ascontiguousarray(tensors.load("embed_tokens")[ids])
    hidden = embedded.reshape(-1, sequence, embedded.shape[1])
    names = tensors.tensor_names()
    for index in range(tensors.config.num_hidden_layers):
        prefix = f"layers.{index}."
        loaded = {name.removeprefix(prefix): tensors.load(name) for name in names if name.startswith(prefix)}
        layer = {name: kernels.pack("fp32", t) if t.ndim == 2 else t for name, t in loaded.items()}
        run_layer(tensors.config, layer, hidden, kernels)
    return embedded


def head_alone(config: ModelConfig, tensors: Mapping[str, Tensor], kernels: Kernels) -> Transformer:
    """A model without layers: all that logits need once the hidden states are there."""
    outside = {name: tensor for name, tensor in tensors.items() if not name.startswith("layers.")}
    return Transformer(config, ModelWeights(outside), kernels)

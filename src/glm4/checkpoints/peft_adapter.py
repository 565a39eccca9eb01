"""Reader of LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

An adapter adds `scale * B A` to some of a model's matrices. This reader returns the factors of our fused matrices:
those of q, k and v (or gate and up) are joined, their A stacked, their B on the diagonal of a block matrix, so that one
pair serves each fused product. B has its rows in our order (see `interleave_rotary_rows`) and includes the scale.

DoRA adapters hold the norm of each adapted row, too, and those of GLM-4V may change tower and projector
(`peft_vision`); only callers that can apply it ask for such (`merging=True`).

Both files are untrusted until checked: every option of the configuration is honored, known not to affect inference, or
refused by name; every tensor must be a factor of a matrix we have, with the required shape, in every targeted layer.
Nothing is unpickled.

Does not cover: factors are trusted as numbers and can make the model produce nonsense; an adapter of another model with
the same shapes and names is not recognized as such. A packed copy of a ChatGLM checkpoint with half-split rotary rows
(none is published) no longer records that its adapters are half-split too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.checkpoint import interleave_rotary_rows
from glm4.checkpoints.json_file import read_json_object
from glm4.checkpoints.peft_vision import PROJECTOR, VisionPart, is_vision_name
from glm4.checkpoints.safetensors import SafetensorsSource
from glm4.checkpoints.tensor_source import Float32
from glm4.errors import CheckpointError, TensorError, UnsupportedModelError
from glm4.model.config import ModelConfig
from glm4.model.tensors import matrix_shapes
from glm4.variants import Variant, get_variant

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILE = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MAX_RANK = 512
_MAX_NAME_LENGTH = 200

# A module below its layer -> (canonical matrix, which of its rows).
_Modules = Mapping[str, tuple[str, str]]
_ATTENTION = {
    "self_attn.q_proj": ("qkv", "q"),
    "self_attn.k_proj": ("qkv", "k"),
    "self_attn.v_proj": ("qkv", "v"),
    "self_attn.o_proj": ("o", "all"),
}
_LLAMA: _Modules = _ATTENTION | {
    "mlp.gate_proj": ("gate_up", "gate"),
    "mlp.up_proj": ("gate_up", "up"),
    "mlp.down_proj": ("down", "all"),
}
_GLM: _Modules = _ATTENTION | {"mlp.gate_up_proj": ("gate_up", "all"), "mlp.down_proj": ("down", "all")}
_CHATGLM: _Modules = {
    "self_attention.query_key_value": ("qkv", "all"),
    "self_attention.dense": ("o", "all"),
    "mlp.dense_h_to_4h": ("gate_up", "all"),
    "mlp.dense_4h_to_h": ("down", "all"),
}
_HF_LAYERS, _CHATGLM_LAYERS = "model.layers.", "transformer.encoder.layers."
# GLM-4 is published with both kinds of names, so an adapter with either fits either.
_TABLES: Mapping[str, Mapping[str, _Modules]] = MappingProxyType(
    {
        "llama": {_HF_LAYERS: _LLAMA},
        "qwen2": {_HF_LAYERS: _LLAMA},
        "glm4": {_HF_LAYERS: _GLM},
        "glm": {_HF_LAYERS: _GLM, _CHATGLM_LAYERS: _CHATGLM},
        "chatglm": {_HF_LAYERS: _GLM, _CHATGLM_LAYERS: _CHATGLM},
    }
)
# Module names such as "query_key_value" select layers of glm-4v-9b's tower too, unless PEFT is told otherwise.
_TOWER = re.compile(r"(?:^|\.)(?:transformer|model)\.vision\.", re.ASCII)
_FACTOR = re.compile(
    r"base_model\.model\.((.+\.layers\.)([0-9]{1,4})\.(.+))\.lora_(?:([AB])\.weight|magnitude_vector)", re.ASCII
)

_HONORED = frozenset({
    "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "target_modules",
    "layers_to_transform", "exclude_modules", "init_lora_weights", "modules_to_save",
})  # fmt: skip
# These say how the adapter was trained or found; they do not affect the use of the saved factors.
_WITHOUT_EFFECT = frozenset({
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "layers_pattern", "megatron_core", "qalora_group_size", "loftq_config", "eva_config",
    "runtime_config", "ensure_weight_tying",
})  # fmt: skip
# Other ways to initialize (pissa, olora, corda, loftq, mica …) change the base model's weights or the formula.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
_MAGNITUDE = "magnitude_vector"
_PATTERN = re.compile(r"\^?[A-Za-z0-9_.]+", re.ASCII)


@dataclass(frozen=True)
class _Part:
    """One pair of factors in the file: its tensors' common name, rank, scale, and the rows of the matrix it changes."""

    name: str
    rank: int
    scale: float
    start: int
    stop: int


@dataclass(frozen=True)
class FactorShape:
    """A pair of factors for one of our matrices: A [rank, columns], B [rows, rank]."""

    rank: int
    rows: int
    columns: int


class AdapterFile:
    """An opened adapter, with every name and shape checked. Close it, or use it as a context manager.

    Attributes:
        shapes: (layer, "qkv" | "o" | "gate_up" | "down") -> the factors for that matrix.
        rank: largest rank of a module.
        base: the name of the model it was trained on, as the file says; empty if it does not.
        dora: it also sets the norms of rows, see `magnitudes`.
        original_names: its tensors have the names of ChatGLM's layout, not Hugging Face's.
        vision: what it changes of tower and projector; None if it leaves them as they are.
    """

    def __init__(self, path: Path, config: ModelConfig, model_type: str, *, merging: bool = False) -> None:
        """Opens the adapter in the folder `path` for a model of that shape.

        Args:
            model_type: "chatglm", "glm", "glm4", "llama" or "qwen2": whose names and row order the adapter uses.
            merging: accept DoRA adapters, and those that change tower or projector.

        Raises:
            CheckpointError: not an adapter, or a malformed file.
            UnsupportedModelError: it uses an option or a module that is not implemented; names it.
            TensorError: a tensor is missing, left over or misshapen.
        """
        self.path = path
        self._config = config
        check_files(path)
        settings = _Settings(read_json_object(path / CONFIG_FILE, MAX_CONFIG_BYTES), str(path / CONFIG_FILE))
        self.base, self.dora = settings.base, settings.dora
        if self.dora and not merging:
            raise UnsupportedModelError(
                f"{path} is a DoRA adapter (use_dora), which rescales the model's own weights; make one model of the "
                f"two: glm4 merge MODEL {path} -o DIR"
            )
        if model_type not in _TABLES:  # a packed checkpoint names its source, which may be anything
            raise UnsupportedModelError(f"{path}: adapters of models of type {model_type!r:.40} are not supported")
        tables = _TABLES[model_type]
        # Adapters are trained on the original checkpoint, whichever file of the model is loaded.
        halves = {_HF_LAYERS: model_type in ("llama", "qwen2"), _CHATGLM_LAYERS: config.rotary_half_split}
        self._source = SafetensorsSource(path / WEIGHT_FILE)
        try:
            seen = [name for name in self._source.names() if merging and is_vision_name(name)]
            self._parts, layers = self._match(settings, tables, set(seen))
            settings.check_complete(tables[layers], self._parts, config.num_hidden_layers)
            self.vision = VisionPart(path, self._source, seen, settings, config, dora=self.dora) if seen else None
        except BaseException:
            self._source.close()
            raise
        self._half_split = halves[layers]
        self.original_names = layers == _CHATGLM_LAYERS
        sizes = matrix_shapes(config)
        self.shapes = {
            site: FactorShape(sum(part.rank for part in parts), *sizes[site[1]]) for site, parts in self._parts.items()
        }
        ranks = [part.rank for parts in self._parts.values() for part in parts]
        self.rank = max([*ranks, *(self.vision.matrices.values() if self.vision else ())], default=0)

    def _match(
        self, settings: _Settings, tables: Mapping[str, _Modules], seen: Collection[str]
    ) -> tuple[dict[tuple[int, str], list[_Part]], str]:
        """The pairs of factors for each matrix, and the prefix of their names in this file."""
        found: dict[tuple[int, str], list[_Part]] = {}
        prefixes: set[str] = set()
        for name in sorted(set(self._source.names()) - set(seen)):
            # Matching takes quadratic time, so the length is checked first.
            match = _FACTOR.fullmatch(name) if len(name) <= _MAX_NAME_LENGTH else None
            if match is None or _TOWER.search(name):
                raise UnsupportedModelError(f"{self.path}: {_why_refused(name)}")
            module, layers, layer, below, letter = match.groups()
            if letter is None and not self.dora:
                raise UnsupportedModelError(
                    f"{self.path}: {name!r} belongs to a DoRA adapter, but its {CONFIG_FILE} does not set use_dora"
                )
            place = tables.get(layers, {}).get(below)
            if place is None or int(layer) >= self._config.num_hidden_layers or str(int(layer)) != layer:
                known = ", ".join(sorted({key.rpartition(".")[2] for table in tables.values() for key in table}))
                raise UnsupportedModelError(
                    f"{self.path} changes {module!r}, which is not a module of this model with "
                    f"{self._config.num_hidden_layers} layers; adapters of it may target {known}"
                )
            prefixes.add(layers)
            if letter == "A":
                part = self._part(settings, module, *place)
                found.setdefault((int(layer), place[0]), []).append(part)
            elif f"base_model.model.{module}.lora_A.weight" not in self._source.names():
                raise TensorError(f"{self.path} holds {name!r} without its lora_A")
        if not prefixes and seen:
            prefixes.add(_HF_LAYERS)
        if len(prefixes) != 1:
            raise TensorError(f"{self.path} holds no factors, or factors under the names of two kinds of checkpoint")
        return found, prefixes.pop()

    def _part(self, settings: _Settings, module: str, key: str, rows: str) -> _Part:
        stem = f"base_model.model.{module}.lora_"
        start, stop = _row_ranges(self._config)[rows, key]
        rank = settings.rank(module)
        wanted: dict[str, tuple[int, ...]] = {
            stem + "A.weight": (rank, matrix_shapes(self._config)[key][1]),
            stem + "B.weight": (stop - start, rank),
        }
        if self.dora:
            wanted[stem + _MAGNITUDE] = (stop - start,)
        for name, shape in wanted.items():
            if name not in self._source.names():
                raise TensorError(f"{self.path} lacks {name!r}; the file is incomplete")
            if self._source.info(name).shape != shape:
                raise TensorError(
                    f"{self.path}: {name!r} has the shape {self._source.info(name).shape}; with rank {rank} this "
                    f"model needs {shape}"
                )
        return _Part(stem, rank, settings.scale(module), start, stop)

    def load(self, layer: int, key: str) -> tuple[Float32, Float32]:
        """The factors of one of our matrices: A float32 [rank, columns] and B [rows, rank], scale included.

        Raises:
            UnsupportedModelError: a tensor is not F32, F16 or BF16.
        """
        parts, shape = self._parts[layer, key], self.shapes[layer, key]
        a = np.empty((shape.rank, shape.columns), np.float32)
        b = np.zeros((shape.rows, shape.rank), np.float32)
        at = 0
        for part in parts:
            a[at : at + part.rank] = self._source.read(part.name + "A.weight")
            with np.errstate(over="ignore"):  # packing refuses non-finite values
                scaled = self._source.read(part.name + "B.weight") * np.float32(part.scale)
            b[part.start : part.stop, at : at + part.rank] = scaled
            at += part.rank
        if key == "qkv" and self._half_split:
            interleave_rotary_rows(b, self._config)
        return a, b

    def magnitudes(self, layer: int, key: str) -> Float32:
        """What a DoRA adapter makes the norm of each row of W + B A: float32 [rows], NaN for rows left as they are.

        Raises:
            TensorError: a norm is not a finite number.
        """
        found = np.full(self.shapes[layer, key].rows, np.nan, np.float32)
        for part in self._parts[layer, key]:
            values = self._source.read(part.name + _MAGNITUDE)
            if not np.isfinite(values).all():
                raise TensorError(f"{self.path}: {part.name + _MAGNITUDE!r} is not finite; the file is damaged")
            found[part.start : part.stop] = values
        if key == "qkv" and self._half_split:
            interleave_rotary_rows(found, self._config)
        return found

    def ranks_of(self, layer: int, key: str, start: int, stop: int) -> NDArray[np.intp]:
        """Which rows of A and columns of B, as `load` returns them, change rows start..stop-1 of the matrix."""
        kept: list[int] = []
        at = 0
        for part in self._parts[layer, key]:
            if max(part.start, start) < min(part.stop, stop):
                kept += range(at, at + part.rank)
            at += part.rank
        return np.array(kept, np.intp)

    def close(self) -> None:
        """Unmaps the file."""
        self._source.close()

    def __enter__(self) -> AdapterFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Settings:
    """`adapter_config.json`, checked."""

    def __init__(self, settings: Mapping[str, Any], where: str) -> None:
        self._where = where
        if settings.get("peft_type") != "LORA":
            prefix = settings.get("peft_type") == "PREFIX_TUNING"
            hint = ": a prefix (P-Tuning v2) needs the backend local or transformers" if prefix else ""
            raise UnsupportedModelError(
                f"{where}: peft_type is {settings.get('peft_type')!r:.40}; only LORA is supported here{hint}"
            )
        for key, value in settings.items():
            if key not in _HONORED and key not in _WITHOUT_EFFECT and value not in (None, False, [], {}, "none"):
                raise UnsupportedModelError(f"{where}: {key!r:.60} is set to {value!r:.60}, which is not supported")
        saved = settings.get("modules_to_save") or []
        if not isinstance(saved, list) or any(not f".{name}".endswith(f".{PROJECTOR}") for name in saved):
            raise UnsupportedModelError(f"{where}: 'modules_to_save' is set to {saved!r:.60}, which is not supported")
        self.saved = saved
        init = settings.get("init_lora_weights", True)
        if not any(init is plain or (isinstance(init, str) and init == plain) for plain in _PLAIN_INITS):
            raise UnsupportedModelError(
                f"{where}: init_lora_weights {init!r:.60} changes the base model; convert the adapter when saving it "
                "(path_initial_model_for_weight_conversion of PEFT)"
            )
        self._rank = self._count(settings.get("r"), "r")
        self._alpha = self._number(settings.get("lora_alpha"), "lora_alpha")
        rslora = settings.get("use_rslora", False)
        if rslora not in (None, True, False):
            raise CheckpointError(f"{where}: use_rslora must be true or false")
        self._rslora = bool(rslora)
        if settings.get("use_dora", False) not in (None, True, False):
            raise CheckpointError(f"{where}: use_dora must be true or false")
        self.dora = bool(settings.get("use_dora"))
        base = settings.get("base_model_name_or_path")
        self.base = base if isinstance(base, str) else ""
        self._ranks = self._patterns(settings, "rank_pattern")
        self._alphas = self._patterns(settings, "alpha_pattern")
        self._targets = settings.get("target_modules")
        self._whole = not any(settings.get(key) for key in ("layers_to_transform", "exclude_modules"))
        self._whole &= settings.get("layers_to_transform") != 0

    def rank(self, module: str) -> int:
        """The rank of a module, named from the model's root."""
        value = self._matching(self._ranks, module)
        return self._rank if value is None else self._count(value, "rank_pattern")

    def scale(self, module: str) -> float:
        """What B A is multiplied by: alpha / r, or alpha / sqrt(r) with rank-stabilized LoRA."""
        value, rank = self._matching(self._alphas, module), self.rank(module)
        alpha = self._alpha if value is None else self._number(value, "alpha_pattern")
        return alpha / (math.sqrt(rank) if self._rslora else rank)

    def check_complete(self, modules: _Modules, parts: Mapping[tuple[int, str], list[_Part]], num_layers: int) -> None:
        """If the configuration lists plain module names for all layers, each layer must have each of them."""
        targets = self._targets
        if not self._whole or not isinstance(targets, list):
            return
        present = {part.name for group in parts.values() for part in group}
        last = {below.rpartition(".")[2]: below for below in modules}
        wanted = [last[name] for name in targets if isinstance(name, str) and name in last]
        prefix = next(iter(present)).partition(".layers.")[0] + ".layers."
        for layer in range(num_layers):
            for below in wanted:
                if f"{prefix}{layer}.{below}.lora_" not in present:
                    raise TensorError(f"{self._where} targets {below!r}, but layer {layer} has no factors for it")

    def _patterns(self, settings: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        patterns = settings.get(key) or {}
        if not isinstance(patterns, dict):
            raise CheckpointError(f"{self._where}: {key} must be an object")
        for pattern in patterns:
            # PEFT takes regular expressions; an untrusted one may take forever, and plain names are what is in use.
            if not _PATTERN.fullmatch(pattern):
                raise UnsupportedModelError(
                    f"{self._where}: {key} may name modules, not patterns such as {pattern!r:.60}"
                )
        return patterns

    @staticmethod
    def _matching(patterns: Mapping[str, Any], module: str) -> Any:
        """The value of the first name that equals the module's or ends it after a dot; None if there is none."""
        for pattern, value in patterns.items():
            name = pattern.removeprefix("^")
            if module == name or (name == pattern and module.endswith("." + name)):
                return value
        return None

    def _count(self, value: Any, key: str) -> int:
        if type(value) is not int or not 1 <= value <= MAX_RANK:
            raise UnsupportedModelError(f"{self._where}: {key} must be a rank of 1 to {MAX_RANK}, not {value!r:.40}")
        return value

    def _number(self, value: Any, key: str) -> float:
        if type(value) not in (int, float) or not abs(value) <= 1e6:
            raise UnsupportedModelError(f"{self._where}: {key} must be a number, not {value!r:.40}")
        return float(value)


def check_files(path: Path) -> None:
    """Check that a folder has the two files of an adapter.

    Raises:
        CheckpointError: it does not.
    """
    try:
        config, weights, pickled = ((path / name).is_file() for name in (CONFIG_FILE, WEIGHT_FILE, "adapter_model.bin"))
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise CheckpointError(f"cannot access {path}: {error}") from error
    if not config:
        raise CheckpointError(f"there is no adapter at {path}: it has no {CONFIG_FILE}")
    if not weights:
        hint = (
            "; adapter_model.bin is a pickle, which can run code, so it is not read. Save it again with "
            "safe_serialization=True"
            if pickled
            else "; fetch the adapter again"
        )
        raise CheckpointError(f"{path} has no {WEIGHT_FILE}{hint}")


def check_base(adapter: Path, base: str, variant: Variant) -> None:
    """Compare the published model that an adapter names as its own with the one that it is to change.

    Args:
        base: `AdapterFile.base`; a name that is not in our table, such as a folder's, is not compared.
        variant: of the checkpoint.

    Raises:
        UnsupportedModelError: they are two models.
    """
    known = get_variant(base)
    if known is None or not variant.repo_id:
        return
    one, other = (row.name.removesuffix("-hf") for row in (known, variant))
    if one != other and not (known.by_name_only and set(known.model_types) & set(variant.model_types)):
        raise UnsupportedModelError(
            f"the adapter in {adapter} was trained on {base}, not on {variant.name}; if that is wrong, correct "
            f"base_model_name_or_path in its {CONFIG_FILE}"
        )


def _why_refused(name: str) -> str:
    if len(name) > _MAX_NAME_LENGTH:
        return f"{name[:40]!r}… is not the name of a LoRA tensor; it has {len(name)} characters"
    if _TOWER.search(name):
        return (
            f"{name!r} changes the vision tower or its projector, and only adapters of the text model's layers can be "
            "used beside a model; make one model of the two: glm4 merge MODEL ADAPTER -o DIR"
        )
    if "lora_embedding_" in name:
        return f"{name!r} changes the embedding, which is not supported"
    if name.endswith(".bias"):
        return f"{name!r} is a bias; only adapters without biases are supported"
    return f"{name!r} is not a LoRA factor of a layer; adapters with other trained modules are not supported"


def _row_ranges(config: ModelConfig) -> Mapping[tuple[str, str], tuple[int, int]]:
    query, keys, ffn = config.query_size, config.key_value_size, config.intermediate_size
    whole = {("all", key): (0, rows) for key, (rows, _) in matrix_shapes(config).items()}
    return whole | {
        ("q", "qkv"): (0, query),
        ("k", "qkv"): (query, query + keys),
        ("v", "qkv"): (query + keys, query + 2 * keys),
        ("gate", "gate_up"): (0, ffn),
        ("up", "gate_up"): (ffn, 2 * ffn),
    }

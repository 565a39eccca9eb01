"""`Checkpoint`: a model on disk, opened and checked, with its tensors under canonical names.

`open_checkpoint` takes a folder or a file, reads configuration, generation defaults and chat template, and maps the
weight files. It never runs code from the checkpoint and never unpickles anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.config_reader import ParsedConfig, config_from_gguf, config_from_json
from glm4.checkpoints.gguf import GGUFSource
from glm4.checkpoints.json_file import read_json_object
from glm4.checkpoints.locate import locate_weights
from glm4.checkpoints.packed_format import PackedInfo, PackedSource, check_formats, is_packed, parse_section
from glm4.checkpoints.safetensors import SINGLE_FILE, SafetensorsSource
from glm4.checkpoints.side_files import (
    generation_from_gguf,
    read_chat_template,
    read_generation_config,
    template_of,
    undouble_braces,
)
from glm4.checkpoints.tensor_names import TensorMap, map_tensors
from glm4.checkpoints.tensor_source import Float32, TensorInfo, TensorSource
from glm4.checkpoints.text_files import TextFiles
from glm4.checkpoints.vision_config import image_layout
from glm4.errors import TensorError
from glm4.kernels.group_codes import GroupCodes, concatenated
from glm4.model.config import ModelConfig
from glm4.model.precision import Precision, stored_precision
from glm4.model.tensors import EXTRAS, NO_EXTRAS
from glm4.variants import VARIANTS, Variant, find_variant

__all__ = ["Checkpoint", "TensorInfo", "TensorSource", "open_checkpoint"]

_NAMES_SHOWN = 5

# Two quantizations of one matrix differ by a few percent (norm of the difference over the norm); two different matrices
# by about 140 %.
_SAME_MATRIX = 0.15
_SAMPLED_ROWS = 64

Kind = Literal["safetensors", "gguf", "packed"]


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. Close it, or use it as a context manager.

    Attributes:
        path: the folder of a safetensors checkpoint (its tokenizer is beside the weights), or the GGUF file.
        kind: "safetensors", "gguf", or "packed" (safetensors in the layout of our kernels, see `packed_format`).
        config: shape and constants of the model; stop ids of generation_config.json included.
        variant: the row of variants.py it belongs to.
        source: the raw tensors, under the file's names.
        generation_config: sampling defaults that came with the weights.
        chat_template: Jinja text, or None.
        gguf_metadata: every key of a GGUF file; empty for safetensors.
        notes: what a user should know about this checkpoint.
        tensor_map: which tensors of the file make up each canonical tensor.
        model_type: "chatglm", "glm", "glm4", "llama" or "qwen2"; for a packed checkpoint, its source's.
    """

    path: Path
    kind: Kind
    config: ModelConfig
    variant: Variant
    source: TensorSource
    generation_config: Mapping[str, Any]
    chat_template: str | None
    gguf_metadata: Mapping[str, Any] = field(repr=False)
    notes: tuple[str, ...]
    tensor_map: TensorMap = field(repr=False)
    model_type: str

    @property
    def packed(self) -> PackedSource | None:
        """The weights as the kernels read them, if the file is packed."""
        return self.source if isinstance(self.source, PackedSource) else None

    @property
    def text_files(self) -> TextFiles:
        """The checkpoint's text-related files and settings, as read."""
        return TextFiles(
            path=None if self.kind == "gguf" else self.path,
            variant=self.variant,
            chat_template=self.chat_template,
            generation_config=self.generation_config,
            eos_token_ids=self.config.eos_token_ids,
            vocab_size=self.config.vocab_size,
            context=self.config.max_position_embeddings,
            gguf_metadata=self.gguf_metadata,
            packed=self.packed is not None,
            image=image_layout(self.config.vision),
        )

    @property
    def stored_precision(self) -> Precision | None:
        """The file's own precision: that of a packed checkpoint, or what dtype "stored" means for 4-bit codes."""
        if self.packed is not None:
            return self.packed.precision
        names = [name for name in self.tensor_map.recipes if self.has_codes(name)]
        return stored_precision(names) if names else None

    def tensor_names(self) -> list[str]:
        """Canonical names in model order."""
        return list(self.tensor_map.recipes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a canonical tensor.

        Raises:
            TensorError: the model has no such tensor.
        """
        try:
            return self.tensor_map.recipes[name].shape
        except KeyError:
            raise TensorError(f"{self.path}: this model has no tensor {name!r}") from None

    def load(self, name: str) -> Float32:
        """One canonical tensor as float32: widened or dequantized, stacked from its pieces, rotary rows reordered.

        Raises:
            TensorError: the model has no such tensor, or it is missing, truncated or misshapen in the file.
            UnsupportedModelError: its number format is not supported.
        """
        shape = self.shape(name)
        self._check_pieces(name)
        pieces = self.tensor_map.recipes[name].pieces
        if len(pieces) == 1:
            tensor = self.source.read(pieces[0].name).reshape(shape)
        else:
            tensor = np.empty(shape, np.float32)
            start = 0
            for piece in pieces:
                stop = start + piece.shape[0]
                tensor[start:stop] = self.source.read(piece.name)
                start = stop
        if self._is_reordered(name):
            interleave_rotary_rows(tensor, self.config)
        return tensor

    def load_rows(self, name: str, start: int, stop: int) -> Float32:
        """Rows start..stop-1 of a canonical tensor, without holding the rest where the file allows it.

        Raises:
            TensorError: as `load`, or the rows are outside the tensor.
        """
        shape = self.shape(name)
        if not 0 <= start <= stop <= shape[0]:
            raise TensorError(f"{self.path}: {name} of shape {shape} has no rows {start}..{stop}")
        if self._is_reordered(name):
            whole: Float32 = self.load(name)[start:stop].copy()
            return whole
        self._check_pieces(name)
        found: list[Float32] = [self.source.read_rows(*part) for part in self._parts(name, start, stop)]
        if not found:
            return np.empty((0, *shape[1:]), np.float32)
        rows = found[0] if len(found) == 1 else np.concatenate(found)
        return rows.reshape(stop - start, *shape[1:])

    def has_codes(self, name: str) -> bool:
        """Whether the file has a canonical matrix, in all its pieces, as 4-bit codes in groups of 32 columns."""
        pieces, source = self.tensor_map.recipes[name].pieces, self.source
        return isinstance(source, GGUFSource) and all(
            piece.name in source.names() and source.has_codes(piece.name) for piece in pieces
        )

    def load_codes(self, name: str, start: int, stop: int) -> GroupCodes:
        """Rows start..stop-1 of a matrix that `has_codes`, as the file's codes, stacked and reordered as in `load`.

        Raises:
            TensorError: as `load_rows`, or the matrix has no codes.
        """
        shape, source = self.shape(name), self.source
        if not 0 <= start < stop <= shape[0]:
            raise TensorError(f"{self.path}: {name} of shape {shape} has no rows {start}..{stop}")
        if not isinstance(source, GGUFSource) or not self.has_codes(name):
            raise TensorError(f"{self.path}: {name} is not stored as 4-bit codes")
        self._check_pieces(name)
        if not self._is_reordered(name):
            return concatenated([source.read_codes(*part) for part in self._parts(name, start, stop)])
        whole = concatenated([source.read_codes(*part) for part in self._parts(name, 0, shape[0])])
        order = np.arange(shape[0])
        interleave_rotary_rows(order, self.config)
        return whole.rows(order[start:stop])

    def block_type(self, name: str) -> str | None:
        """ggml's name of the type that a canonical matrix has in a GGUF file, in all its pieces; None elsewhere."""
        source, pieces = self.source, self.tensor_map.recipes[name].pieces
        if not isinstance(source, GGUFSource):
            return None
        types = {source.info(piece.name).dtype for piece in pieces}
        return types.pop() if len(types) == 1 else None

    def load_blocks(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows start..stop-1 of a matrix with a `block_type`, as the file's bytes, stacked and reordered as in `load`.

        Returns:
            uint8 [stop - start, bytes of a row].

        Raises:
            TensorError: as `load_rows`.
        """
        shape, source = self.shape(name), self.source
        if not isinstance(source, GGUFSource) or not 0 <= start < stop <= shape[0]:
            raise TensorError(f"{self.path}: {name} of shape {shape} has no blocks of rows {start}..{stop}")
        self._check_pieces(name)
        if not self._is_reordered(name):
            return np.concatenate([source.read_blocks(*part) for part in self._parts(name, start, stop)])
        whole = np.concatenate([source.read_blocks(*part) for part in self._parts(name, 0, shape[0])])
        interleave_rotary_rows(whole, self.config)
        return whole[start:stop]

    def _is_reordered(self, name: str) -> bool:
        """Whether the rows of a tensor must be reordered: those of queries and keys with half-split rotary pairs."""
        return self.config.rotary_half_split and self.tensor_map.recipes[name].rotary

    def _parts(self, name: str, start: int, stop: int) -> list[tuple[str, int, int]]:
        """Rows start..stop-1 of a canonical tensor: (tensor of the file, first row, last row + 1)."""
        pieces, parts, at = self.tensor_map.recipes[name].pieces, [], 0
        for piece in pieces:
            first, last = max(start - at, 0), min(stop - at, piece.shape[0])
            if first < last or len(pieces) == 1:
                parts.append((piece.name, first, last))
            at += piece.shape[0]
        return parts

    def check(self) -> None:
        """Compares the file's tensor table with what the model needs, without reading data.

        Raises:
            TensorError: tensors are missing, left over, or of the wrong shape; names up to five.
        """
        if self.tensor_map.missing:
            raise TensorError(f"{self.path} lacks {_listed(self.tensor_map.missing)}; the download is incomplete or "
                              "the configuration belongs to another model")  # fmt: skip
        if self.tensor_map.left_over:
            raise TensorError(f"{self.path} holds {_listed(self.tensor_map.left_over)} that this architecture "
                              f"({self.config.architecture}) has no use for; refusing to ignore weights")  # fmt: skip
        for name in self.tensor_map.recipes:
            self._check_pieces(name)

    def _check_pieces(self, name: str) -> None:
        for piece in self.tensor_map.recipes[name].pieces:
            if piece.name not in self.source.names():
                raise TensorError(f"{self.path} lacks {_listed((piece.name,))}, needed for {name}")
            found = self.source.info(piece.name).shape
            if found != piece.shape:
                raise TensorError(
                    f"{self.path}: {piece.name!r} has the shape {found}, the configuration says {piece.shape}"
                )

    def close(self) -> None:
        """Unmaps the files; loading afterwards raises CheckpointError."""
        self.source.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_checkpoint(path: Path, *, variant: Variant | None = None) -> Checkpoint:
    """Opens a model folder (safetensors, or one GGUF), or a `.gguf` or `.safetensors` file.

    Args:
        path: folder or file.
        variant: the row of variants.py, if the caller knows which published model this is; otherwise the row is found
            from the checkpoint's metadata.

    Raises:
        ModelNotFoundError: nothing exists at that path.
        CheckpointError: not a model we can read; says what is wrong and what to do.
    """
    kind, weights = locate_weights(Path(path))
    return _open_gguf(weights, variant) if kind == "gguf" else _open_safetensors(weights, variant)


def _open_safetensors(weights: Path, variant: Variant | None) -> Checkpoint:
    folder = weights if weights.is_dir() else weights.parent
    config_file = folder / "config.json"
    settings = read_json_object(config_file)
    if is_packed(settings):
        return _open_packed(folder, settings, variant)
    parsed = config_from_json(settings, str(config_file))
    generation, notes = read_generation_config(folder)
    template = read_chat_template(folder)
    source = SafetensorsSource(weights)
    try:
        parsed = replace(parsed, notes=(*parsed.notes, *notes))
        return _assemble(folder, "safetensors", parsed, source, generation, template, {}, variant, embedding=None)
    except BaseException:
        source.close()
        raise


def _open_packed(folder: Path, settings: Mapping[str, Any], variant: Variant | None) -> Checkpoint:
    where = str(folder / "config.json")
    info: PackedInfo = parse_section(settings, where)
    plain = {key: value for key, value in settings.items() if key != "quantization_config"}
    parsed = config_from_json(plain, where)
    check_formats(settings, info.precision, parsed.config, where)
    generation, notes = read_generation_config(folder)
    template = read_chat_template(folder)
    source = PackedSource(folder / SINGLE_FILE, parsed.config, info)
    try:
        held = [EXTRAS[key].about.format(value) for key, value in info.precision.extras.items()]
        made = "; ".join([f"packed as {info.precision.name} from {info.source or 'an unnamed model'}", *held])
        model_type = info.model_type or parsed.model_type
        parsed = replace(parsed, layout="packed", model_type=model_type, notes=(made, *parsed.notes, *notes))
        row = variant or VARIANTS.get(info.variant)
        return _assemble(folder, "packed", parsed, source, generation, template, {}, row, embedding=None)
    except BaseException:
        source.close()
        raise


def _open_gguf(weights: Path, variant: Variant | None) -> Checkpoint:
    source = GGUFSource(weights)
    try:
        metadata = source.metadata
        parsed = config_from_gguf(metadata, source, str(weights))
        generation, notes = generation_from_gguf(metadata)
        template = template_of(metadata.get("tokenizer.chat_template"), str(weights))
        embedding = _tied_embedding(parsed, source)
        if embedding is not None:
            parsed = replace(parsed, config=replace(parsed.config, tie_word_embeddings=True))
            notes += (f"embedding and output head are two quantizations of one matrix; {embedding} is used as both",)
        parsed = replace(parsed, notes=(*parsed.notes, *notes))
        return _assemble(weights, "gguf", parsed, source, generation, template, metadata, variant, embedding=embedding)
    except BaseException:
        source.close()
        raise


def _assemble(
    path: Path,
    kind: Kind,
    parsed: ParsedConfig,
    source: TensorSource,
    generation: Mapping[str, Any],
    template: str | None,
    metadata: Mapping[str, Any],
    variant: Variant | None,
    *,
    embedding: str | None,
) -> Checkpoint:
    """Joins the parts that both kinds of checkpoint have."""
    notes = list(parsed.notes)
    config = _with_generation_stops(parsed.config, generation)
    if template is not None and (mended := undouble_braces(template)) != template:
        template = mended
        notes.append("the chat template's tool-call example had doubled braces, which were fixed")
    vision_layers = 0 if config.vision is None else config.vision.num_hidden_layers
    facts = {**asdict(config), "basename": metadata.get("general.basename"), "vision_layers": vision_layers}
    extras = source.precision.extras if isinstance(source, PackedSource) else NO_EXTRAS
    tensor_map = map_tensors(config, parsed.layout, source.names(), embedding=embedding, extras=extras)
    if embedding is None and config.tie_word_embeddings and any("inv_freq" not in name for name in tensor_map.ignored):
        notes.append("the configuration ties the output head to the embedding; the separate head was ignored")
    return Checkpoint(
        path=path,
        kind=kind,
        config=config,
        variant=variant or find_variant(parsed.model_type, facts, template),
        source=source,
        generation_config=MappingProxyType(dict(generation)),
        chat_template=template,
        gguf_metadata=MappingProxyType(dict(metadata)),
        notes=tuple(notes),
        tensor_map=tensor_map,
        model_type=parsed.model_type,
    )


def _with_generation_stops(config: ModelConfig, generation: Mapping[str, Any]) -> ModelConfig:
    """Adds the stop ids from generation_config.json, which some publishers extend without changing config.json."""
    extra = generation.get("eos_token_id", [])
    ids = [*config.eos_token_ids, *(extra if isinstance(extra, list) else [extra])]
    return replace(config, eos_token_ids=tuple(dict.fromkeys(i for i in ids if 0 <= i < config.vocab_size)))


def _tied_embedding(parsed: ParsedConfig, source: TensorSource) -> str | None:
    """The tensor used as embedding and head of a qwen2 file that stores the tied matrix twice, else None.

    GGUF has no key for tying; qwen2 files of tied models have token_embd.weight and a finer output.weight. They count
    as one matrix if a sample of rows differs by less than 15 % of its norm. The larger of the two is kept: it has
    more bits, and half the memory is saved.
    """
    head, embed = "output.weight", "token_embd.weight"
    if parsed.model_type != "qwen2" or parsed.config.tie_word_embeddings:
        return None
    shape = source.info(head).shape
    if shape != source.info(embed).shape or shape != (parsed.config.vocab_size, parsed.config.hidden_size):
        return None  # the problem is reported later; a damaged header must not decide how much is read here
    rows = shape[0]
    difference = norm = 0.0
    for row in np.unique(np.linspace(0, rows - 1, min(rows, _SAMPLED_ROWS)).astype(int)).tolist():
        first, second = source.read_rows(head, row, row + 1), source.read_rows(embed, row, row + 1)
        with np.errstate(all="ignore"):
            difference += float(np.square(first - second, dtype=np.float64).sum())
            norm += float(np.square(first, dtype=np.float64).sum())
    if not difference <= _SAME_MATRIX**2 * norm:  # a NaN in hostile weights means "not the same"
        return None
    return head if source.info(head).nbytes >= source.info(embed).nbytes else embed


def interleave_rotary_rows(tensor: NDArray[Any], config: ModelConfig) -> None:
    """Reorders half-split rotary rows of a fused qkv weight or bias (or of codes) to adjacent pairs, in place.

    In every query and key head the first `rotary_dim` rows r/2 + r/2 become pairs: new[2i] = old[i],
    new[2i+1] = old[i + r/2]. Queries and keys are reordered alike, so attention scores do not change.
    """
    heads = config.num_attention_heads + config.num_key_value_heads
    rotary = config.rotary_dim
    rows = tensor[: heads * config.head_dim].reshape(heads, config.head_dim, -1)[:, :rotary]
    halves = rows.reshape(heads, 2, rotary // 2, rows.shape[-1])
    rows[...] = halves.transpose(0, 2, 1, 3).reshape(rows.shape)


def split_rotary_rows(tensor: NDArray[Any], config: ModelConfig) -> None:
    """Reorders the adjacent rotary pairs of a fused qkv weight or bias to half-split rows, in place.

    The inverse of `interleave_rotary_rows`: old[2i] becomes new[i], old[2i+1] becomes new[i + r/2].
    """
    heads = config.num_attention_heads + config.num_key_value_heads
    rotary = config.rotary_dim
    rows = tensor[: heads * config.head_dim].reshape(heads, config.head_dim, -1)[:, :rotary]
    pairs = rows.reshape(heads, rotary // 2, 2, rows.shape[-1])
    rows[...] = pairs.transpose(0, 2, 1, 3).reshape(rows.shape)


def _listed(names: tuple[str, ...]) -> str:
    """Tensor names for an error message: how many, and the first five."""
    shown = ", ".join(repr(name) for name in names[:_NAMES_SHOWN])
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{len(names)} tensor{'s' if len(names) != 1 else ''}: {shown}{more}"

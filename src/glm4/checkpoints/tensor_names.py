"""Which tensors of a file make up each tensor of a model, by the table in `model/tensors.py`.

A file may store a tensor whole or as pieces that are stacked row-wise. A tensor that no row of the table asks for is an
error.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from glm4.checkpoints.config_fields import Layout
from glm4.model.config import ModelConfig
from glm4.model.tensors import NO_EXTRAS, Extras, ModelTensor, Source, file_shape, model_tensors, row_of


@dataclass(frozen=True)
class Piece:
    """One tensor of the file: its name and the shape it must have."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Recipe:
    """A canonical tensor: `pieces` stacked along the rows give the numbers of `shape`; `rotary` as in `TensorRow`."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    rotary: bool


@dataclass(frozen=True)
class TensorMap:
    """How a file's tensors and the canonical ones correspond.

    Attributes:
        recipes: canonical name -> recipe, in model order.
        missing: file names that a recipe needs and the file lacks.
        left_over: file names that no recipe needs and no rule ignores.
        ignored: file names that are known and deliberately not loaded.
    """

    recipes: Mapping[str, Recipe]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    ignored: tuple[str, ...]


# Stored RoPE frequencies: never used, because files have them for another base and in a short dtype.
_DROPPED = re.compile(r"(.+\.)?rotary(_pos)?_emb\.inv_freq", re.ASCII)


def map_tensors(
    config: ModelConfig,
    layout: Layout,
    names: Collection[str],
    *,
    embedding: str | None = None,
    extras: Extras = NO_EXTRAS,
) -> TensorMap:
    """Matches a file's tensor names to the canonical tensors of a model.

    Args:
        config: the model.
        layout: the file's naming scheme, a key of `TensorRow.sources`.
        names: the file's tensor names.
        embedding: the file's tensor to use as (tied) embedding instead of the table's.
        extras: layout "packed" only.
    """
    recipes: dict[str, Recipe] = {}
    for name, tensor in model_tensors(config, extras).items():
        source = embedding if name == "embed_tokens" and embedding else tensor.row.sources.get(layout, tensor.row.name)
        shape = tensor.shape if layout == "packed" else file_shape(tensor, config)
        ways = source if isinstance(source, tuple) else (source,)
        pieces = _choose([_pieces(way, tensor, shape, config) for way in ways], names)
        recipes[name] = Recipe(name, tensor.shape, pieces, tensor.row.rotary)
    needed = {piece.name for recipe in recipes.values() for piece in recipe.pieces}
    spare = [name for name in names if name not in needed]
    tables = [row_of(name).sources.get(layout, name) for name in ("lm_head", "embed_tokens")]
    ignorable = tables if config.tie_word_embeddings else []
    ignored = tuple(name for name in spare if name in ignorable or _DROPPED.fullmatch(name))
    return TensorMap(
        recipes=MappingProxyType(recipes),
        missing=tuple(name for name in sorted(needed) if name not in names),
        left_over=tuple(sorted(set(spare) - set(ignored))),
        ignored=ignored,
    )


def _pieces(source: Source, tensor: ModelTensor, shape: tuple[int, ...], config: ModelConfig) -> tuple[Piece, ...]:
    rows, *columns = shape
    sizes = {source: rows} if isinstance(source, str) else {n: getattr(config, size) for n, size in source.items()}
    return tuple(Piece(name.replace("{i}", str(tensor.index)), (size, *columns)) for name, size in sizes.items())


def _choose(ways: list[tuple[Piece, ...]], names: Collection[str]) -> tuple[Piece, ...]:
    """The first alternative whose tensors all exist; otherwise one with some of them, so that errors make sense."""
    for enough in (all, any):
        for way in ways:
            if enough(piece.name in names for piece in way):
                return way
    return ways[0]

"""Which of a folder's GGUF files is the model: beside it may be its vision projector, an adapter, or another model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from glm4.checkpoints.gguf import is_later_split
from glm4.checkpoints.gguf_header import read_metadata
from glm4.checkpoints.tensor_source import MappedFile
from glm4.errors import CheckpointError, Glm4Error

_DEFAULT = "model.gguf"
_PROJECTOR = "mmproj"
# `general.architecture` of vision projectors; newer files also say so in `general.type`.
_PROJECTOR_ARCHITECTURES = ("clip", _PROJECTOR)
_MOST_NAMES = 20


def choose_gguf(folder: Path, names: Collection[str]) -> Path | None:
    """The model among the files of a folder; None if there is no GGUF file.

    A file's header says whether it is a model; where headers leave several, a file that is named as a projector is one.

    Raises:
        CheckpointError: several models, or none but files that belong to one; names them.
    """
    files = [folder / name for name in names if name.endswith(".gguf") and not is_later_split(folder / name)]
    if len(files) <= 1 or _DEFAULT in names:
        return folder / _DEFAULT if _DEFAULT in names else next(iter(files), None)
    kinds = {file: companion_kind(_metadata(file)) for file in files}
    models = [file for file in files if kinds[file] is None]
    if len(models) > 1:
        models = [file for file in models if not file.name.lower().startswith(_PROJECTOR)] or models
    if len(models) == 1:
        return models[0]
    if models:
        raise CheckpointError(
            f"{folder} holds {len(models)} GGUF models; name the file of one of them:{_listing(models)}"
        )
    found = ", ".join(f"{file.name} ({kind})" for file, kind in list(kinds.items())[:_MOST_NAMES])
    raise CheckpointError(f"{folder} has no model, only files that belong to one: {found}; fetch the model's GGUF file")


def companion_kind(metadata: Mapping[str, Any]) -> str | None:
    """What a GGUF file is in words if it is not a model, by its metadata; None for a model."""
    if metadata.get("general.architecture") in _PROJECTOR_ARCHITECTURES:
        return "a vision projector (mmproj)"
    kind = metadata.get("general.type", "model")
    if not isinstance(kind, str) or kind == "model":
        return None
    return {_PROJECTOR: "a vision projector (mmproj)", "adapter": "a LoRA adapter"}.get(kind, f"of type {kind[:40]!r}")


def _metadata(file: Path) -> dict[str, Any]:
    """The metadata; empty if the file cannot be read, which opening it will explain."""
    try:
        with closing(MappedFile(file)) as mapped:
            return read_metadata(mapped)
    except Glm4Error:
        return {}


def _listing(models: Sequence[Path]) -> str:
    lines = []
    for file in models[:_MOST_NAMES]:
        architecture = _metadata(file).get("general.architecture", "unreadable")
        lines.append(f"\n  {file}  ({str(architecture)[:40]}, {file.stat().st_size / 1e9:.2f} GB)")
    return "".join(lines)

"""Which files of a model repository make up a checkpoint, and whether a folder has all of them.

Weights are *.safetensors or *.gguf. Pickles (*.bin, *.pt) and code (*.py) are never fetched and never run.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

from glm4.errors import ModelNotFoundError, UnsupportedModelError
from glm4.system.text_encoding import read_text

_COMPANIONS = ("*.json", "tokenizer.model", "*.jinja", "*.txt", "LICENSE*", "NOTICE*")
_TOKENIZERS = {"tokenizer.model", "tokenizer.json"}
_NEVER = (".py", ".bin", ".pt", ".pth", ".pkl", ".ckpt", ".safetensors", ".gguf")
_SHARD = re.compile(r"model-\d+-of-(\d+)\.safetensors")
_SPLIT_GGUF = re.compile(r"-\d{5}-of-(\d{5})\.gguf$", re.IGNORECASE)
_USUAL_GGUF = "Q4_K_M"  # taken when a repository has several and the user did not name one
_INDEX = "model.safetensors.index.json"
_INDEX_LIMIT = 64 << 20


def choose_files(files: Collection[str], wanted: str | None, repository: str, *, weights: bool = True) -> list[str]:
    """The files of a repository that make up the checkpoint.

    Args:
        files: paths in the repository.
        wanted: what follows the colon in `org/name:wanted`: a GGUF file or a unique part of its name.
        repository: its name, for error messages.
        weights: False skips them where configuration and tokenizer are separate files.

    Returns:
        The file (or files, when split) of one GGUF model, or safetensors files with configuration and tokenizer.

    Raises:
        ModelNotFoundError: no file or several files match `wanted`; lists those that exist.
        UnsupportedModelError: the repository has no weights in a format we read.
    """
    ggufs = [name for name in files if name.lower().endswith(".gguf")]
    if wanted is not None:
        return choose_gguf(ggufs, wanted, repository)
    companions = sorted(name for name in files if _is_companion(name))
    if not weights and "config.json" in companions and not _TOKENIZERS.isdisjoint(companions):
        return companions
    safetensors = _choose_safetensors(files)
    if safetensors:
        return sorted(safetensors + companions)
    if ggufs:
        models = list(_gguf_models(ggufs))
        return choose_gguf(ggufs, models[0] if len(models) == 1 else _USUAL_GGUF, repository)
    pickles = sorted(name for name in files if name.endswith((".bin", ".pt", ".pth")))
    why = f" It has {pickles[0]}, a pickle; pickles can run code and are never loaded." if pickles else ""
    raise UnsupportedModelError(f"{repository} has no *.safetensors and no *.gguf file.{why}")


def choose_gguf(ggufs: Collection[str], wanted: str, repository: str) -> list[str]:
    """The one GGUF model that `wanted` names: its path, its file name, or a unique part of it, ignoring case.

    Returns:
        Its file, or all its files in order if it is split.
    """
    models = _gguf_models(ggufs)
    exact = [model for model in models if wanted in (model, *models[model], PurePosixPath(model).name)]
    matches = exact or [model for model in models if wanted.lower() in model.lower()]
    if len(matches) == 1:
        return models[matches[0]]
    problem = f"{len(matches)} GGUF files match {wanted!r}" if matches else f"no GGUF file matches {wanted!r}"
    listing = "".join(f"\n  {repository}:{model}" for model in (matches or models))
    raise ModelNotFoundError(f"{repository}: {problem}." + (f" Name one of:{listing}" if listing else ""))


def _gguf_models(ggufs: Collection[str]) -> dict[str, list[str]]:
    """Model -> its files; before a download there are only names to tell a vision projector by."""
    models: dict[str, list[str]] = {}
    for name in sorted(name for name in ggufs if "mmproj" not in name.lower()):
        models.setdefault(_SPLIT_GGUF.sub(".gguf", name), []).append(name)
    return models


def checkpoint_in(folder: Path, wanted: str | None = None, *, weights: bool = True) -> Path | None:
    """The complete checkpoint in a local copy of a repository: the folder itself or a GGUF file in it, or None."""
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    try:
        chosen = choose_files(files, wanted, str(folder), weights=weights)
    except (ModelNotFoundError, UnsupportedModelError):
        return None
    if chosen[0].lower().endswith(".gguf"):
        split = _SPLIT_GGUF.search(chosen[0])
        return folder / chosen[0] if split is None or int(split[1]) == len(chosen) else None
    has_text = "config.json" in chosen and not _TOKENIZERS.isdisjoint(chosen)
    return folder if has_text and (not weights or _all_shards(folder, chosen)) else None


def _choose_safetensors(files: Collection[str]) -> list[str]:
    """Weights in the top folder, which are sometimes next to copies in other layouts ("consolidated", "original/")."""
    top = [name for name in files if "/" not in name and name.endswith(".safetensors")]
    shards = [name for name in top if _SHARD.fullmatch(name)]
    if shards and _INDEX in files:
        return shards
    return ["model.safetensors"] if "model.safetensors" in top else top


def _is_companion(name: str) -> bool:
    if "/" in name or name.lower().endswith(_NEVER):
        return False
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _COMPANIONS)


def _all_shards(folder: Path, chosen: Collection[str]) -> bool:
    shards = {name for name in chosen if name.endswith(".safetensors")}
    if _INDEX not in chosen:
        return all((match := _SHARD.fullmatch(name)) is None or int(match[1]) == len(shards) for name in shards)
    return shards >= _indexed_shards(folder / _INDEX)


def _indexed_shards(index: Path) -> set[str]:
    """File names in the index; if it is unreadable a name that cannot exist, so that it counts as incomplete."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        if index.stat().st_size <= _INDEX_LIMIT:
            weight_map: Mapping[str, str] = json.loads(read_text(index))["weight_map"]
            return set(weight_map.values())
    return {"/"}

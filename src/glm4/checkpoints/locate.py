"""Finds the weights in what a user pointed to, or says why there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from glm4.checkpoints.gguf_choice import choose_gguf
from glm4.checkpoints.gguf_header import MAGIC
from glm4.checkpoints.safetensors import INDEX_FILE, SINGLE_FILE
from glm4.errors import CheckpointError, ModelNotFoundError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

_Found = tuple[Literal["safetensors", "gguf"], Path]


def locate_weights(path: Path) -> _Found:
    """(kind, file or folder to open) for a path from the user.

    Raises:
        ModelNotFoundError: nothing is there.
        CheckpointError: no weights, several models, an incomplete download, or pickled weights.
    """
    try:
        if path.is_dir():
            return _in_folder(path)
        if not path.exists():
            raise ModelNotFoundError(f"there is no model at {path}")
        return _file(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise CheckpointError(f"cannot access {path}: {error}") from error


def _file(path: Path) -> _Found:
    if path.suffix == ".safetensors":
        if not (path.parent / "config.json").is_file():
            raise CheckpointError(f"{path} needs a config.json beside it; fetch the whole repository, not one file")
        if path.name == SINGLE_FILE or not (path.parent / INDEX_FILE).is_file():
            return "safetensors", path
        return "safetensors", path.parent  # one shard of several
    if path.suffix in _PICKLES:
        raise _pickled(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is neither a folder nor a regular file")
    with path.open("rb") as file:
        if path.suffix == ".gguf" or file.read(4) == MAGIC:
            return "gguf", path
    raise CheckpointError(f"{path} is not a model: expected a folder, a .gguf or a .safetensors file")


def _in_folder(folder: Path) -> _Found:
    names = sorted(entry.name for entry in folder.iterdir())
    has_config = "config.json" in names
    safetensors = [name for name in names if name.endswith(".safetensors")]
    if (SINGLE_FILE in names or INDEX_FILE in names) and has_config:
        return "safetensors", folder
    gguf = choose_gguf(folder, names)
    if gguf is not None:
        return "gguf", gguf
    unfinished = _unfinished(folder, names)
    if unfinished:
        raise CheckpointError(f"{folder} holds an unfinished download ({unfinished}); run the download again")
    if safetensors and not has_config:
        raise CheckpointError(f"{folder} has weights but no config.json; fetch the whole repository")
    if safetensors:
        raise CheckpointError(
            f"{folder} has {len(safetensors)} safetensors files but neither {SINGLE_FILE} nor {INDEX_FILE}; "
            "fetch the whole repository"
        )
    pickles = [name for name in names if Path(name).suffix in _PICKLES]
    if pickles:
        raise _pickled(folder / pickles[0])
    if has_config:
        raise CheckpointError(f"{folder} has a config.json but no weights (*.safetensors); fetch the whole repository")
    raise CheckpointError(f"{folder} holds no model: neither config.json with safetensors files nor a .gguf file")


def _unfinished(folder: Path, names: list[str]) -> str | None:
    """The name of a partial download in the folder or in the hub client's own subfolder."""
    partial = [name for name in names if name.endswith((".incomplete", ".part", ".download"))]
    cache = folder / ".cache" / "huggingface" / "download"
    if not partial and cache.is_dir():
        partial = sorted(entry.name for entry in cache.iterdir() if entry.name.endswith(".incomplete"))
    return partial[0] if partial else None


def _pickled(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is a PyTorch pickle, which can run code when it is opened and is never loaded; "
        "use a safetensors version of the model, or convert it to safetensors where it is safe to run its code"
    )

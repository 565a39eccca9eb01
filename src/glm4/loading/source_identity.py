"""What a model was read from, cheap to compute: two models with the same identity are taken to be the same.

Does not cover: a file that changes without changing size, modification time and first megabyte.
"""

from __future__ import annotations

import glob
import hashlib
from pathlib import Path
from typing import Any

from glm4.checkpoints.locate import locate_weights
from glm4.errors import Glm4Error

_HEAD_NBYTES = 1 << 20
_SOURCE_SUFFIXES = (".safetensors", ".json", ".jinja", ".model")


def source_identity(model: Path) -> list[Any] | None:
    """Path of the weights, then name, size, modification time and head digest of every file that matters."""
    try:
        kind, weights = locate_weights(model)
        files = _gguf_files(weights) if kind == "gguf" else _folder_files(weights)
        return [str(weights.resolve()), [_file_identity(file) for file in files]]
    except (OSError, Glm4Error):
        return None  # opening the original will report the problem


def _gguf_files(weights: Path) -> list[Path]:
    """The file, or all parts of a split model."""
    stem, separator, _ = weights.name.rpartition("-00001-of-")
    return sorted(weights.parent.glob(f"{glob.escape(stem)}-*-of-*.gguf")) if separator else [weights]


def _folder_files(weights: Path) -> list[Path]:
    folder = weights if weights.is_dir() else weights.parent
    return sorted(file for file in folder.iterdir() if file.suffix in _SOURCE_SUFFIXES and file.is_file())


def _file_identity(file: Path) -> list[Any]:
    status = file.stat()
    with file.open("rb") as stream:
        head = hashlib.sha256(stream.read(_HEAD_NBYTES)).hexdigest()
    return [file.name, status.st_size, status.st_mtime_ns, head]

"""Writes a whole packed checkpoint folder: weights, configuration, tokenizer, chat template, license.

Used by `glm4 quantize` and by the cache that makes a second start fast. See `glm4.checkpoints.packed_format` for the
format.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from glm4.checkpoints.checkpoint import Checkpoint
from glm4.checkpoints.packed_format import PackedInfo
from glm4.checkpoints.packed_writer import PackedWriter, packed_file_nbytes, write_packed_config
from glm4.checkpoints.safetensors import SINGLE_FILE
from glm4.errors import CheckpointError
from glm4.model.precision import Precision
from glm4.tokenizer import Tokenizer
from glm4.tokenizer.hf_tokenizer import ByteLevelBPE
from glm4.tokenizer.saved_table import save_table
from glm4.tokenizer.saving import save_tokenizer

# Files beside the weights of a safetensors checkpoint that our readers may need.
SIDE_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
LEGAL_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "MODEL_LICENSE", "NOTICE")
_MAX_SIDE_BYTES = 256 << 20

Part = tuple[str, NDArray[Any]]


def side_files(checkpoint: Checkpoint) -> list[Path]:
    """The files beside a checkpoint's weights that belong to it. A GGUF file contains them."""
    return _beside(checkpoint, () if checkpoint.kind == "gguf" else SIDE_FILES) + legal_files(checkpoint)


def legal_files(checkpoint: Checkpoint) -> list[Path]:
    """The license and notices beside a checkpoint's weights."""
    return _beside(checkpoint, LEGAL_FILES)


def _beside(checkpoint: Checkpoint, names: Iterable[str]) -> list[Path]:
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    return [folder / name for name in names if (folder / name).is_file()]


def folder_nbytes(checkpoint: Checkpoint, precision: Precision) -> int:
    """Approximate size of the folder on disk."""
    room_for_vocabulary = 32 << 20
    side = sum(file.stat().st_size for file in side_files(checkpoint))
    return packed_file_nbytes(checkpoint.config, precision) + side + room_for_vocabulary


def write_packed_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    precision: Precision,
    parts: Iterable[Part],
    source: str,
) -> None:
    """Fill an empty folder.

    Args:
        parts: (canonical name, packed bytes of a matrix or float32 vector), in the order of `packed_shapes`; a matrix
            may come in several parts.
        source: what it was made from, for the user.

    Raises:
        CheckpointError: a file beside the weights cannot be copied.
    """
    write_text_side(folder, checkpoint, tokenizer)
    if isinstance(tokenizer, ByteLevelBPE):
        save_table(tokenizer, folder)
    with PackedWriter(folder / SINGLE_FILE, checkpoint.config, precision) as writer:
        for name, data in parts:
            writer.write(name, data)
        nbytes, digest = writer.finish()
    variant = checkpoint.variant
    info = PackedInfo(precision, nbytes, digest, variant.name, checkpoint.model_type, source)
    stops = tuple(dict.fromkeys((*checkpoint.config.eos_token_ids, *sorted(tokenizer.eos_ids))))
    write_packed_config(folder, replace(checkpoint.config, eos_token_ids=stops), info)


def write_text_side(folder: Path, checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Tokenizer, chat template, sampling defaults and license of a checkpoint, for a folder of any format.

    Raises:
        CheckpointError: a file cannot be copied.
    """
    for file in side_files(checkpoint):
        if file.stat().st_size > _MAX_SIDE_BYTES:
            raise CheckpointError(f"{file} is larger than {_MAX_SIDE_BYTES >> 20} MiB; it is not copied")
        shutil.copyfile(file, folder / file.name)
    if checkpoint.kind == "gguf":
        save_tokenizer(tokenizer, folder)
        if checkpoint.chat_template is not None:
            (folder / "chat_template.jinja").write_text(checkpoint.chat_template, encoding="utf-8")
        generation = json.dumps(dict(checkpoint.generation_config), indent=2)
        (folder / "generation_config.json").write_text(generation + "\n", encoding="utf-8")

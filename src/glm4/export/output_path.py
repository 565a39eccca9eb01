"""What an export may replace."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from glm4.checkpoints.checkpoint import Checkpoint
from glm4.errors import InvalidRequestError


def check_folder(checkpoint: Checkpoint, folder: Path, written: tuple[str, ...], *, force: bool) -> None:
    """Refuse to overwrite anything without `force`, and with it whatever holds other files than the export writes.

    Args:
        written: patterns of the names that the export writes.

    Raises:
        InvalidRequestError: the folder may not be replaced.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    original, target = checkpoint.path.resolve(), folder.resolve()
    if target == original or target in original.parents:
        raise InvalidRequestError(f"{folder} holds the model to be exported; choose another name", param="output")
    if not folder.is_dir() or folder.is_symlink():
        raise InvalidRequestError(f"{folder} is not a folder and is not replaced; choose another name", param="output")
    others = [entry.name for entry in folder.iterdir() if not any(fnmatchcase(entry.name, one) for one in written)]
    if others:
        raise InvalidRequestError(
            f"{folder} holds {sorted(others)[0]!r}, which this export does not write; it is not replaced even with "
            "--force: choose another name",
            param="output",
        )
    if not force and any(folder.iterdir()):
        raise InvalidRequestError(f"{folder} exists; --force replaces it", param="output")


def check_gguf_file(checkpoint: Checkpoint, file: Path, *, force: bool) -> None:
    """Refuse to overwrite anything without `force`, and with it anything that is not a plain file, or the source."""
    if file.suffix != ".gguf":
        raise InvalidRequestError(f"{file}: the name of a GGUF file ends with .gguf", param="output")
    if not file.exists() and not file.is_symlink():
        return
    if file.resolve() == checkpoint.path.resolve():
        raise InvalidRequestError(f"{file} is the model to be exported; choose another name", param="output")
    if file.is_symlink() or not file.is_file():
        raise InvalidRequestError(
            f"{file} is not a plain file and is not replaced; choose another name", param="output"
        )
    if not force:
        raise InvalidRequestError(f"{file} exists; --force replaces it", param="output")

"""A GGUF model in several files, named and numbered as llama.cpp and this package's reader expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glm4.checkpoints.gguf_writer import PlannedTensor, Value, file_nbytes, header_bytes
from glm4.errors import InvalidRequestError

MOST_FILES = 256  # they are open together


@dataclass(frozen=True)
class PlannedFile:
    """One file: its path, its header, and the tensors behind it."""

    path: Path
    header: bytes
    tensors: list[PlannedTensor]

    @property
    def nbytes(self) -> int:
        """Size of the whole file."""
        return file_nbytes(self.header, self.tensors)


def planned_files(
    path: Path, metadata: Mapping[str, Value], tensors: list[PlannedTensor], limit: int | None
) -> list[PlannedFile]:
    """The files of a model: `path` itself if the model fits, else NAME-00001-of-0000N.gguf beside it.

    The first one has the metadata. Tensors are not divided.

    Args:
        limit: bytes of the largest file, None for one file of any size.

    Raises:
        InvalidRequestError: the limit is too small.
    """
    whole = PlannedFile(path, header_bytes(metadata, tensors), tensors)
    if limit is None or whole.nbytes <= limit:
        return [whole]
    groups: list[list[PlannedTensor]] = [[]]
    for tensor in tensors:
        if groups[-1] and _file(path, len(groups) - 1, 1, metadata, [*groups[-1], tensor], 0).nbytes > limit:
            groups.append([])
        groups[-1].append(tensor)
    files = [_file(path, at, len(groups), metadata, group, len(tensors)) for at, group in enumerate(groups)]
    largest = max(file.nbytes for file in files)
    if largest > limit:
        raise InvalidRequestError(
            f"a file holds whole tensors, and the largest of them takes one of {largest:,} bytes; files of "
            f"{limit:,} bytes are too small",
            param="shard_bytes",
        )
    if len(files) > MOST_FILES:
        raise InvalidRequestError(
            f"files of {limit:,} bytes would be {len(files)} files; at most {MOST_FILES} are written",
            param="shard_bytes",
        )
    return files


def _file(
    path: Path, at: int, count: int, metadata: Mapping[str, Value], tensors: Sequence[PlannedTensor], total: int
) -> PlannedFile:
    split: dict[str, Value] = {
        "split.no": np.uint16(at),
        "split.count": np.uint16(count),
        "split.tensors.count": np.int32(total),
    }
    name = f"{path.stem}-{at + 1:05}-of-{count:05}.gguf"
    header = header_bytes({**metadata, **split} if at == 0 else split, tensors)
    return PlannedFile(path.with_name(name), header, list(tensors))

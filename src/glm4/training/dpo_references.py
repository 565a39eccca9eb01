"""Log-probabilities of preferences under the model before training, computed once and kept in the run's folder.

Methods that change the weights themselves need them: once the first step is done, or a run is resumed, the model they
came from is gone. The file names the pairs and the model it is about, and is used for nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from glm4.errors import InvalidRequestError
from glm4.system.atomic_file import atomic_file
from glm4.training.data.examples import TokenizedPreference

Logprobs = Callable[[Sequence[TokenizedPreference]], torch.Tensor]
Row = tuple[float, float]


def with_references(
    pairs: Sequence[TokenizedPreference],
    logprobs: Logprobs,
    path: Path,
    *,
    model: str,
    batch_size: int = 1,
    progress: Callable[[float, float], None] | None = None,
) -> Sequence[TokenizedPreference]:
    """The pairs with the reference's log-probabilities, from `path`, or computed and written there.

    With several processes each computes a share, and the first one writes.

    Args:
        logprobs: of some pairs → [2B] by the model as it was before training, the better answers first.
        model: the name it was loaded by.
        progress: told how many of how many pairs (of this process) are done.

    Raises:
        InvalidRequestError: the model gives an answer no finite log-probability.
    """
    state = PartialState()
    digest = fingerprint(pairs, model)
    # One process looks, so that all do the same even where they do not share a disk.
    found = [_read(path, digest, len(pairs)) if state.is_main_process else None]
    broadcast_object_list(found)
    rows = found[0]
    if rows is None:
        mine = range(state.process_index, len(pairs), state.num_processes)
        rows = dict(gather_object(_compute(pairs, mine, logprobs, batch_size, progress)))
        if state.is_main_process:
            _write(path, digest, [rows[index] for index in range(len(pairs))])
    return WithReferences(pairs, rows)


class WithReferences(Sequence[TokenizedPreference]):
    """Pairs, each with its row.

    Attributes:
        lengths: tokens of the longer answer of each.
    """

    def __init__(self, pairs: Sequence[TokenizedPreference], rows: Mapping[int, Row]) -> None:
        self._pairs = pairs
        self._rows = rows
        self.lengths: Sequence[int] = pairs.lengths if hasattr(pairs, "lengths") else [len(pair) for pair in pairs]

    def __len__(self) -> int:
        return len(self._pairs)

    @overload
    def __getitem__(self, index: int) -> TokenizedPreference: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TokenizedPreference]: ...
    def __getitem__(self, index: int | slice) -> TokenizedPreference | Sequence[TokenizedPreference]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return replace(self._pairs[index], references=self._rows[index])


def fingerprint(pairs: Sequence[TokenizedPreference], model: str) -> str:
    """Names a model and the ids, masks and pictures of all pairs, in their order."""
    digest = hashlib.sha256(model.encode())
    for index in range(len(pairs)):
        for answer in (pairs[index].chosen, pairs[index].rejected):
            digest.update(len(answer).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(answer.ids, dtype=np.int32).tobytes())
            digest.update(np.packbits(answer.mask).tobytes())
            for picture in answer.images:
                digest.update(hashlib.sha256(picture).digest())
    return digest.hexdigest()


def _compute(
    pairs: Sequence[TokenizedPreference],
    indices: range,
    logprobs: Logprobs,
    batch_size: int,
    progress: Callable[[float, float], None] | None,
) -> list[tuple[int, Row]]:
    found: list[tuple[int, Row]] = []
    for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]
        some = [pairs[index] for index in batch]
        with torch.no_grad():
            chosen, rejected = logprobs(some).float().cpu().reshape(2, len(some))
        for pair, index, row in zip(some, batch, zip(chosen.tolist(), rejected.tolist(), strict=True), strict=True):
            if not np.isfinite(row).all():
                raise InvalidRequestError(
                    f"{pair.chosen.place or f'pair {index + 1}'}: the model's log-probability of an answer is not"
                    " finite; train in bf16 or fp32, and check the checkpoint with `glm4 chat`"
                )
            found.append((index, row))
        if progress is not None:
            progress(len(found), len(indices))
    return found


def _read(path: Path, digest: str, count: int) -> dict[int, Row] | None:
    """The rows of a file, if it is whole and about these pairs."""
    try:
        stored = json.loads(path.read_bytes())
        if stored["pairs"] != digest or len(stored["references"]) != count:
            return None
        return {index: (float(row[0]), float(row[1])) for index, row in enumerate(stored["references"])}
    except (OSError, ValueError, TypeError, KeyError, IndexError):
        return None


def _write(path: Path, digest: str, rows: list[Row]) -> None:
    with atomic_file(path) as file:
        file.write(json.dumps({"pairs": digest, "references": rows}).encode())

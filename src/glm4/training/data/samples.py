"""`SampleSet`: encoded samples in few bytes, so that a million of them fit into memory."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from glm4.chat.chat_request import ChatRequest, Tool
from glm4.chat.pictures import images_of
from glm4.errors import TrainingDataError
from glm4.training.data.examples import TokenizedExample, TokenizedPreference
from glm4.training.data.formats.row_values import LocalImage

SampleT = TypeVar("SampleT", bound=TokenizedExample | TokenizedPreference)
_Picture = str | bytes


class SampleStore:
    """Samples one behind the other: 4 bytes per id, a bit per mask, places as numbers. Pictures stay in their files."""

    def __init__(self) -> None:
        self._ids = array("i")
        self._masks = bytearray()
        self._id_ends = array("q", [0])
        self._mask_ends = array("q", [0])
        self._files: list[str] = []
        self._places = array("q")  # pairs: number of the file, of the row
        self._cut = array("i")  # pairs: tokens, and those that would have carried loss
        self._pictures: dict[int, tuple[tuple[_Picture, ...], tuple[int, ...]]] = {}
        self._tools: dict[int, tuple[Tool, ...]] = {}
        self._toolboxes: dict[str, tuple[Tool, ...]] = {}  # by their JSON: most rows offer the same ones

    def __len__(self) -> int:
        return len(self._id_ends) - 1

    def append(self, sample: TokenizedExample, request: ChatRequest | None = None) -> None:
        """Keep a sample; `request` has its pictures, if there are any."""
        self._ids.frombytes(np.ascontiguousarray(sample.ids, np.int32).tobytes())
        self._masks += np.packbits(sample.mask).tobytes()
        self._id_ends.append(len(self._ids))
        self._mask_ends.append(len(self._masks))
        file, _, number = sample.place.rpartition(":")
        if not self._files or self._files[-1] != file:
            self._files.append(file)
        self._places.extend((len(self._files) - 1, int(number) if number.isdecimal() else 0))
        self._cut.extend((sample.num_cut, sample.num_cut_targets))
        if sample.tools:
            self._tools[len(self) - 1] = self._toolboxes.setdefault(json.dumps(sample.tools), sample.tools)
        if sample.images:
            parts = [] if request is None else images_of(request.messages)
            paths = [part.path if isinstance(part, LocalImage) else "" for part in parts]
            kept = tuple(
                p or data for p, data in zip([*paths, *[""] * len(sample.images)], sample.images, strict=False)
            )
            self._pictures[len(self) - 1] = (kept, sample.image_starts)

    def get(self, index: int) -> TokenizedExample:
        """The sample with this number; its arrays are copies."""
        start, end = self._id_ends[index], self._id_ends[index + 1]
        # A view would keep the array from growing.
        ids = np.array(memoryview(self._ids)[start:end], np.int32)
        bits = np.frombuffer(bytes(self._masks[self._mask_ends[index] : self._mask_ends[index + 1]]), np.uint8)
        mask = np.unpackbits(bits, count=end - start).astype(np.bool_)
        pictures, starts = self._pictures.get(index, ((), ()))
        return TokenizedExample(
            ids,
            mask,
            f"{self._files[self._places[2 * index]]}:{self._places[2 * index + 1]}",
            self._cut[2 * index],
            self._cut[2 * index + 1],
            tuple(map(_picture, pictures)),
            starts,
            self._tools.get(index, ()),
        )

    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each sample, int32 [samples]."""
        return np.diff(np.array(self._id_ends, np.int64)).astype(np.int32)


def _picture(kept: _Picture) -> bytes:
    if isinstance(kept, bytes):
        return kept
    try:
        return Path(kept).read_bytes()
    except OSError as error:
        raise TrainingDataError(f"the picture {kept} can no longer be read: {error.strerror or error}") from None


class SampleSet(Sequence[SampleT], Generic[SampleT]):
    """Some of a store's samples, or its pairs of a better and a worse one.

    Attributes:
        lengths: tokens of each sample, int32 [len]; of a pair, of the longer one.
    """

    def __init__(self, store: SampleStore, indices: NDArray[np.int64], *, pairs: bool) -> None:
        self._store = store
        self._indices = indices
        self._pairs = pairs
        lengths = store.lengths()
        if pairs:
            lengths = lengths.reshape(-1, 2).max(axis=1)
        self.lengths: NDArray[np.int32] = lengths[indices]

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> SampleT: ...
    @overload
    def __getitem__(self, index: slice) -> SampleSet[SampleT]: ...
    def __getitem__(self, index: int | slice) -> SampleT | SampleSet[SampleT]:
        if isinstance(index, slice):
            return SampleSet(self._store, self._indices[index], pairs=self._pairs)
        at = int(self._indices[index])  # IndexError ends iteration
        if self._pairs:
            pair = TokenizedPreference(self._store.get(2 * at), self._store.get(2 * at + 1))
            return cast("SampleT", pair)
        return cast("SampleT", self._store.get(at))

    def __iter__(self) -> Iterator[SampleT]:
        return (self[index] for index in range(len(self)))

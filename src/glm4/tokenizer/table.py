"""`VocabularyTable`: a byte-level BPE vocabulary as arrays that are used in place.

Startup needs a few hundred of a vocabulary's 150,000 tokens and merges. Parsing `tokenizer.json` and filling
dictionaries takes as long as the rest of startup; these arrays are read in a few milliseconds and searched.

Layout, little-endian: 8 bytes of magic, the length of the header (uint32), a CRC-32 of all that follows (uint32), the
header (JSON, padded with spaces to a multiple of 8), then the arrays of `_ARRAYS` in that order, padded the same way.
"""

from __future__ import annotations

import json
import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm4.errors import TokenizerError

MAGIC = b"glm4tok1"
MAX_NBYTES = 512 << 20
_PREAMBLE = struct.Struct("<8sII")
_ARRAYS = {
    "merge_keys": "<u8",
    "merge_ranks": "<u4",
    "merged_ids": "<u4",
    "piece_starts": "<u4",
    "pieces": "<u1",
    "sorted_ids": "<u4",
    "characters": "<u4",
    "character_ids": "<u4",
}

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class VocabularyTable(Mapping[int, str]):
    """id → piece in the byte-level alphabet, and what merging needs.

    Attributes:
        settings: JSON that the writer stores along with the arrays.
        merge_keys: uint64, ascending: left id << 32 | right id of every merge.
        merge_ranks, merged_ids: uint32: each merge's position in the order of merges, and the id it produces.
        piece_starts: uint32, one more than the number of ids: where in `pieces` (UTF-8) each id's piece begins. An id
            without a piece has an empty one.
        sorted_ids: uint32: the ids that have a piece, in byte order of their pieces.
        characters, character_ids: uint32: code points that are a piece by themselves, and its id.
    """

    settings: Mapping[str, Any]
    merge_keys: Array
    merge_ranks: Array
    merged_ids: Array
    piece_starts: Array
    pieces: Array
    sorted_ids: Array
    characters: Array
    character_ids: Array
    _views: dict[str, memoryview] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        # Reading single elements of an array is several times faster through a memoryview.
        self._views.update({name: memoryview(getattr(self, name)) for name in _ARRAYS if name != "characters"})
        self._views["pieces"] = memoryview(self.pieces.tobytes())

    # id → piece

    def __getitem__(self, token_id: int) -> str:
        if not self._has(token_id):
            raise KeyError(token_id)
        return str(self._piece(token_id), "utf-8")

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids.tolist())

    def __len__(self) -> int:
        return len(self.sorted_ids)

    def _has(self, token_id: int) -> bool:
        starts = self._views["piece_starts"]
        return 0 <= token_id < len(starts) - 1 and starts[token_id] < starts[token_id + 1]

    def _piece(self, token_id: int) -> memoryview:
        starts = self._views["piece_starts"]
        return self._views["pieces"][starts[token_id] : starts[token_id + 1]]

    @property
    def ids(self) -> NDArray[np.int64]:
        """The ids that have a piece, ascending."""
        return np.flatnonzero(np.diff(self.piece_starts))

    # Searching

    def merge(self, left: int, right: int) -> tuple[int, int] | None:
        """(rank, merged id) of two neighbors; None if they do not merge."""
        keys, key = self._views["merge_keys"], left << 32 | right
        at = bisect_left(keys, key)
        if at == len(keys) or keys[at] != key:
            return None
        return self._views["merge_ranks"][at], self._views["merged_ids"][at]

    def find(self, piece: str) -> int | None:
        """The id of a piece."""
        ids, wanted = self._views["sorted_ids"], piece.encode()
        at = bisect_left(ids, wanted, key=lambda token_id: bytes(self._piece(token_id)))
        return ids[at] if at < len(ids) and self._piece(ids[at]) == wanted else None

    def alphabet(self) -> dict[str, int]:
        """character → id for the single-character pieces."""
        return dict(zip(map(chr, self.characters.tolist()), self.character_ids.tolist(), strict=True))

    # On disk

    def to_bytes(self) -> bytes:
        """The file's content."""
        counts = {name: int(getattr(self, name).size) for name in _ARRAYS}
        body = _padded(json.dumps({"settings": self.settings, "counts": counts}, ensure_ascii=True).encode(), b" ")
        header = len(body)
        body += b"".join(_padded(getattr(self, name).astype(kind).tobytes()) for name, kind in _ARRAYS.items())
        return _PREAMBLE.pack(MAGIC, header, zlib.crc32(body)) + body

    @classmethod
    def from_bytes(cls, data: bytes) -> VocabularyTable:
        """Read what `to_bytes` wrote. The file may be untrusted; a table that passes the checks is safe to search.

        Raises:
            TokenizerError: it is damaged or contradicts itself.
        """
        try:
            return cls._checked(data)
        except (ValueError, TypeError, KeyError, struct.error, RecursionError) as error:
            raise TokenizerError(f"the vocabulary table is damaged ({error})") from None

    @classmethod
    def _checked(cls, data: bytes) -> VocabularyTable:
        magic, header, crc = _PREAMBLE.unpack_from(data)
        at = _PREAMBLE.size + header
        if magic != MAGIC or header % 8 or at > len(data) or zlib.crc32(memoryview(data)[_PREAMBLE.size :]) != crc:
            raise ValueError("checksum")
        stated = json.loads(data[_PREAMBLE.size : at])
        arrays = {}
        for name, kind in _ARRAYS.items():
            count = stated["counts"][name]
            if type(count) is not int or not 0 <= count <= MAX_NBYTES:
                raise ValueError(name)
            stored = np.frombuffer(data, kind, count, at)  # raises if it extends beyond the end
            arrays[name] = stored.astype(stored.dtype.newbyteorder("="), copy=False)
            at += -(-stored.nbytes // 8) * 8
        if at != len(data) or not isinstance(stated["settings"], dict):
            raise ValueError("size")
        table = cls(stated["settings"], **arrays)
        table._check()
        return table

    def _check(self) -> None:
        starts, text = self.piece_starts, self.pieces
        if not starts.size or starts[0] or starts[-1] != text.size or (starts[1:] < starts[:-1]).any():
            raise ValueError("piece_starts")
        text.tobytes().decode("utf-8")
        named = starts[1:] > starts[:-1]
        if (text[starts[:-1][named]] & 0xC0 == 0x80).any():  # a piece that begins within a character
            raise ValueError("pieces")
        for ids in (self.merged_ids, self.sorted_ids, self.character_ids):
            if ids.size and (ids.max() >= named.size or not named[ids].all()):
                raise ValueError("an id without a piece")
        if len(self.sorted_ids) != np.count_nonzero(named):
            raise ValueError("sorted_ids")
        if not self.merge_keys.size == self.merge_ranks.size == self.merged_ids.size:
            raise ValueError("merges")
        if (self.merge_keys[1:] <= self.merge_keys[:-1]).any():
            raise ValueError("merge_keys")
        if self.characters.size != self.character_ids.size or (self.characters > 0x10FFFF).any():
            raise ValueError("characters")


def _padded(data: bytes, filler: bytes = b"\0") -> bytes:
    return data + filler * (-len(data) % 8)


def make_table(
    settings: Mapping[str, Any], vocab: Mapping[str, int], merges: Iterable[Sequence[str]]
) -> VocabularyTable:
    """The table of a BPE model.

    Args:
        vocab: piece → id; no piece is empty.
        merges: (left, right) pieces, earliest first; of duplicates the last one counts.

    Raises:
        KeyError: a merge of or into a piece that is not in the vocabulary.
    """
    written = {token_id: piece.encode() for piece, token_id in vocab.items()}
    lengths = [len(written.get(token_id, b"")) for token_id in range(max(written, default=-1) + 1)]
    ranked = {
        vocab[left] << 32 | vocab[right]: (rank, vocab[left + right]) for rank, (left, right) in enumerate(merges)
    }
    keys = sorted(ranked)
    characters = sorted(piece for piece in vocab if len(piece) == 1)
    return VocabularyTable(
        settings,
        merge_keys=np.array(keys, np.uint64),
        merge_ranks=np.array([ranked[key][0] for key in keys], np.uint32),
        merged_ids=np.array([ranked[key][1] for key in keys], np.uint32),
        piece_starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint32),
        pieces=np.frombuffer(b"".join(written[token_id] for token_id in sorted(written)), np.uint8),
        sorted_ids=np.array(sorted(written, key=written.__getitem__), np.uint32),
        characters=np.array([ord(character) for character in characters], np.uint32),
        character_ids=np.array([vocab[character] for character in characters], np.uint32),
    )

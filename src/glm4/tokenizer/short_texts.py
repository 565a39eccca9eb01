"""Byte-level BPE of short texts in Python, so startup does not wait for the library's tables.

The library takes about 0.3 s to build them for 150,000 merges, a large part of the time from command to first token; a
one-line question is encoded here in a millisecond. The ids are the same: the library's own normalizer and pre-tokenizer
split the text, and pieces are merged by the same rule (earliest merge first; among equals, the leftmost).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from glm4.tokenizer.library_errors import library_errors
from glm4.tokenizer.table import VocabularyTable

if TYPE_CHECKING:
    import tokenizers

# Characters encoded here before the tables pay off. A single piece of this length takes a tenth of a second.
CHARACTERS = 1024
_NEVER = (1 << 32, 0)


class ShortTexts:
    """Encodes like a BPE model without options (except `ignore_merges`).

    Args:
        shell: creates the tokenizer that supplies the normalizer and pre-tokenizer.
        ignore_merges: a whole word in the vocabulary is used as is.
    """

    def __init__(
        self, shell: Callable[[], tokenizers.Tokenizer], table: VocabularyTable, *, ignore_merges: bool
    ) -> None:
        self._shell = cache(shell)
        self._table = table
        self._alphabet = table.alphabet()
        self._ignore_merges = ignore_merges
        self._merges: dict[tuple[int, int], tuple[int, int]] = {}
        self._room = CHARACTERS

    def takes(self, text: str) -> bool:
        """Whether a text should still be encoded here; counts it if so."""
        if len(text) > self._room:
            return False
        self._room -= len(text)
        return True

    def encode(self, text: str) -> list[int]:
        """Ids of a text.

        Raises:
            TokenizerError: the library refuses the normalizer or pre-tokenizer, or they fail.
        """
        shell = self._shell()
        with library_errors("the tokenizer cannot encode this text"):
            if shell.normalizer is not None:
                text = shell.normalizer.normalize_str(text)
            cut = shell.pre_tokenizer
            pieces = [text] if cut is None else [piece for piece, _ in cut.pre_tokenize_str(text)]
        return [token_id for piece in pieces for token_id in self._ids(piece)]

    def _ids(self, piece: str) -> list[int]:
        whole = self._table.find(piece) if self._ignore_merges else None
        if whole is not None:
            return [whole]
        # A character that is not in the vocabulary yields no token, and its neighbors become adjacent.
        ids = [self._alphabet[character] for character in piece if character in self._alphabet]
        while len(ids) > 1:
            merges = [self._merge(pair) for pair in pairwise(ids)]
            best = min(merges)
            if best == _NEVER:
                break
            at = merges.index(best)
            ids[at : at + 2] = [best[1]]
        return ids

    def _merge(self, pair: tuple[int, int]) -> tuple[int, int]:
        """(rank, merged id) of a pair; cached, because the same pair is looked up at every merge of its word."""
        if pair not in self._merges:
            self._merges[pair] = self._table.merge(*pair) or _NEVER
        return self._merges[pair]

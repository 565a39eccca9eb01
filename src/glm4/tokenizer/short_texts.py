"""Byte-level BPE of short texts in Python, so that a start need not wait for the library's tables.

Building them takes the library some 0.3 s for 150,000 merges, a good part of the time from command to first token; a
question of a line is encoded here in a millisecond. The same ids: the library's own normalizer and pre-tokenizer cut
the text, and pieces are merged by the same rule (the earliest merge first, of equal ones the leftmost).
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

# Characters encoded here before the tables pay. A single piece of so many takes a tenth of a second.
CHARACTERS = 1024
_NEVER = (1 << 32, 0)


class ShortTexts:
    """Encodes as a BPE model without options (`ignore_merges` aside) does.

    Args:
        shell: makes what supplies normalizer and pre-tokenizer.
        ignore_merges: a whole word of the vocabulary is taken as it is.
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
        # A character that the vocabulary lacks leaves no token, and its neighbours meet.
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
        """(rank, merged id) of a pair; the same pair is asked for at every merge of its word."""
        if pair not in self._merges:
            self._merges[pair] = self._table.merge(*pair) or _NEVER
        return self._merges[pair]

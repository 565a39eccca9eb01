"""Byte-level BPE of short texts in Python, so that a start need not wait for the library's tables.

Building them takes the library some 0.3 s for 150,000 merges, a good part of the time from command to first token; a
question of a line is encoded here in a millisecond. The same ids: the library's own normalizer and pre-tokenizer cut
the text, and pieces are merged by the same rule (the earliest merge first, of equal ones the leftmost).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import tokenizers

# Characters encoded here before the tables pay. A single piece of so many takes a tenth of a second.
CHARACTERS = 1024


class ShortTexts:
    """Encodes as a BPE model without options does.

    Args:
        shell: supplies normalizer and pre-tokenizer.
        vocab: piece → id.
        merges: "left right", earliest first.
    """

    def __init__(self, shell: tokenizers.Tokenizer, vocab: Mapping[str, int], merges: Sequence[str]) -> None:
        self._shell = shell
        self._vocab = vocab
        self._ranks = dict(zip(merges, range(len(merges)), strict=True))
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
            KeyError: a merge makes a piece that the vocabulary lacks.
        """
        if self._shell.normalizer is not None:
            text = self._shell.normalizer.normalize_str(text)
        cut = self._shell.pre_tokenizer
        pieces = [text] if cut is None else [piece for piece, _ in cut.pre_tokenize_str(text)]
        return [self._vocab[part] for piece in pieces for part in self._merged(piece)]

    def _merged(self, piece: str) -> list[str]:
        # A character that the vocabulary lacks leaves no token, and its neighbours meet.
        parts = [character for character in piece if character in self._vocab]
        never = len(self._ranks)
        while len(parts) > 1:
            ranks = [self._ranks.get(f"{left} {right}", never) for left, right in pairwise(parts)]
            best = min(ranks)
            if best == never:
                break
            at = ranks.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return parts

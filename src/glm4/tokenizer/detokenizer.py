"""Token ids to text, one at a time, never a partial character."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping


class Detokenizer:
    """Incremental decoder of one sequence.

    The joined results of `push` and `flush` equal `Tokenizer.decode` of the same ids: bytes that are not UTF-8 become
    U+FFFD exactly as with Python's "replace" handler.

    Args:
        token_bytes: id → its bytes (raises TokenizerError for an id without a token).
        hidden: ids that produce no text.
        shown_as: ids written as the given text instead of their own, whether hidden or not.
    """

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        *,
        hidden: frozenset[int] = frozenset(),
        shown_as: Mapping[int, str] | None = None,
    ) -> None:
        self._token_bytes = token_bytes
        self._hidden = hidden
        self._shown_as = dict(shown_as or {})
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Take one id; returns the text that is now certain, possibly none."""
        return self._decoder.decode(self.bytes_of(token_id))

    def bytes_of(self, token_id: int) -> bytes:
        """What an id adds to the text: none for a hidden one."""
        if token_id in self._shown_as:
            return self._shown_as[token_id].encode()
        return b"" if token_id in self._hidden else self._token_bytes(token_id)

    def flush(self) -> str:
        """The rest at the end of the sequence; an unfinished character becomes U+FFFD. Resets for a new sequence."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text

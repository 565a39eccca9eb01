"""Log-probabilities of tokens, as backends compute them and as answers carry them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities at one position: the token's own, its rank (1 = most likely), and the most likely ones.

    The rank is None if the backend does not know it.
    """

    token_id: int
    logprob: float
    rank: int | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class TextToken:
    """A token's share of the visible text.

    The shares of a text, joined, are the text in UTF-8. Bytes that never became a character are U+FFFD there, as in the
    text, and a line break that a parser put between two parts of an answer belongs to the token before the second part.

    Attributes:
        text: the bytes of the visible text that the token wrote; at least one.
    """

    logprobs: TokenLogprobs
    text: bytes

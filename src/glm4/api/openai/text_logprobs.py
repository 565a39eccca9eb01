"""The `logprobs` object of a text choice: tokens by name, and where in the choice's text they stand."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glm4.api.openai.request import ResponseOptions
from glm4.errors import TokenizerError
from glm4.logprobs import TokenLogprobs

if TYPE_CHECKING:
    from glm4.tokenizer import Tokenizer


def token_bytes(token_id: int, tokenizer: Tokenizer) -> bytes:
    """The bytes of a token; empty for a vocabulary row without a token."""
    try:
        return tokenizer.token_bytes(token_id)
    except TokenizerError:
        return b""  # a row without a token may be among the most likely, with probability zero


def finite(logprob: float) -> float:
    """At least -9999: JSON cannot represent infinity, and OpenAI writes -9999 for probability zero."""
    return max(logprob, -9999.0)


def token_name(token_id: int, tokenizer: Tokenizer, options: ResponseOptions) -> str:
    """A token's text. One that is not text is named by its bytes (`bytes:\\xe4\\xb9`), so that none collide."""
    raw = b"" if options.tokens_as_ids else token_bytes(token_id, tokenizer)
    if not raw:
        return f"token_id:{token_id}"
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class TextOffsets:
    """Where tokens begin in a text, in characters. One that begins inside a character begins where that does.

    Args:
        start: characters before the first token.
    """

    def __init__(self, start: int = 0) -> None:
        self._length = start
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def next(self, written: bytes) -> int:
        """The offset of the next token, which adds these bytes to the text."""
        self._length += len(self._decoder.decode(written[:1]))
        # Otherwise the token's first byte belongs to the last character.
        inside = self._decoder.getstate()[0] or not written
        offset = self._length if inside else self._length - 1
        self._length += len(self._decoder.decode(written[1:]))
        return offset


class ChoiceLogprobs:
    """Collects the `logprobs` object of one choice, at once or as a stream brings its tokens.

    Args:
        prompt: the echoed prompt; "" for none.
        skip_special_tokens: special tokens add nothing to the text.
    """

    def __init__(
        self, prompt: str, tokenizer: Tokenizer, options: ResponseOptions, *, skip_special_tokens: bool = True
    ) -> None:
        self._prompt = prompt
        self._tokenizer = tokenizer
        self._options = options
        self._hidden = frozenset(tokenizer.special_tokens.values()) if skip_special_tokens else frozenset[int]()
        self._offsets = TextOffsets(len(prompt))
        self._waiting: list[tuple[int, TokenLogprobs | None, int]] = []

    def add_prompt(self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs | None]) -> None:
        """The echoed prompt's tokens; the first one of all has no log-probability (None)."""
        offsets = TextOffsets()
        for token, at in zip(ids, logprobs, strict=True):
            # What the tokenizer normalized may have another length than what was sent.
            offset = min(offsets.next(token_bytes(token, self._tokenizer)), len(self._prompt))
            self._waiting.append((token, at, offset))

    def add(self, logprobs: Sequence[TokenLogprobs]) -> None:
        """Generated tokens."""
        for at in logprobs:
            written = b"" if at.token_id in self._hidden else token_bytes(at.token_id, self._tokenizer)
            self._waiting.append((at.token_id, at, self._offsets.next(written)))

    @property
    def num_waiting(self) -> int:
        """Tokens that `take` has not given yet."""
        return len(self._waiting)

    def take(self, length: int, *, final: bool) -> dict[str, list[Any]]:
        """The object for the tokens whose place is certain.

        Tokens of what may become a stop string wait: those of one are at the end of the text.

        Args:
            length: of the choice's text so far.
            final: the text is complete.
        """
        ready = [one for one in self._waiting if final or one[2] <= length]
        self._waiting = self._waiting[len(ready) :]
        return {
            "tokens": [self._name(token) for token, _, _ in ready],
            "token_logprobs": [None if at is None else finite(at.logprob) for _, at, _ in ready],
            # The token itself is always listed, even if it is not among the most likely.
            "top_logprobs": [
                None
                if at is None
                else {self._name(one): finite(logprob) for one, logprob in ((token, at.logprob), *at.top)}
                for token, at, _ in ready
            ],
            "text_offset": [min(offset, length) for _, _, offset in ready],
        }

    def _name(self, token: int) -> str:
        return token_name(token, self._tokenizer, self._options)

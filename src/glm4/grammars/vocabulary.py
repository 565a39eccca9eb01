"""`GrammarVocabulary`: compiles grammars for one vocabulary with llguidance, which is loaded with the first grammar."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from glm4.errors import InvalidRequestError
from glm4.grammars.matcher import NOTHING_FITS, TOO_COMPLEX, Grammar, panics_as, reason
from glm4.grammars.trial import MAX_LEXER_STATES
from glm4.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class GrammarVocabulary:
    """A vocabulary as the grammar library sees it: text is bytes, and only canonical tokens are forced. Thread-safe.

    Args:
        tokenizer: the checkpoint's.
        vocab_size: rows of the model's vocabulary, including those without a token.
        end_id: the token that ends a text; grammars never name it.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_id: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_id = end_id
        self._making = threading.Lock()
        self._vocabulary: LLTokenizer | None = None

    def compile(self, text: str, param: str, what: str, own_ends: frozenset[int] = frozenset()) -> Grammar:
        """Compile a grammar that is known to be harmless.

        Args:
            text: the library's description, JSON.
            param, what: the field at fault and its name in an error.
            own_ends: see `TokenConstraint`.

        Raises:
            InvalidRequestError: it cannot be compiled, or no text fits it.
        """
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(verbose_errors=False, max_lexer_states=MAX_LEXER_STATES)
        vocabulary = self._library_tokenizer()
        with panics_as(InvalidRequestError(f"{what}: {TOO_COMPLEX}", param=param)):
            matcher = LLMatcher(vocabulary, text, log_level=0, limits=limits)
            if not matcher.is_error():
                matcher.compute_bitmask()  # the first mask is the most expensive; copies of the matcher reuse it
            # The mask after the tokens forced at the start shows whether any text fits at all.
            probe = matcher.deep_copy()
            forced = probe.compute_ff_tokens()
            probe.try_consume_tokens(forced)
            if not probe.is_error() and not probe.is_stopped():
                probe.compute_bitmask()
        if probe.is_error():
            raise InvalidRequestError(f"{what}: {reason(probe.get_error())}", param=param)
        if not self._usable[forced].all() or (probe.is_stopped() and not probe.is_accepting()):
            raise InvalidRequestError(f"{what}: {NOTHING_FITS}", param=param)
        return Grammar(text, self._end_id, matcher, self._usable, forced, probe, own_ends)

    @property
    def described(self) -> tuple[list[bytes], list[int], int]:
        """The vocabulary: bytes of each id, special ids, and the id that ends a text."""
        unnamed = set(self._tokenizer.unnamed_ids(self._vocab_size).tolist())
        tokens = [b"" if i in unnamed else self._tokenizer.token_bytes(i) for i in range(self._vocab_size)]
        return tokens, sorted(token.id for token in self._tokenizer.added_tokens.values()), self._end_id

    @cached_property
    def _usable(self) -> NDArray[np.bool_]:
        """Ids allowed in a text: bool [vocab_size]. Grammars may name others: rows without a token, the end token."""
        usable = np.ones(self._vocab_size, np.bool_)
        usable[self._tokenizer.unnamed_ids(self._vocab_size)] = False
        usable[self._end_id] = False
        return usable

    def _library_tokenizer(self) -> LLTokenizer:
        """The vocabulary in the library's form; built once, in a second or less for 150,000 tokens."""
        from llguidance import LLTokenizer, TokenizerWrapper

        with self._making:
            if self._vocabulary is None:
                self._tokenizer.build()  # not in a step, where what a grammar forces is encoded
                self._vocabulary = LLTokenizer(TokenizerWrapper(_Vocabulary(self._tokenizer, *self.described)))
            return self._vocabulary


class _Vocabulary:
    """The tokenizer interface the library expects: the bytes of every id, and the canonical ids of bytes."""

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], special: list[int], end_id: int) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special, end_id
        self.bos_token_id = None
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        ids = self._tokenizer.encode(text.decode("utf-8", "replace"))
        if b"".join(map(self.tokens.__getitem__, ids)) == text:
            return ids
        # A tokenizer that normalizes would spell something other than the grammar's text.
        return self._longest_first(text)

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {piece: i for i, piece in enumerate(self.tokens) if piece and i not in special}

    def _longest_first(self, text: bytes) -> list[int]:
        ids: list[int] = []
        at = 0
        while at < len(text):
            size = next((n for n in range(min(32, len(text) - at), 0, -1) if text[at : at + n] in self._ids), 0)
            if not size:
                break  # the vocabulary cannot encode the rest
            ids.append(self._ids[text[at : at + size]])
            at += size
        return ids

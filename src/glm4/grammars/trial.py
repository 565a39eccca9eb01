"""What a helper process does with a grammar before this one compiles it; see `grammar_guard.py`.

It has the model's vocabulary, so that it takes the time and memory that the grammar will take here. It imports the
grammar library and nothing of ours.
"""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLTokenizer

MAX_LEXER_STATES = 50_000
"""Per matcher, one or two kilobytes each; schemas need hundreds, and some expressions add more with every token."""

STEP_SECONDS = 0.25
"""Processor time of one mask and the text forced after it, as in `engine/grammar.py`."""

_STEPS = 24
_vocabularies: list[LLTokenizer] = []


class _Vocabulary:
    """The interface that the library expects. Texts are encoded byte by byte."""

    def __init__(self, tokens: list[bytes], special: list[int], end_id: int) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special, end_id
        self.bos_token_id = None
        self._bytes = {piece: i for i, piece in enumerate(tokens) if len(piece) == 1}

    def __call__(self, text: bytes) -> list[int]:
        return [self._bytes[byte] for byte in (text[i : i + 1] for i in range(len(text))) if byte in self._bytes]


def describe(tokens: list[bytes], special: list[int], end_id: int) -> bytes:
    """The argument of `set_up`."""
    return json.dumps([[token.decode("latin-1") for token in tokens], special, end_id]).encode()


def set_up(argument: bytes) -> bytes:
    """Build the library's tokenizer."""
    from llguidance import LLTokenizer, TokenizerWrapper

    tokens, special, end_id = json.loads(argument)
    vocabulary = _Vocabulary([token.encode("latin-1") for token in tokens], special, end_id)
    _vocabularies[:] = [LLTokenizer(TokenizerWrapper(vocabulary))]
    return b""


def follow(argument: bytes) -> bytes:
    """Compile a grammar and follow it for some random tokens. What the library refuses is not an error here.

    Raises:
        RuntimeError: a step takes too long.
    """
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(verbose_errors=False, max_lexer_states=MAX_LEXER_STATES)
    matcher = LLMatcher(_vocabularies[0], argument.decode(), log_level=0, limits=limits)
    chance = random.Random(0)  # noqa: S311  # reproducible, and no secret
    for step in range(_STEPS):
        if matcher.is_error() or matcher.is_stopped():
            break
        before = time.thread_time()
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        matcher.compute_ff_bytes()
        if time.thread_time() - before > STEP_SECONDS and step:
            raise RuntimeError("slow")
        if matcher.is_error() or not mask:
            break
        number = chance.randrange(mask.bit_length())
        rest = mask >> number or mask  # the first allowed token from a random place on
        token = (rest & -rest).bit_length() - 1 + (number if rest is not mask else 0)
        matcher.try_consume_tokens([token])
    return b""

"""`Tokenizer`: the interface of every vocabulary, whatever file it came from.

There are two kinds of text. Text that we or a chat template wrote may contain special tokens (`allow_special=True`);
any other text may not: its `<|user|>` is just characters, never a role change.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from glm4.errors import PromptTooLongError, TokenizerError
from glm4.system.text_encoding import well_formed
from glm4.tokenizer.detokenizer import Detokenizer

MAX_TOKEN_ID = 1 << 24  # far above any real vocabulary; keeps a malicious file from requesting a huge table
MAX_ADDED_TOKENS = 100_000
LONG_TEXT = 1 << 16
"""Characters from which a text's length is checked before it is encoded."""
ROLES = ("eos_token", "bos_token", "pad_token")


@dataclass(frozen=True)
class AddedToken:
    """A token outside the vocabulary's merges, matched as a whole.

    Attributes:
        content: its spelling.
        id: its id.
        special: a control token (hidden from text) rather than a visible marker such as `<tool_call>`.
        lstrip, rstrip: also swallow the whitespace on that side when matched.
    """

    content: str
    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False


class Tokenizer(ABC):
    """A vocabulary.

    Attributes:
        added_tokens: spelling → token matched as a whole, control tokens and visible markers alike.
        special_tokens: spelling → id of the control tokens only.
        prefix_ids: what a raw prompt (no chat template) starts with, e.g. GLM-4's `[gMASK]<sop>`.
        eos_ids: ids that the files themselves mark as end of text; a dialect adds its own stop ids.
        roles: what the files say is `eos_token`, `bos_token` or `pad_token` → its spelling.
        size: highest id that has a token, plus 1.
    """

    def __init__(
        self,
        *,
        named_ids: Iterable[int] | NDArray[np.int64],
        added_tokens: Iterable[AddedToken],
        prefix_ids: tuple[int, ...] = (),
        eos_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.added_tokens: Mapping[str, AddedToken] = _checked_added_tokens(added_tokens)
        self.special_tokens: Mapping[str, int] = {t.content: t.id for t in self.added_tokens.values() if t.special}
        self._added_by_id = {t.id: t for t in self.added_tokens.values()}
        self._special_ids = frozenset(self.special_tokens.values())
        named = named_ids if isinstance(named_ids, np.ndarray) else np.fromiter(named_ids, dtype=np.int64)
        ids = np.concatenate([named, np.fromiter(self._added_by_id, dtype=np.int64)])
        if ids.size == 0 or ids.min() < 0 or ids.max() >= MAX_TOKEN_ID:
            raise TokenizerError("the vocabulary is empty or has token ids out of range; the tokenizer file is damaged")
        is_named = np.zeros(int(ids.max()) + 1, bool)  # np.unique takes 20 times as long for a real vocabulary
        is_named[ids] = True
        self._named_ids: NDArray[np.int64] = np.flatnonzero(is_named)
        self.size = int(self._named_ids[-1]) + 1
        if not all(type(token_id) is int and 0 <= token_id < self.size for token_id in prefix_ids):
            raise TokenizerError(f"texts are to begin with {prefix_ids!r:.60}, which are no tokens of the vocabulary")
        self.prefix_ids = prefix_ids
        self.eos_ids = eos_ids
        self.roles: Mapping[str, str] = {}
        self._splitter = _splitter(self.added_tokens.values())

    @abstractmethod
    def _encode_plain(self, text: str) -> list[int]:
        """Ids of text in which nothing is special. `text` contains no lone surrogates."""

    @abstractmethod
    def _piece(self, token_id: int) -> bytes | None:
        """Bytes of an ordinary (not added) token; None if there is no such token."""

    def _kept_bytes(self, text: str) -> int:
        """A lower bound of the bytes that the tokens of a plain text stand for; 0 if nothing is known."""
        return 0

    def longest_text(self, most: int) -> int | None:
        """Bytes of UTF-8 beyond which `encode` refuses every text that may have `most` ids; None if there is no limit.

        It takes a while, the first time.
        """
        per_token = 4 * self.max_token_bytes  # `_kept_bytes` is a quarter of a text, or more
        return max(most * per_token, 4 * LONG_TEXT) if self._kept_bytes("a") else None

    @cached_property
    def max_token_bytes(self) -> int:
        """Length of the longest token in bytes. It takes a while, the first time."""
        return max(len(self.token_bytes(int(token_id))) for token_id in self._named_ids)

    def build(self) -> None:  # noqa: B027  (most are built when they are loaded)
        """Do now what takes a while when `encode` is used for more than short texts. Thread-safe."""

    def encode(
        self,
        text: str,
        *,
        allow_special: bool = False,
        restored: Mapping[int, str] | None = None,
        most: int | None = None,
    ) -> list[int]:
        """Text to ids, without any prefix.

        Args:
            allow_special: match added tokens by their spelling. Only for text without user input, or in
                which users' spellings were replaced.
            restored: code point → the text it stands for in the segments between added tokens; substituted once the
                added tokens are found.
            most: ids of use to the caller. A text that certainly has more is refused before it is encoded, which
                would take minutes and gigabytes; one that turns out to have more is encoded all the same.

        Raises:
            PromptTooLongError: the text is so long that it must have more than `most` ids.
        """
        text = well_formed(text)
        if not allow_special:
            self.check_length([text], most)
            return self._encode_plain(text)
        parts = list(self.split_special(text))
        if restored:
            parts = [part if isinstance(part, int) else _restore(part, restored) for part in parts]
        self.check_length([part for part in parts if isinstance(part, str)], most, sum(type(p) is int for p in parts))
        ids: list[int] = []
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._encode_plain(part)
        return ids

    def check_length(self, parts: Sequence[str], most: int | None, others: int = 0) -> None:
        """Refuse texts that together certainly have more ids than can be used, however they are encoded.

        Args:
            most: None takes every length.
            others: ids beside the texts.

        Raises:
            PromptTooLongError: they are too long.
        """
        if most is None or (others <= most and sum(map(len, parts)) <= max(most, LONG_TEXT)):
            return
        least = others + sum(map(self._kept_bytes, parts)) // self.max_token_bytes
        if least > most:
            raise PromptTooLongError(
                f"the text has at least {least} tokens; more than {most} cannot be used here", param="prompt",
                at_least=least,
            )  # fmt: skip

    def encode_prompt(self, text: str, *, allow_special: bool = False, most: int | None = None) -> list[int]:
        """Ids of a raw prompt to continue: `prefix_ids`, then the text, which may spell the prefix out itself.

        Args:
            allow_special: match added tokens in the rest of the text, too.
            most: see `encode`.
        """
        rest = text[len(self.prefix_text) :] if self.has_prefix(text) else text
        return [*self.prefix_ids, *self.encode(rest, allow_special=allow_special, most=most)]

    @cached_property
    def prefix_text(self) -> str:
        """The spelling of `prefix_ids`."""
        return b"".join(map(self.token_bytes, self.prefix_ids)).decode("utf-8", "replace")

    def has_prefix(self, text: str) -> bool:
        """Whether a text begins with the spelling of `prefix_ids`."""
        return text.startswith(self.prefix_text)

    def split_special(self, text: str) -> Iterator[str | int]:
        """Split text at every added token: ordinary segments (never empty) and ids, in order."""
        if self._splitter is None:
            if text:
                yield text
            return
        start = 0
        for match in self._splitter.finditer(text):
            if match.start() > start:
                yield text[start : match.start()]
            yield self.added_tokens[
                match.group().strip() if match.group() not in self.added_tokens else match.group()
            ].id
            start = match.end()
        if start < len(text):
            yield text[start:]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Ids to text; bytes that are not UTF-8 become U+FFFD.

        Raises:
            TokenizerError: an id has no token.
        """
        pieces = (self.token_bytes(i) for i in map(int, ids) if not (skip_special_tokens and i in self._special_ids))
        return b"".join(pieces).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id stands for (for a special token, its spelling).

        Raises:
            TokenizerError: the id has no token.
        """
        added = self._added_by_id.get(token_id)
        if added is not None:
            return added.content.encode()
        piece = self._piece(token_id) if token_id >= 0 else None
        if piece is None:
            raise TokenizerError(f"token id {token_id} has no token; this vocabulary names ids below {self.size}")
        return piece

    def special_id(self, name: str) -> int:
        """Id of an added token by its spelling, e.g. `<|user|>`.

        Raises:
            TokenizerError: this vocabulary has no such token.
        """
        try:
            return self.added_tokens[name].id
        except KeyError:
            raise TokenizerError(f"this vocabulary has no special token {name!r}; is it the right tokenizer?") from None

    def unnamed_ids(self, vocab_size: int) -> NDArray[np.int64]:
        """Rows of a model's vocabulary without a token, ascending. They must never be sampled.

        Args:
            vocab_size: number of rows in the model's embedding.

        Raises:
            TokenizerError: the tokenizer has ids for which the model has no row.
        """
        if self.size > vocab_size:
            raise TokenizerError(
                f"the tokenizer names {self.size} token ids but the model has only {vocab_size} rows; "
                "they do not belong together"
            )
        return np.setdiff1d(np.arange(vocab_size, dtype=np.int64), self._named_ids, assume_unique=True)

    def detokenizer(
        self, *, skip_special_tokens: bool = True, shown_as: Mapping[int, str] | None = None
    ) -> Detokenizer:
        """A new incremental decoder. `shown_as` maps ids to the text shown for them (a dialect's inner markers)."""
        hidden = self._special_ids if skip_special_tokens else frozenset[int]()
        return Detokenizer(self.token_bytes, hidden=hidden, shown_as=shown_as)


def glm_prefix_ids(added_tokens: Iterable[AddedToken]) -> tuple[int, ...]:
    """`[gMASK]<sop>`, which GLM-4 was trained to see before every text, if the vocabulary has both."""
    ids = {t.content: t.id for t in added_tokens}
    return (ids["[gMASK]"], ids["<sop>"]) if "[gMASK]" in ids and "<sop>" in ids else ()


def _checked_added_tokens(tokens: Iterable[AddedToken]) -> dict[str, AddedToken]:
    table: dict[str, AddedToken] = {}
    ids: dict[int, str] = {}
    for token in tokens:
        usable = 0 < len(token.content) <= 256 and well_formed(token.content) == token.content
        if not usable or not 0 <= token.id < MAX_TOKEN_ID:
            raise TokenizerError(f"special token {token.content[:40]!r} with id {token.id} is not usable")
        if table.get(token.content, token).id != token.id or ids.get(token.id, token.content) != token.content:
            raise TokenizerError(f"special token {token.content!r} (id {token.id}) is defined twice, differently")
        table[token.content] = token
        ids[token.id] = token.content
        if len(table) > MAX_ADDED_TOKENS:
            raise TokenizerError(f"more than {MAX_ADDED_TOKENS} special tokens; the tokenizer file is damaged")
    return table


def _splitter(tokens: Iterable[AddedToken]) -> re.Pattern[str] | None:
    """A pattern that finds the leftmost, longest added token."""
    ordered = sorted(tokens, key=lambda t: (-len(t.content), t.content))
    if not ordered:
        return None
    return re.compile(
        "|".join((r"\s*" if t.lstrip else "") + re.escape(t.content) + (r"\s*" if t.rstrip else "") for t in ordered)
    )


def _restore(text: str, restored: Mapping[int, str]) -> str:
    """Put originals in the place of placeholders. `str.translate` would look up every character of a long text."""
    for code, original in restored.items():
        text = text.replace(chr(code), original)
    return text

"""GLM-4's own vocabulary file: `tokenizer.model` in tiktoken's rank format, read by the tiktoken library.

Format: one line per token, `base64(bytes)`, a space, the decimal rank. Source: THUDM/glm-4-9b-chat, tiktoken.
"""

from __future__ import annotations

import base64
import codecs
from collections.abc import Iterable, Sequence
from pathlib import Path

from glm4.errors import TokenizerError
from glm4.tokenizer.base import AddedToken, Tokenizer, glm_prefix_ids

MAX_FILE_BYTES = 64 << 20
MAX_PIECE_CHARS = 200_000  # longer text is encoded in chunks, see _chunks

GLM4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# GLM-4-9B's special tokens in id order; the first one directly follows the last rank. Later vocabularies (GLM-4.5)
# have more than these 14 names, which do not belong to this family's checkpoints.
GLM4_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
)


class TiktokenTokenizer(Tokenizer):
    """Byte-level rank BPE with GLM-4's split pattern.

    Args:
        ranks: token bytes → rank, ranks 0 … n-1 without gaps, all 256 single bytes present.
        added_tokens: None uses GLM-4's own table.
    """

    def __init__(
        self,
        ranks: dict[bytes, int],
        added_tokens: Iterable[AddedToken] | None = None,
        eos_ids: frozenset[int] = frozenset(),
    ) -> None:
        import tiktoken

        pieces = sorted(ranks, key=ranks.__getitem__)
        if added_tokens is None:
            added_tokens = [AddedToken(name, len(pieces) + i) for i, name in enumerate(GLM4_SPECIAL_TOKENS)]
        added = list(added_tokens)
        if any(token.id < len(pieces) for token in added):
            raise TokenizerError("a special token's id collides with the vocabulary of tokenizer.model")
        super().__init__(
            named_ids=range(len(pieces)), added_tokens=added, prefix_ids=glm_prefix_ids(added), eos_ids=eos_ids
        )
        self._pieces = pieces
        self._encoding = tiktoken.Encoding("glm4", pat_str=GLM4_PATTERN, mergeable_ranks=ranks, special_tokens={})

    def _encode_plain(self, text: str) -> list[int]:
        if len(text) <= MAX_PIECE_CHARS:
            return self._encoding.encode_ordinary(text)
        ids: list[int] = []
        for start, end in _chunks(text):
            ids += self._encoding.encode_ordinary(text[start:end])
        return ids

    @property
    def pieces(self) -> Sequence[bytes]:
        """The bytes of every rank."""
        return self._pieces

    def _kept_bytes(self, text: str) -> int:
        return len(text.encode())

    def _piece(self, token_id: int) -> bytes | None:
        return self._pieces[token_id] if token_id < len(self._pieces) else None


def _chunks(text: str) -> Iterable[tuple[int, int]]:
    """Split long text between a line break and a letter, where the split pattern always has a boundary.

    A run of 200,000 characters without such a place is split anyway: this keeps the regular expression engine (which
    overflows its stack on a million spaces) within bounds and changes the ids only around that split.
    """
    start = 0
    while len(text) - start > MAX_PIECE_CHARS:
        end = start + MAX_PIECE_CHARS
        at = text.rfind("\n", start, end)
        while at >= 0 and not text[at + 1].isalpha():
            at = text.rfind("\n", start, at)
        end = at + 1 if at >= 0 else end
        yield start, end
        start = end
    yield start, len(text)


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read and validate a rank file.

    Raises:
        TokenizerError: not a rank file, too large, damaged, or ranks with gaps.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise TokenizerError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB; that is no tiktoken vocabulary")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        if not line:
            continue
        encoded, _, rank = line.partition(b" ")
        try:
            ranks[base64.b64decode(encoded, validate=True)] = int(rank)
        except (ValueError, TypeError):
            raise TokenizerError(
                f"{path}, line {number}: not `base64 rank`; a GLM-4 tokenizer.model in tiktoken format is needed"
            ) from None
    if (
        len(set(ranks.values())) != len(ranks)
        or not ranks
        or max(ranks.values()) != len(ranks) - 1
        or min(ranks.values())
    ):
        raise TokenizerError(f"{path}: ranks must be 0 … n-1, each once; the file is damaged")
    missing = [b for b in range(256) if bytes([b]) not in ranks]
    if missing:
        raise TokenizerError(f"{path}: the single byte {missing[0]:#04x} has no rank; the file is damaged")
    return ranks

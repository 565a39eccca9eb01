"""Vocabularies for tests: GLM-4's real one from the test-only package splintr-rs, and tiny ones made on the spot."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest

from glm4 import hub
from glm4.checkpoints.gguf import GGUFSource
from glm4.errors import ModelNotFoundError
from glm4.tokenizer import Tokenizer, load_tokenizer
from glm4.tokenizer.tiktoken_tokenizer import GLM4_SPECIAL_TOKENS

GLM4_SHA256 = "5a493598071550244b2ee7f26118f3edec2150b9dfa967929a99052ac83fe716"
GLM4_RANKS = 151329

CHATML_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML_MARKERS = ("<tool_call>", "</tool_call>")


@lru_cache(maxsize=1)
def glm4_rank_file() -> bytes:
    """GLM-4's `tokenizer.model`, byte for byte. Skips the test where splintr-rs is not installed."""
    splintr = pytest.importorskip("splintr", reason="splintr-rs (test extra) holds GLM-4's vocabulary")
    source = splintr.Tokenizer.from_pretrained("glm4")
    lines = (base64.b64encode(bytes(source.decode_token_bytes(rank))) + b" %d\n" % rank for rank in range(GLM4_RANKS))
    data = b"".join(lines)
    assert hashlib.sha256(data).hexdigest() == GLM4_SHA256
    return data


@lru_cache(maxsize=1)
def byte_characters() -> tuple[str, ...]:
    """The byte-level alphabet, byte 0 … 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return tuple(chr(b) if b in printable else chr(next(others)) for b in range(256))


def byte_level(text: str) -> str:
    """Text in the byte-level alphabet."""
    return "".join(byte_characters()[b] for b in text.encode())


def tiny_gguf(
    pre: str = "qwen2",
    words: Sequence[str] = ("he", "hel", "lo", " w", "12", "123"),
    specials: Sequence[str] = CHATML_SPECIALS,
    markers: Sequence[str] = CHATML_MARKERS,
    unused: int = 3,
    **changes: Any,
) -> dict[str, Any]:
    """GGUF metadata of a byte-level vocabulary: 256 bytes, a few merged words, special tokens, markers, unused rows."""
    pieces = [*byte_characters()]
    merges = []
    for word in words:
        piece = byte_level(word)
        left = max((p for p in pieces if piece.startswith(p) and p != piece), key=len)
        if piece[len(left) :] not in pieces:
            raise AssertionError(f"{word!r} is not made of two tokens")
        merges.append(f"{left} {piece[len(left) :]}")
        pieces.append(piece)
    types = [1] * len(pieces) + [3] * len(specials) + [4] * len(markers) + [5] * unused
    pads = [f"[PAD{n}]" for n in range(len(types) - unused, len(types))]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*pieces, *specials, *markers, *pads],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": len(pieces) + len(specials) - 1,
    }
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


@lru_cache(maxsize=1)
def glm4_gguf() -> dict[str, Any]:
    """GLM-4's vocabulary as converted GGUF files hold it: every pair that gives a token is a merge, in rank order."""
    pieces = [base64.b64decode(line.split()[0]) for line in glm4_rank_file().splitlines()]
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    alphabet = byte_characters()
    written = ["".join(alphabet[b] for b in piece) for piece in pieces]
    merges: list[str] = []
    for piece in pieces:
        cuts = ((ranks.get(piece[:at]), ranks.get(piece[at:])) for at in range(1, len(piece)))
        pairs = sorted((left, right) for left, right in cuts if left is not None and right is not None)
        merges += [f"{written[left]} {written[right]}" for left, right in pairs]
    pads = [f"[PAD{row}]" for row in range(GLM4_RANKS + len(GLM4_SPECIAL_TOKENS), 151552)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "chatglm-bpe",
        "tokenizer.ggml.tokens": [*written, *GLM4_SPECIAL_TOKENS, *pads],
        "tokenizer.ggml.token_type": [1] * GLM4_RANKS + [3] * len(GLM4_SPECIAL_TOKENS) + [5] * len(pads),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": GLM4_RANKS,
    }


@lru_cache(maxsize=1)
def tiny_chatml() -> Tokenizer:
    """A tiny vocabulary with ChatML's special tokens."""
    return load_tokenizer(None, gguf_metadata=tiny_gguf())


@lru_cache(maxsize=2)
def installed_gguf(name: str) -> dict[str, Any]:
    """Metadata of an installed starter model. Skips the test where it is not installed."""
    try:
        path = hub.resolve(name, allow_download=False)
    except ModelNotFoundError as error:
        pytest.skip(str(error))
    source = GGUFSource(path)
    try:
        return dict(source.metadata)
    finally:
        source.close()

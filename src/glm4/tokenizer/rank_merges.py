"""Between a vocabulary of ranks (tiktoken's format) and one of merges (`tokenizer.json`, GGUF)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from glm4.errors import TokenizerError
from glm4.tokenizer.gguf_vocab import PRE_TOKENIZERS, empty_core
from glm4.tokenizer.hf_tokenizer import ByteLevelBPE, byte_alphabet

# The pre-tokenizer of vocabularies of ranks.
_PRE = PRE_TOKENIZERS["glm4"]


def byte_level_pieces(pieces: Sequence[bytes]) -> dict[int, str]:
    """Rank → piece in the byte-level alphabet."""
    characters = {byte: character for character, byte in byte_alphabet().items()}
    return {rank: "".join(characters[byte] for byte in piece) for rank, piece in enumerate(pieces)}


def rank_merges(pieces: Sequence[bytes], written: Mapping[int, str]) -> Iterable[tuple[str, str]]:
    """A rank vocabulary joins any two neighbors that form a token, lowest rank first: each such pair is a merge."""
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    for piece in pieces:
        cuts = ((ranks.get(piece[:at]), ranks.get(piece[at:])) for at in range(1, len(piece)))
        for left, right in sorted((left, right) for left, right in cuts if left is not None and right is not None):
            yield written[left], written[right]


def rank_definition(pieces: Sequence[bytes]) -> dict[str, Any]:
    """A vocabulary of ranks with GLM-4's pattern as a `tokenizer.json` object without added tokens.

    Whole words are looked up before merges, as tiktoken does.
    """
    written = byte_level_pieces(pieces)
    definition: dict[str, Any] = json.loads(empty_core(_PRE).to_str())
    definition["model"] |= {
        "vocab": {piece: rank for rank, piece in written.items()},
        "merges": [list(pair) for pair in rank_merges(pieces, written)],
        "ignore_merges": _PRE.ignore_merges,
    }
    return definition


def ranks_of(tokenizer: ByteLevelBPE) -> list[bytes]:
    """The pieces by rank of a tokenizer that was made from ranks with GLM-4's pattern.

    Raises:
        TokenizerError: it was not, so a file of ranks would give other ids.
    """
    definition = tokenizer.definition()
    model = definition["model"]
    table = byte_alphabet()
    by_id = {token_id: piece for piece, token_id in model["vocab"].items()}
    refused = TokenizerError("this vocabulary is not one of ranks with GLM-4's way to split texts (tokenizer.model)")
    if sorted(by_id) != list(range(len(by_id))) or any(c not in table for piece in model["vocab"] for c in piece):
        raise refused
    pieces = [bytes(table[character] for character in by_id[rank]) for rank in range(len(by_id))]
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    if len(set(pieces)) != len(pieces) or merges != list(rank_merges(pieces, by_id)):
        raise refused
    if preparation(definition) != preparation(json.loads(empty_core(_PRE).to_str())):
        raise refused
    return pieces


def preparation(definition: Mapping[str, Any]) -> Any:
    """Normalizer and pre-tokenizer of a `tokenizer.json` object, without what only concerns offsets."""
    return _without_offsets([definition.get("normalizer"), definition.get("pre_tokenizer")])


def _without_offsets(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_offsets(value) for key, value in node.items() if key != "trim_offsets"}
    return [_without_offsets(item) for item in node] if isinstance(node, list) else node

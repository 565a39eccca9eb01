"""A tokenizer as GGUF metadata that reads back as the same tokenizer: the counterpart of `gguf_vocab`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from glm4.errors import TokenizerError
from glm4.tokenizer.base import Tokenizer, glm_prefix_ids
from glm4.tokenizer.gguf_vocab import CONTROL, NORMAL, PRE_TOKENIZERS, UNUSED, USER_DEFINED, empty_core
from glm4.tokenizer.hf_tokenizer import ByteLevelBPE
from glm4.tokenizer.rank_merges import byte_level_pieces, preparation, rank_merges
from glm4.tokenizer.tiktoken_tokenizer import TiktokenTokenizer

_STOP_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
MOST_STOPS = len(_STOP_KEYS)


def gguf_vocabulary(tokenizer: Tokenizer, rows: int, pre: str) -> dict[str, Any]:
    """Tokens, their types, merges, and the name of the pre-tokenizer, under full key names.

    Args:
        rows: of the model's embedding; those without a token are marked as unused.
        pre: the pre-tokenizer's name if several names mean the same.

    Raises:
        TokenizerError: GGUF cannot express this vocabulary.
    """
    unnamed = tokenizer.unnamed_ids(rows).tolist()
    stripping = [token.content for token in tokenizer.added_tokens.values() if token.lstrip or token.rstrip]
    if stripping:
        raise TokenizerError(f"the token {stripping[0]!r} swallows the space beside it, which GGUF cannot express")
    pieces, merges, name = _tables(tokenizer, pre)
    if not merges:
        raise TokenizerError("the vocabulary has no merges, and programs that read GGUF insist on some")
    tokens, types = [""] * rows, [UNUSED] * rows
    for row in unnamed:
        tokens[row] = f"[PAD{row}]"
    for row, piece in pieces.items():
        tokens[row], types[row] = piece, NORMAL
    for token in tokenizer.added_tokens.values():
        tokens[token.id], types[token.id] = token.content, CONTROL if token.special else USER_DEFINED
    keys = {"model": "gpt2", "pre": name, "tokens": tokens, "token_type": types, "merges": merges}
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def gguf_special_ids(tokenizer: Tokenizer, stops: Sequence[int], padding: int | None) -> dict[str, Any]:
    """The ids with a role.

    Args:
        stops: ids that end an answer, the end of text first. GGUF has keys for three: programs also stop at the end
            of a turn (eot) and of a message (eom), so GLM-4's `<|user|>` and `<|observation|>` are written as these.
        padding: None if there is none.
    """
    keys: dict[str, Any] = dict(zip(_STOP_KEYS, stops, strict=False))
    if padding is not None:
        keys["padding_token_id"] = padding
    # GLM-4's two tokens before every text are in its template; a list of beginnings cannot be expressed.
    begins = bool(tokenizer.prefix_ids) and not glm_prefix_ids(tokenizer.added_tokens.values())
    if begins:
        keys["bos_token_id"] = tokenizer.prefix_ids[0]
    keys["add_bos_token"] = begins
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def _tables(tokenizer: Tokenizer, pre: str) -> tuple[Mapping[int, str], list[str], str]:
    """(ordinary tokens by id in the byte-level alphabet, merges, name of the pre-tokenizer)."""
    if isinstance(tokenizer, TiktokenTokenizer):
        written = byte_level_pieces(tokenizer.pieces)
        return written, [" ".join(pair) for pair in rank_merges(tokenizer.pieces, written)], pre
    if isinstance(tokenizer, ByteLevelBPE):
        definition = tokenizer.definition()
        model = definition["model"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        return {row: piece for piece, row in model["vocab"].items()}, merges, _pre_name(tokenizer, definition, pre)
    raise TokenizerError(f"a {type(tokenizer).__name__} cannot be written to a GGUF file")


def _pre_name(tokenizer: Tokenizer, definition: Mapping[str, Any], preferred: str) -> str:
    """The name that means how this tokenizer prepares text."""
    wanted = preparation(definition)
    # Whole words first, or merges only: the same for a vocabulary that was made from ranks, as GLM's.
    either = bool(glm_prefix_ids(tokenizer.added_tokens.values()))
    whole_words = bool(definition["model"].get("ignore_merges"))
    for name in (preferred, *PRE_TOKENIZERS):
        known = PRE_TOKENIZERS[name]
        same_words = either or known.ignore_merges == whole_words
        if same_words and preparation(json.loads(empty_core(known).to_str())) == wanted:
            return name
    raise TokenizerError("GGUF has no name for the way in which this tokenizer splits texts into words")

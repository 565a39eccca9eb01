"""Write a tokenizer as a `tokenizer.json` that reads back as the same tokenizer, or as GLM-4's `tokenizer.model`."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glm4.errors import TokenizerError
from glm4.tokenizer.base import AddedToken, Tokenizer
from glm4.tokenizer.hf_tokenizer import ByteLevelBPE
from glm4.tokenizer.rank_merges import rank_definition, ranks_of
from glm4.tokenizer.tiktoken_tokenizer import TiktokenTokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, more: Mapping[str, Any] | None = None) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` into a folder, in Hugging Face's form.

    `tokenizer_config.json` can name one end-of-text token; the others belong in the `eos_token_id` of config.json.

    Args:
        more: further keys of `tokenizer_config.json`; they replace ours.

    Raises:
        TokenizerError: a kind of tokenizer that cannot be written so.
    """
    if isinstance(tokenizer, TiktokenTokenizer):
        definition = rank_definition(tokenizer.pieces)
    elif isinstance(tokenizer, ByteLevelBPE):
        definition = tokenizer.definition()
    else:
        raise TokenizerError(f"a {type(tokenizer).__name__} cannot be written as tokenizer.json")
    # One string per merge instead of a pair: half the file size and two thirds of the read time.
    definition["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in definition["model"]["merges"]]
    definition["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    added = sorted(tokenizer.added_tokens.values(), key=lambda token: token.id)
    definition["added_tokens"] = [_entry(token) for token in added]
    vocab = definition["model"]["vocab"]
    if [token.id for token in added] != list(range(len(vocab), len(vocab) + len(added))):
        # The library numbers added tokens itself, from the end of the vocabulary on, unless they are in it.
        vocab |= {token.content: token.id for token in added}
    definition["post_processor"] = _prefix_processor(tokenizer)
    _write(folder / "tokenizer.json", definition, indent=None)
    eos = min(tokenizer.eos_ids, default=None)
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if eos is not None:
        settings["eos_token"] = tokenizer.token_bytes(eos).decode("utf-8", "replace")
    settings |= tokenizer.roles
    _write(folder / "tokenizer_config.json", settings | dict(more or {}), indent=2)


def save_ranks(tokenizer: Tokenizer, folder: Path, more: Mapping[str, Any] | None = None) -> None:
    """Write `tokenizer.model` and `tokenizer_config.json` into a folder, as GLM-4-9B was first published.

    Args:
        more: further keys of `tokenizer_config.json`; they replace ours.

    Raises:
        TokenizerError: the vocabulary was not made from ranks.
    """
    if isinstance(tokenizer, TiktokenTokenizer):
        pieces = list(tokenizer.pieces)
    elif isinstance(tokenizer, ByteLevelBPE):
        pieces = ranks_of(tokenizer)
    else:
        raise TokenizerError(f"a {type(tokenizer).__name__} cannot be written as tokenizer.model")
    lines = (base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(pieces))
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    added = sorted(tokenizer.added_tokens.values(), key=lambda token: token.id)
    decoder = {str(token.id): {k: v for k, v in _entry(token).items() if k != "id"} for token in added}
    settings = {"added_tokens_decoder": decoder, **tokenizer.roles, **(more or {})}
    _write(folder / "tokenizer_config.json", settings, indent=2)


def _entry(token: AddedToken) -> dict[str, Any]:
    """An added token as `tokenizer.json` lists it."""
    return {
        "id": token.id,
        "content": token.content,
        "single_word": False,
        "lstrip": token.lstrip,
        "rstrip": token.rstrip,
        "normalized": False,
        "special": token.special,
    }


def _prefix_processor(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """A TemplateProcessing that prepends the tokenizer's prefix to a text; None without a prefix."""
    if not tokenizer.prefix_ids:
        return None
    names = [tokenizer.token_bytes(token_id).decode("utf-8", "replace") for token_id in tokenizer.prefix_ids]
    prefix: list[dict[str, Any]] = [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]
    first, second = ({"Sequence": {"id": letter, "type_id": at}} for at, letter in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [*prefix, first],
        "pair": [*prefix, first, second],
        "special_tokens": {
            name: {"id": name, "ids": [token_id], "tokens": [name]}
            for name, token_id in zip(names, tokenizer.prefix_ids, strict=True)
        },
    }


def _write(path: Path, value: object, indent: int | None) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent), encoding="utf-8")

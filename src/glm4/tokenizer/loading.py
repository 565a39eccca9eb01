"""Find and read the tokenizer of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from glm4.errors import TokenizerError
from glm4.system.text_encoding import read_text
from glm4.tokenizer.base import ROLES, AddedToken, Tokenizer
from glm4.tokenizer.gguf_vocab import tokenizer_from_gguf
from glm4.tokenizer.hf_tokenizer import added_token_from, read_tokenizer_json
from glm4.tokenizer.saved_table import read_table
from glm4.tokenizer.tiktoken_tokenizer import TiktokenTokenizer, read_ranks

MAX_CONFIG_BYTES = 16 << 20
CONFIG_FILE = "tokenizer_config.json"


def load_tokenizer(
    path: Path | None, *, gguf_metadata: Mapping[str, Any] | None = None, packed: bool = False
) -> Tokenizer:
    """Load the tokenizer of a checkpoint.

    Args:
        path: a folder with `tokenizer.json` or `tokenizer.model` (the first wins if both are there), or one of those
            files. Not needed when the GGUF metadata describes the vocabulary.
        gguf_metadata: metadata of a GGUF file; used if it holds a vocabulary.
        packed: `path` is the folder of a packed checkpoint, which may contain a table for fast startup.

    Raises:
        TokenizerError: there is no tokenizer, or it cannot be used.
    """
    if gguf_metadata and "tokenizer.ggml.model" in gguf_metadata:
        return tokenizer_from_gguf(gguf_metadata)
    if path is None:
        raise TokenizerError("the GGUF file holds no vocabulary (tokenizer.ggml.*); convert the model again with one")
    tokenizer = read_table(path, partial(_from_files, path)) if packed else None
    if tokenizer is None:
        return _from_files(path)
    tokenizer.roles = _roles(_config(path / CONFIG_FILE))
    return tokenizer


def _from_files(path: Path) -> Tokenizer:
    folder = path if path.is_dir() else path.parent
    candidates = [folder / "tokenizer.json", folder / "tokenizer.model"] if path.is_dir() else [path]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise TokenizerError(f"{path} has no tokenizer.json or tokenizer.model; the checkpoint is incomplete")
    config = _config(folder / CONFIG_FILE)
    added, roles = _added_tokens(config, folder / CONFIG_FILE), _roles(config)
    eos_names = [roles["eos_token"]] if "eos_token" in roles else []
    tokenizer: Tokenizer
    if file.suffix == ".json":
        tokenizer = read_tokenizer_json(file, added, eos_names)
    else:
        eos_ids = frozenset(token.id for token in added if token.content in eos_names)
        tokenizer = TiktokenTokenizer(read_ranks(file), added or None, eos_ids)
    tokenizer.roles = roles
    return tokenizer


def _config(path: Path) -> dict[str, Any]:
    """`tokenizer_config.json`; empty if there is no such file."""
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise TokenizerError(f"{path} is larger than {MAX_CONFIG_BYTES >> 20} MiB; refusing to read it")
    try:
        raw = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("added_tokens_decoder"), dict | None):
        raise TokenizerError(f"{path}: an object with an `added_tokens_decoder` object is expected")
    return raw


def _added_tokens(config: Mapping[str, Any], path: Path) -> list[AddedToken]:
    decoder = config.get("added_tokens_decoder") or {}
    try:
        return [added_token_from(entry, int(token_id), path) for token_id, entry in decoder.items()]
    except ValueError:
        raise TokenizerError(f"{path}: added_tokens_decoder must have integer keys") from None


def _roles(config: Mapping[str, Any]) -> dict[str, str]:
    """See `Tokenizer.roles`."""
    given = {name: config.get(name) for name in ROLES}
    named = {name: one.get("content") if isinstance(one, dict) else one for name, one in given.items()}
    return {name: one for name, one in named.items() if isinstance(one, str)}

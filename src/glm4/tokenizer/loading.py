"""Find and read the tokenizer of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from glm4.errors import TokenizerError
from glm4.system.text_encoding import read_text
from glm4.tokenizer.base import AddedToken, Tokenizer
from glm4.tokenizer.gguf_vocab import tokenizer_from_gguf
from glm4.tokenizer.hf_tokenizer import added_token_from, read_tokenizer_json
from glm4.tokenizer.saved_table import read_table
from glm4.tokenizer.tiktoken_tokenizer import TiktokenTokenizer, read_ranks

MAX_CONFIG_BYTES = 16 << 20


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
    return tokenizer if tokenizer is not None else _from_files(path)


def _from_files(path: Path) -> Tokenizer:
    folder = path if path.is_dir() else path.parent
    candidates = [folder / "tokenizer.json", folder / "tokenizer.model"] if path.is_dir() else [path]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise TokenizerError(f"{path} has no tokenizer.json or tokenizer.model; the checkpoint is incomplete")
    added, eos_names = _read_config(folder / "tokenizer_config.json")
    if file.suffix == ".json":
        return read_tokenizer_json(file, added, eos_names)
    eos_ids = frozenset(token.id for token in added if token.content in eos_names)
    return TiktokenTokenizer(read_ranks(file), added or None, eos_ids)


def _read_config(path: Path) -> tuple[list[AddedToken], list[str]]:
    """Added tokens and end-of-text spellings that `tokenizer_config.json` names; empty if there is no such file."""
    if not path.is_file():
        return [], []
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise TokenizerError(f"{path} is larger than {MAX_CONFIG_BYTES >> 20} MiB; refusing to read it")
    try:
        raw = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON ({error}); download it again") from None
    decoder = raw.get("added_tokens_decoder") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(decoder, dict | None):
        raise TokenizerError(f"{path}: an object with an `added_tokens_decoder` object is expected")
    try:
        added = [added_token_from(entry, int(token_id), path) for token_id, entry in (decoder or {}).items()]
    except ValueError:
        raise TokenizerError(f"{path}: added_tokens_decoder must have integer keys") from None
    eos = raw.get("eos_token")
    name = eos.get("content") if isinstance(eos, dict) else eos
    return added, [name] if isinstance(name, str) else []

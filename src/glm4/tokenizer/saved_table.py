"""A tokenizer's table next to its `tokenizer.json`, for fast startup: written by us, used only if it still matches.

The table is only a cache: if it is damaged, or was made from files other than those next to it, it is ignored and
`tokenizer.json` is read.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm4.errors import TokenizerError
from glm4.tokenizer.base import MAX_TOKEN_ID, AddedToken, Tokenizer
from glm4.tokenizer.hf_tokenizer import BPE_OPTIONS, MAX_FILE_BYTES, ByteLevelBPE, once, shell_of
from glm4.tokenizer.short_texts import ShortTexts
from glm4.tokenizer.table import MAX_NBYTES, VocabularyTable, make_table

if TYPE_CHECKING:
    import tokenizers

TABLE_FILE = "tokenizer.table"
VERSION = 1  # of the contents of `settings` and of how texts are encoded with it
_SOURCES = ("tokenizer.json", "tokenizer_config.json")


def save_table(tokenizer: ByteLevelBPE, folder: Path) -> None:
    """Write the table of the tokenizer whose `tokenizer.json` is in a folder; none for a model with unusual options."""
    definition = tokenizer.definition()
    model = definition["model"]
    odd = any(model.get(name) for name in BPE_OPTIONS if name != "ignore_merges")
    if odd or "" in model["vocab"] or max(model["vocab"].values(), default=0) >= MAX_TOKEN_ID:
        return
    settings = {
        "version": VERSION,
        "sources": _source_digests(folder),
        "shell": {name: definition.get(name) for name in ("normalizer", "pre_tokenizer")},
        "ignore_merges": bool(model.get("ignore_merges")),
        "added_tokens": [[t.content, t.id, t.special, t.lstrip, t.rstrip] for t in tokenizer.added_tokens.values()],
        "prefix_ids": list(tokenizer.prefix_ids),
        "eos_ids": sorted(tokenizer.eos_ids),
    }
    merges = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    (folder / TABLE_FILE).write_bytes(make_table(settings, model["vocab"], merges).to_bytes())


def read_table(folder: Path, read_files: Callable[[], Tokenizer]) -> ByteLevelBPE | None:
    """The tokenizer of a folder from its table; None if there is none that matches the files next to it.

    Args:
        read_files: reads those files, once there is more text to encode than `ShortTexts` accepts.
    """
    file = folder / TABLE_FILE
    try:
        if not file.is_file() or file.stat().st_size > MAX_NBYTES:
            return None
        table = VocabularyTable.from_bytes(file.read_bytes())
        settings = table.settings
        if settings.get("version") != VERSION or settings.get("sources") != _source_digests(folder):
            return None
        return _tokenizer(table, settings, folder, read_files)
    except (OSError, TokenizerError, TypeError, ValueError, KeyError):
        return None


def _source_digests(folder: Path) -> dict[str, int]:
    """CRC-32 of the files the table is made from; it detects mistakes, not forgeries (we read such files anyway)."""
    found = (folder / name for name in _SOURCES)
    return {
        file.name: zlib.crc32(file.read_bytes())
        for file in found
        if file.is_file() and file.stat().st_size <= MAX_FILE_BYTES
    }


def _tokenizer(
    table: VocabularyTable, settings: Mapping[str, Any], folder: Path, read_files: Callable[[], Tokenizer]
) -> ByteLevelBPE:
    added = {token.content: token for token in (_added_token(*entry) for entry in settings["added_tokens"])}
    if any(token.id in table for token in added.values()):  # otherwise user text could be merged into a control token
        raise ValueError("an added token is a piece too")
    ids = [*settings["prefix_ids"], *settings["eos_ids"]]
    shell, ignore_merges = settings["shell"], settings["ignore_merges"]
    if set(map(type, ids)) - {int} or not isinstance(ignore_merges, bool) or not isinstance(shell, dict):
        raise TypeError("settings")

    def core() -> tokenizers.Tokenizer:
        whole = read_files()
        if not isinstance(whole, ByteLevelBPE) or whole.added_tokens != added:
            raise TokenizerError(
                f"{folder}: {TABLE_FILE} and tokenizer.json contradict each other; delete {TABLE_FILE}"
            )
        return whole.core()

    short_texts = ShortTexts(partial(shell_of, shell, folder / TABLE_FILE), table, ignore_merges=ignore_merges)
    prefix, eos = tuple(settings["prefix_ids"]), frozenset(settings["eos_ids"])
    return ByteLevelBPE(once(core), table, added.values(), prefix, eos, short_texts)


def _added_token(content: object, token_id: object, *flags: object) -> AddedToken:
    if not isinstance(content, str) or type(token_id) is not int or [type(flag) for flag in flags] != [bool] * 3:
        raise TypeError("added token")
    special, lstrip, rstrip = flags
    return AddedToken(content, token_id, bool(special), bool(lstrip), bool(rstrip))

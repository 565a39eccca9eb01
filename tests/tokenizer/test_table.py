"""The saved table: the same tokenizer as the files beside it; passed over when damaged, hostile or not of them."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm4.errors import TokenizerError
from glm4.tokenizer import load_tokenizer
from glm4.tokenizer.hf_tokenizer import ByteLevelBPE
from glm4.tokenizer.saved_table import TABLE_FILE, save_table
from glm4.tokenizer.saving import save_tokenizer
from glm4.tokenizer.short_texts import CHARACTERS
from glm4.tokenizer.table import VocabularyTable, make_table
from vocabularies import tiny_gguf


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tokenizer = load_tokenizer(None, gguf_metadata=tiny_gguf())
    assert isinstance(tokenizer, ByteLevelBPE)
    save_tokenizer(tokenizer, folder)
    save_table(tokenizer, folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def from_table(folder: Path) -> bool:
    """Whether a load takes the table. It must work either way."""
    tokenizer = load_tokenizer(folder, packed=True)
    assert isinstance(tokenizer, ByteLevelBPE)
    assert tokenizer.encode("hello") == load_tokenizer(folder).encode("hello")
    return tokenizer._short_texts is not None


def test_the_same_tokenizer(folder: Path) -> None:
    files, table = load_tokenizer(folder), load_tokenizer(folder, packed=True)
    assert from_table(folder)
    assert table.added_tokens == files.added_tokens
    assert (table.prefix_ids, table.eos_ids, table.size) == (files.prefix_ids, files.eos_ids, files.size)
    assert np.array_equal(table.unnamed_ids(table.size + 9), files.unnamed_ids(table.size + 9))
    named = sorted({*range(table.size)} - {*files.unnamed_ids(table.size).tolist()})
    assert [table.token_bytes(i) for i in named] == [files.token_bytes(i) for i in named]
    for token_id in (table.size - 1 + 1, -1, 1 << 40):
        with pytest.raises(TokenizerError):
            table.token_bytes(token_id)
    for text in ("hello <|im_end|>", "hello " * CHARACTERS):
        for allow_special in (False, True):
            assert table.encode(text, allow_special=allow_special) == files.encode(text, allow_special=allow_special)


def test_it_is_not_read_for_folders_that_are_not_packed(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, ByteLevelBPE)
    assert tokenizer._short_texts is None


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_table_of_other_files_is_passed_over(folder: Path, name: str) -> None:
    text = (folder / name).read_text(encoding="utf-8")
    (folder / name).write_text(text + "\n", encoding="utf-8")
    assert not from_table(folder)


def test_without_a_table_the_files_are_read(folder: Path) -> None:
    (folder / TABLE_FILE).unlink()
    assert not from_table(folder)


def test_models_with_odd_options_get_no_table(folder: Path, tmp_path: Path) -> None:
    definition = json.loads((folder / "tokenizer.json").read_bytes())
    definition["model"]["unk_token"] = "!"
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, ByteLevelBPE)
    save_table(tokenizer, tmp_path)
    assert not (tmp_path / TABLE_FILE).exists()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_is_noticed(saved: Path, data: st.DataObject) -> None:
    good = (saved / TABLE_FILE).read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    bad = data.draw(
        st.sampled_from([good[:at], good + b"\0" * 8, good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :]])
    )
    with pytest.raises(TokenizerError, match="damaged"):
        VocabularyTable.from_bytes(bad)


def with_valid_checksum(data: bytes) -> bytes:
    magic, header, _ = struct.unpack_from("<8sII", data)
    return struct.pack("<8sII", magic, header, zlib.crc32(data[16:])) + data[16:]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_passes_can_be_searched(saved: Path, data: st.DataObject) -> None:
    """A forger computes checksums too: any bytes are refused, or give a table that does nothing worse than nonsense."""
    damaged = bytearray((saved / TABLE_FILE).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(16, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        table = VocabularyTable.from_bytes(with_valid_checksum(bytes(damaged)))
    except TokenizerError:
        return
    for token_id in table:
        assert table[token_id]
        assert table.get(token_id + (1 << 32)) is None
    for left, right in ((0, 0), (1, 5), (300, 2)):
        merged = table.merge(left, right)
        assert merged is None or merged[1] in table
    assert {*table.alphabet().values()} <= {*table}
    assert table.find("he") in (None, *table)


def lie(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write the table again with other settings, and a checksum that fits."""
    table = VocabularyTable.from_bytes((folder / TABLE_FILE).read_bytes())
    assert isinstance(table.settings, dict)
    change(table.settings)
    (folder / TABLE_FILE).write_bytes(table.to_bytes())


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"shell": []},
        {"added_tokens": [["<x>", 0, True, False, False]]},  # also a piece: users could write it
        {"added_tokens": [["<x>", "0", True, False, False]]},
        {"added_tokens": [["<x>", 300, True, False]]},
        {"added_tokens": 1},
        {"prefix_ids": ["x"]},
        {"eos_ids": None},
        {"ignore_merges": 1},
    ],
)
def test_settings_that_make_no_sense_are_passed_over(folder: Path, change: dict[str, Any]) -> None:
    lie(folder, lambda settings: settings.update(change))
    assert not from_table(folder)


def test_a_table_that_names_other_special_tokens_meets_the_files_in_the_end(folder: Path) -> None:
    lie(folder, lambda settings: settings["added_tokens"].pop())
    tokenizer = load_tokenizer(folder, packed=True)
    with pytest.raises(TokenizerError, match="contradict each other"):
        tokenizer.encode("hello " * CHARACTERS)


def test_a_pre_tokenizer_that_the_library_refuses_is_an_error(folder: Path) -> None:
    lie(folder, lambda settings: settings["shell"].update(pre_tokenizer={"type": "Nonsense"}))
    with pytest.raises(TokenizerError, match=TABLE_FILE):
        load_tokenizer(folder, packed=True).encode("hello")


def test_the_smallest_tables() -> None:
    for vocab in ({}, {"a": 0}, {"é": 7}):
        table = VocabularyTable.from_bytes(make_table({}, vocab, ()).to_bytes())
        assert {piece: token_id for token_id, piece in table.items()} == vocab
        assert table.merge(0, 0) is None
        assert table.find("b") is None

"""Which tokens the files name as end, beginning and padding, from every kind of file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from glm4.tokenizer import load_tokenizer
from glm4.tokenizer.saving import save_tokenizer
from vocabularies import tiny_gguf


@pytest.mark.parametrize(
    ("config", "roles"),
    [
        ({}, {}),
        ({"eos_token": "<|endoftext|>", "bos_token": None}, {"eos_token": "<|endoftext|>"}),
        (
            {"eos_token": {"content": "<|user|>"}, "bos_token": "<sop>", "pad_token": "<|endoftext|>"},
            {"eos_token": "<|user|>", "bos_token": "<sop>", "pad_token": "<|endoftext|>"},
        ),
        ({"pad_token": 3}, {}),
    ],
)
def test_a_folder(tmp_path: Path, config: dict[str, Any], roles: dict[str, str]) -> None:
    tiny.write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path).roles == roles


def test_gguf_metadata_and_its_saved_copy(tmp_path: Path) -> None:
    tokens = tiny_gguf()["tokenizer.ggml.tokens"]
    ids = {name: tokens.index(f"<|{name}|>") for name in ("im_start", "im_end", "endoftext")}
    options = {"eos_token_id": ids["im_end"], "bos_token_id": ids["im_start"], "padding_token_id": ids["endoftext"]}
    tokenizer = load_tokenizer(None, gguf_metadata=tiny_gguf(**options, add_bos_token=True))
    expected = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "pad_token": "<|endoftext|>"}
    assert tokenizer.roles == expected
    save_tokenizer(tokenizer, tmp_path)
    assert load_tokenizer(tmp_path).roles == expected
    # Qwen's files name a token for the beginning that the model does not use.
    without = load_tokenizer(None, gguf_metadata=tiny_gguf(**options, add_bos_token=False))
    assert without.roles == {role: name for role, name in expected.items() if role != "bos_token"}

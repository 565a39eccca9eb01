"""Vocabularies as GGUF metadata: they read back as the same vocabularies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glm4.errors import TokenizerError
from glm4.tokenizer import Tokenizer, load_tokenizer
from glm4.tokenizer.gguf_saving import gguf_special_ids, gguf_vocabulary
from glm4.tokenizer.saving import save_tokenizer
from vocabularies import glm4_gguf, installed_gguf, tiny_gguf

ROWS = 151552


def written(tokenizer: Tokenizer, rows: int, pre: str = "glm4") -> dict[str, Any]:
    keys = gguf_vocabulary(tokenizer, rows, pre)
    return keys | gguf_special_ids(tokenizer, sorted(tokenizer.eos_ids), None)


def test_the_real_vocabulary(glm4: Tokenizer) -> None:
    """Token for token and merge for merge what converted files hold, and equal ids for the golden texts."""
    keys, converted = gguf_vocabulary(glm4, ROWS, "chatglm-bpe"), glm4_gguf()
    assert keys == {key: converted[key] for key in keys}
    again = load_tokenizer(None, gguf_metadata=keys | gguf_special_ids(glm4, [151329, 151336, 151338], 151329))
    assert again.eos_ids == {151329, 151336, 151338}
    golden = json.loads((Path(__file__).parents[1] / "golden/prompts/glm4.json").read_text(encoding="utf-8"))
    for case in golden["plain"]:
        assert again.encode(case["text"]) == case["ids"]
    for name, case in golden["conversations"].items():
        if "injection" not in name:
            assert again.encode(case["text"], allow_special=True) == case["ids"]


def test_the_real_vocabulary_from_tokenizer_json(glm4: Tokenizer, tmp_path: Path) -> None:
    first = load_tokenizer(None, gguf_metadata=glm4_gguf())
    save_tokenizer(first, tmp_path)
    keys = gguf_vocabulary(load_tokenizer(tmp_path), ROWS, "chatglm-bpe")
    assert keys == gguf_vocabulary(glm4, ROWS, "chatglm-bpe")


@pytest.mark.parametrize("pre", ["qwen2", "smollm", "gpt-2", "llama-bpe"])
@pytest.mark.parametrize("through", ["gguf", "json"])
def test_every_pre_tokenizer_is_recognized(pre: str, through: str, tmp_path: Path) -> None:
    source = tiny_gguf(pre)
    tokenizer = load_tokenizer(None, gguf_metadata=source)
    if through == "json":
        save_tokenizer(tokenizer, tmp_path)
        tokenizer = load_tokenizer(tmp_path)
    keys = written(tokenizer, len(source["tokenizer.ggml.tokens"]), pre)
    assert keys["tokenizer.ggml.pre"] == pre
    assert {key: keys[key] for key in source if key != "tokenizer.ggml.eos_token_id"} == {
        key: value for key, value in source.items() if key != "tokenizer.ggml.eos_token_id"
    }
    other = written(tokenizer, len(source["tokenizer.ggml.tokens"]), "glm4")
    assert load_tokenizer(None, gguf_metadata=other).encode("hello 123 w") == tokenizer.encode("hello 123 w")


@pytest.mark.parametrize(
    "name", [pytest.param("starter", marks=pytest.mark.starter), pytest.param("smoke", marks=pytest.mark.smoke)]
)
def test_starters(name: str) -> None:
    source = installed_gguf(name)
    tokenizer = load_tokenizer(None, gguf_metadata=source)
    keys = written(tokenizer, len(source["tokenizer.ggml.tokens"]), source["tokenizer.ggml.pre"])
    again = load_tokenizer(None, gguf_metadata=keys)
    for text in ("Hello, world 12345", "你好\n\n  x", "<|im_start|>", "don't 🙂"):
        assert again.encode(text) == tokenizer.encode(text)
        assert again.encode(text, allow_special=True) == tokenizer.encode(text, allow_special=True)
    assert again.special_tokens == tokenizer.special_tokens


def test_a_beginning_is_kept() -> None:
    source = tiny_gguf(bos_token_id=263, add_bos_token=True)
    tokenizer = load_tokenizer(None, gguf_metadata=source)
    again = load_tokenizer(None, gguf_metadata=written(tokenizer, len(source["tokenizer.ggml.tokens"]), "qwen2"))
    assert again.prefix_ids == tokenizer.prefix_ids == (263,)


def test_what_has_no_name_is_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(None, gguf_metadata=tiny_gguf())
    save_tokenizer(tokenizer, tmp_path)
    file = tmp_path / "tokenizer.json"
    definition = json.loads(file.read_text(encoding="utf-8"))
    whole = json.loads(json.dumps(definition))
    definition["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(definition), encoding="utf-8")
    with pytest.raises(TokenizerError, match="no name for the way"):
        written(load_tokenizer(tmp_path), tokenizer.size)
    whole["added_tokens"][0]["lstrip"] = True
    file.write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(TokenizerError, match="swallows the space"):
        written(load_tokenizer(tmp_path), tokenizer.size)

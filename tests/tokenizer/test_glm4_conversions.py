"""GLM-4's vocabulary as GGUF metadata and as `tokenizer.json` encodes like its own `tokenizer.model`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm4.tokenizer import Tokenizer, load_tokenizer
from glm4.tokenizer.tiktoken_tokenizer import GLM4_PATTERN, GLM4_SPECIAL_TOKENS
from vocabularies import GLM4_RANKS, glm4_gguf


def tokenizer_json(metadata: dict[str, Any]) -> dict[str, Any]:
    """What Transformers' converter writes for this vocabulary."""
    split = {"type": "Split", "pattern": {"Regex": GLM4_PATTERN}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    added = [{"id": GLM4_RANKS + i, "content": name, "special": True} for i, name in enumerate(GLM4_SPECIAL_TOKENS)]
    tokens = metadata["tokenizer.ggml.tokens"][:GLM4_RANKS]
    merges = metadata["tokenizer.ggml.merges"]
    vocab = {token: rank for rank, token in enumerate(tokens)}
    return {
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level,
        "model": {"type": "BPE", "ignore_merges": True, "vocab": vocab, "merges": merges},
    }


@pytest.fixture(scope="module", params=["gguf", "tokenizer.json"])
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    metadata = glm4_gguf()
    if request.param == "gguf":
        return load_tokenizer(None, gguf_metadata=metadata)
    file: Path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    file.write_text(json.dumps(tokenizer_json(metadata)), encoding="utf-8")
    return load_tokenizer(file)


def test_number_of_merges() -> None:
    assert len(glm4_gguf()["tokenizer.ggml.merges"]) == 318_088


def test_names(converted: Tokenizer, glm4: Tokenizer) -> None:
    assert converted.special_tokens == glm4.special_tokens
    assert converted.prefix_ids == glm4.prefix_ids
    assert converted.size == glm4.size
    assert converted.unnamed_ids(151552).tolist() == list(range(151343, 151552))


def test_golden(converted: Tokenizer) -> None:
    golden = json.loads((Path(__file__).parents[1] / "golden/prompts/glm4.json").read_text(encoding="utf-8"))
    for case in golden["plain"]:
        assert converted.encode(case["text"]) == case["ids"]
    for name, case in golden["conversations"].items():
        if "injection" not in name:
            assert converted.encode(case["text"], allow_special=True) == case["ids"]


WORDS = st.sampled_from(["Hello", " world", "你好", "12345", "\n\n", "  ", "'s", "<|user|>", "🙂", "é", "don't"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(WORDS, st.text(max_size=8)), max_size=8).map("".join))
def test_any_text(converted: Tokenizer, glm4: Tokenizer, text: str) -> None:
    ids = glm4.encode(text)
    assert converted.encode(text) == ids
    assert converted.decode(ids) == glm4.decode(ids)


def test_every_token(converted: Tokenizer, glm4: Tokenizer) -> None:
    assert all(converted.token_bytes(i) == glm4.token_bytes(i) for i in range(glm4.size))

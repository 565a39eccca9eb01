"""A tokenizer written as tokenizer.json reads back as the same tokenizer."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from glm4.checkpoints.gguf import GGUFSource
from glm4.errors import TokenizerError
from glm4.tokenizer import Tokenizer, load_tokenizer
from glm4.tokenizer.saving import save_ranks, save_tokenizer

KINDS: dict[str, tuple[tiny.GGUFArchitecture, dict[str, Any]]] = {
    "chatglm": ("chatglm", {}),
    "qwen2": ("qwen2", {}),
    "llama with bos": (
        "llama",
        {
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.ggml.bos_token_id": 257,
        },
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    """(from GGUF metadata, saved and read again)"""
    folder = tmp_path_factory.mktemp("saved")
    architecture, changes = KINDS[request.param]
    source = GGUFSource(tiny.write_gguf(folder / "model.gguf", architecture))
    original = load_tokenizer(None, gguf_metadata={**source.metadata, **changes})
    source.close()
    save_tokenizer(original, folder)
    return original, load_tokenizer(folder)


def test_the_same_tables(pair: tuple[Tokenizer, Tokenizer]) -> None:
    original, again = pair
    assert again.added_tokens == original.added_tokens
    assert again.special_tokens == original.special_tokens
    assert again.prefix_ids == original.prefix_ids
    assert again.eos_ids == original.eos_ids
    assert again.size == original.size
    assert np.array_equal(again.unnamed_ids(tiny.VOCAB_SIZE), original.unnamed_ids(tiny.VOCAB_SIZE))
    named = sorted({*range(tiny.VOCAB_SIZE)} - {*original.unnamed_ids(tiny.VOCAB_SIZE).tolist()})
    assert [again.token_bytes(i) for i in named] == [original.token_bytes(i) for i in named]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40) | st.sampled_from(["the 1234 th", "<|im_end|>", "[gMASK]<sop>", "e\u0301 12\n\n x"]))
def test_the_same_ids(pair: tuple[Tokenizer, Tokenizer], text: str) -> None:
    original, again = pair
    for allow_special in (False, True):
        assert again.encode(text, allow_special=allow_special) == original.encode(text, allow_special=allow_special)


def test_a_prefix_survives(pair: tuple[Tokenizer, Tokenizer]) -> None:
    original, again = pair
    assert again.encode_prompt("th") == original.encode_prompt("th") == [*original.prefix_ids, *original.encode("th")]


def test_ranks_become_merges_and_ranks_again(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    tiny.write_tokenizer(tmp_path / "first")
    with (tmp_path / "first/tokenizer.model").open("ab") as file:
        file.write(b"".join(base64.b64encode(p) + b" %d\n" % r for r, p in enumerate((b"th", b"the", b" the"), 256)))
    (tmp_path / "first/tokenizer_config.json").unlink()
    ranks = load_tokenizer(tmp_path / "first")
    (tmp_path / "second").mkdir()
    save_tokenizer(ranks, tmp_path / "second")
    merges = load_tokenizer(tmp_path / "second")
    for text in ("the thethe  the", "th the <|user|>", "你好"):
        for allow_special in (False, True):
            assert merges.encode(text, allow_special=allow_special) == ranks.encode(text, allow_special=allow_special)
    save_ranks(merges, tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == (tmp_path / "first/tokenizer.model").read_bytes()
    assert load_tokenizer(tmp_path / "tokenizer.model").added_tokens == ranks.added_tokens


def test_merges_that_do_not_follow_from_ranks(pair: tuple[Tokenizer, Tokenizer], tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="not one of ranks"):
        save_ranks(pair[0], tmp_path)

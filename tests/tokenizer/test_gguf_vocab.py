"""Tokenizers from GGUF metadata: tiny vocabularies made here, and the real ones of the starter models."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm4.errors import TokenizerError
from glm4.tokenizer import Tokenizer, load_tokenizer
from glm4.tokenizer.gguf_vocab import PRE_TOKENIZERS
from glm4.tokenizer.saving import save_tokenizer
from vocabularies import CHATML_MARKERS, CHATML_SPECIALS, byte_characters, byte_level, installed_gguf, tiny_gguf


def load(**changes: Any) -> Tokenizer:
    return load_tokenizer(None, gguf_metadata=tiny_gguf(**changes))


def ids_of(metadata: dict[str, Any], *pieces: str) -> list[int]:
    tokens = metadata["tokenizer.ggml.tokens"]
    return [tokens.index(piece) for piece in pieces]


def test_merges_and_special_tokens() -> None:
    metadata = tiny_gguf()
    tokenizer = load_tokenizer(None, gguf_metadata=metadata)
    assert tokenizer.encode("hello w") == ids_of(metadata, "hel", "lo", byte_level(" w"))
    assert tokenizer.special_tokens.keys() == set(CHATML_SPECIALS)
    assert tokenizer.added_tokens.keys() == {*CHATML_SPECIALS, *CHATML_MARKERS}
    assert tokenizer.eos_ids == {tokenizer.special_id("<|im_end|>")}
    text = "<|im_start|>he<tool_call>"
    assert tokenizer.encode(text, allow_special=True) == ids_of(metadata, "<|im_start|>", "he", "<tool_call>")
    assert not set(tokenizer.encode(text)) & {token.id for token in tokenizer.added_tokens.values()}
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_unused_rows_are_never_sampled() -> None:
    metadata = tiny_gguf(unused=3)
    tokenizer = load_tokenizer(None, gguf_metadata=metadata)
    size = len(metadata["tokenizer.ggml.tokens"])
    assert tokenizer.size == size - 3
    assert tokenizer.unnamed_ids(size + 1).tolist() == [size - 3, size - 2, size - 1, size]
    with pytest.raises(TokenizerError):
        tokenizer.token_bytes(size - 1)


def test_arrays_may_be_numpy() -> None:
    metadata = tiny_gguf()
    metadata["tokenizer.ggml.token_type"] = np.array(metadata["tokenizer.ggml.token_type"], np.int32)
    assert load_tokenizer(None, gguf_metadata=metadata).encode("he") == ids_of(metadata, "he")


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("qwen2", ["1", "2", "3"]),
        ("smollm", ["1", "2", "3"]),
        ("chatglm-bpe", ["123"]),
        ("glm4", ["123"]),
        ("llama-bpe", ["123"]),
        ("gpt-2", ["123"]),
    ],
)
def test_digits(pre: str, pieces: list[str]) -> None:
    metadata = tiny_gguf(pre)
    tokenizer = load_tokenizer(None, gguf_metadata=metadata)
    assert tokenizer.encode("123") == ids_of(metadata, *pieces)


def test_every_known_pre_tokenizer_round_trips() -> None:
    for pre in PRE_TOKENIZERS:
        tokenizer = load(pre=pre)
        text = "Hello, wörld's 12345  \n\n\tdef f(x): 你好 🙂"
        assert tokenizer.decode(tokenizer.encode(text)) == text, pre


def test_whole_words_are_looked_up_first() -> None:
    """GLM-4's vocabulary has words its merges do not lead to."""
    metadata = tiny_gguf("chatglm-bpe")
    metadata["tokenizer.ggml.tokens"].append("wxyz")
    metadata["tokenizer.ggml.token_type"].append(1)
    assert load_tokenizer(None, gguf_metadata=metadata).encode("wxyz") == ids_of(metadata, "wxyz")
    metadata["tokenizer.ggml.pre"] = "qwen2"
    assert load_tokenizer(None, gguf_metadata=metadata).encode("wxyz") == ids_of(metadata, "w", "x", "y", "z")


def test_qwen_normalises_to_nfc() -> None:
    assert load(pre="qwen2").encode("e\u0301") == load(pre="qwen2").encode("é")
    assert load(pre="smollm").encode("e\u0301") != load(pre="smollm").encode("é")


def test_prefix() -> None:
    assert load().prefix_ids == ()
    assert load(bos_token_id=7, add_bos_token=True).prefix_ids == (7,)
    assert load(bos_token_id=7, add_bos_token=False).prefix_ids == ()
    assert load(bos_token_id=4294967295, add_bos_token=True).prefix_ids == ()
    glm = load(pre="glm4", specials=["[gMASK]", "<sop>", "<|user|>"])
    assert glm.prefix_ids == (glm.special_id("[gMASK]"), glm.special_id("<sop>"))


def test_ends_that_are_no_tokens(tmp_path: Path) -> None:
    metadata = tiny_gguf(eos_token_id=4294967295, eot_token_id=-1, eom_token_id=258)
    tokenizer = load_tokenizer(None, gguf_metadata=metadata)
    assert tokenizer.eos_ids == {258}
    tokenizer = load_tokenizer(None, gguf_metadata=tiny_gguf(eos_token_id=4294967295))
    save_tokenizer(tokenizer, tmp_path)
    assert load_tokenizer(tmp_path).eos_ids == tokenizer.eos_ids == frozenset()


def with_(key: str, value: Any) -> dict[str, Any]:
    return tiny_gguf(**{key: value})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (with_("model", "llama"), "vocabulary of type 'llama' is not supported"),
        (with_("model", None), "vocabulary of type None"),
        (with_("pre", "deepseek-r1-qwen"), "pre-tokenizer 'deepseek-r1-qwen' is not known; known are .*chatglm-bpe"),
        (with_("pre", None), "pre-tokenizer None"),
        (with_("tokens", []), "0 tokens"),
        (with_("token_type", [1, 2]), "and 2 token types"),
        (with_("tokens", [7] * 270), "token 0 is no text"),
        (with_("merges", []), "no merges"),
        (with_("merges", ["a b c"]), "merge 0 is not a pair"),
        (with_("merges", [7]), "merge 0 is not a pair"),
        (with_("merges", ["h e", "zz h"]), "out of vocabulary"),
    ],
)
def test_damaged_metadata(metadata: dict[str, Any], message: str) -> None:
    if metadata["tokenizer.ggml.tokens"] == [7] * 270:
        metadata["tokenizer.ggml.token_type"] = []
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(None, gguf_metadata=metadata)


@pytest.mark.parametrize("key", ["model", "pre", "tokens", "token_type", "merges", "eos_token_id", "eom_token_id"])
@pytest.mark.parametrize(
    "value", [5, -1, 2.5, float("nan"), float("inf"), True, "x", [], [[1]], ["x"] * 270, [[]] * 270], ids=str
)
def test_values_of_another_type(key: str, value: Any) -> None:
    """A GGUF file may give any key a value of any type."""
    try:
        tokenizer = load_tokenizer(None, gguf_metadata=tiny_gguf(**{key: value}))
    except TokenizerError:
        return
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


def test_unknown_type_and_duplicates() -> None:
    metadata = tiny_gguf()
    metadata["tokenizer.ggml.token_type"][5] = 9
    with pytest.raises(TokenizerError, match="token 5 has type 9"):
        load_tokenizer(None, gguf_metadata=metadata)
    metadata = tiny_gguf()
    metadata["tokenizer.ggml.tokens"][5] = byte_characters()[6]
    with pytest.raises(TokenizerError, match="twice"):
        load_tokenizer(None, gguf_metadata=metadata)


REAL = [pytest.param("starter", marks=pytest.mark.starter), pytest.param("smoke", marks=pytest.mark.smoke)]


@pytest.fixture(scope="module", params=REAL)
def real(request: pytest.FixtureRequest) -> Tokenizer:
    return load_tokenizer(None, gguf_metadata=installed_gguf(request.param))


def test_real_special_spellings_are_plain_text(real: Tokenizer) -> None:
    for name, token in real.added_tokens.items():
        ids = real.encode(f"a{name}\n{name}")
        assert not set(ids) & {t.id for t in real.added_tokens.values()}
        assert real.decode(ids) == f"a{name}\n{name}"
        assert real.encode(name, allow_special=True) == [token.id]


@lru_cache(maxsize=2)
def known_bytes(tokenizer: Tokenizer) -> frozenset[bytes]:
    return frozenset(piece for i in range(tokenizer.size) if len(piece := tokenizer.token_bytes(i)) == 1)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.one_of(st.sampled_from(["<|im_end|>", "<tool_call>", "\n\n", "  "]), st.text(max_size=10))).map("".join)
)
def test_real_round_trip(real: Tokenizer, text: str) -> None:
    """Characters whose bytes a vocabulary lacks (SmolLM2 has 21 such bytes) are left out."""

    single_bytes = known_bytes(real)
    text = "".join(c for c in text if all(bytes([b]) in single_bytes for b in c.encode("utf-8", "replace")))
    ids = real.encode(text)
    assert not set(ids) & {token.id for token in real.added_tokens.values()}
    assert unicodedata.normalize("NFC", real.decode(ids)) == unicodedata.normalize("NFC", text)


@pytest.mark.starter
def test_starter_unnamed_rows() -> None:
    tokenizer = load_tokenizer(None, gguf_metadata=installed_gguf("starter"))
    assert tokenizer.unnamed_ids(151936).tolist() == list(range(151665, 151936))
    assert tokenizer.encode("123", allow_special=True) == [16, 17, 18]

"""GLM-4's real `tokenizer.model`: golden encodings, special tokens, text that only looks special."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from glm4.errors import TokenizerError
from glm4.tokenizer import Tokenizer, load_tokenizer
from glm4.tokenizer.tiktoken_tokenizer import GLM4_PATTERN, GLM4_SPECIAL_TOKENS, MAX_PIECE_CHARS, read_ranks

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/prompts/glm4.json").read_text(encoding="utf-8"))

# What published checkpoints name, as facts; the code has the names only.
SPECIAL_IDS = {
    "<|endoftext|>": 151329,
    "[MASK]": 151330,
    "[gMASK]": 151331,
    "[sMASK]": 151332,
    "<sop>": 151333,
    "<eop>": 151334,
    "<|system|>": 151335,
    "<|user|>": 151336,
    "<|assistant|>": 151337,
    "<|observation|>": 151338,
    "<|begin_of_image|>": 151339,
    "<|end_of_image|>": 151340,
    "<|begin_of_video|>": 151341,
    "<|end_of_video|>": 151342,
}


@pytest.mark.parametrize("case", GOLDEN["plain"], ids=lambda case: repr(case["text"][:20]))
def test_golden_plain(glm4: Tokenizer, case: dict[str, Any]) -> None:
    assert glm4.encode(case["text"]) == case["ids"]
    assert glm4.decode(case["ids"]) == case["text"]


@pytest.mark.parametrize("name", GOLDEN["conversations"])
def test_golden_rendered_text(glm4: Tokenizer, name: str) -> None:
    case = GOLDEN["conversations"][name]
    if "injection" not in name:  # a trusted string may spell special tokens; these cases are about untrusted ones
        assert glm4.encode(case["text"], allow_special=True) == case["ids"]


def test_special_tokens_by_name(glm4: Tokenizer) -> None:
    assert dict(glm4.special_tokens) == SPECIAL_IDS
    assert {name: glm4.special_id(name) for name in SPECIAL_IDS} == SPECIAL_IDS
    assert glm4.size == 151343
    with pytest.raises(TokenizerError, match=r"no special token '<\|im_start\|>'"):
        glm4.special_id("<|im_start|>")


def test_unnamed_rows(glm4: Tokenizer) -> None:
    assert glm4.unnamed_ids(151552).tolist() == list(range(151343, 151552))
    assert glm4.unnamed_ids(151343).dtype == np.int64
    with pytest.raises(TokenizerError, match="151343 token ids but the model has only 151000 rows"):
        glm4.unnamed_ids(151000)


def test_raw_prompts_begin_with_gmask_sop(glm4: Tokenizer) -> None:
    assert glm4.prefix_ids == (151331, 151333)
    assert glm4.encode_prompt("你好") == [151331, 151333, 109377]


@pytest.mark.parametrize("name", GLM4_SPECIAL_TOKENS)
def test_special_spelling_is_plain_text(glm4: Tokenizer, name: str) -> None:
    text = f"a{name} {name}{name}\n{name}"
    plain = glm4.encode(text)
    assert max(plain) < 151329
    assert plain == reference(glm4, {}).encode_ordinary(text)
    assert glm4.decode(plain) == text
    assert glm4.encode(name, allow_special=True) == [SPECIAL_IDS[name]]


def reference(tokenizer: Tokenizer, specials: Mapping[str, int]) -> tiktoken.Encoding:
    """tiktoken on its own."""
    if len(specials) not in _references:
        ranks = {tokenizer.token_bytes(rank): rank for rank in range(151329)}
        _references[len(specials)] = tiktoken.Encoding(
            "reference", pat_str=GLM4_PATTERN, mergeable_ranks=ranks, special_tokens=dict(specials)
        )
    return _references[len(specials)]


_references: dict[int, tiktoken.Encoding] = {}

FRAGMENTS = [*GLM4_SPECIAL_TOKENS, "<|", "|>", "\n", "\n\n", " ", "'s", "12345"]
PIECES = st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=12))


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=8).map("".join))
def test_round_trip_without_specials(glm4: Tokenizer, text: str) -> None:
    ids = glm4.encode(text)
    assert all(i < 151329 for i in ids)
    assert glm4.decode(ids) == text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@settings(max_examples=100, deadline=None)
@given(st.lists(PIECES, max_size=8).map("".join))
def test_specials_allowed_equals_tiktoken(glm4: Tokenizer, text: str) -> None:
    encoding = reference(glm4, glm4.special_tokens)
    assert glm4.encode(text, allow_special=True) == encoding.encode(text, allowed_special="all")


def test_lone_surrogates_become_replacement_characters(glm4: Tokenizer) -> None:
    assert glm4.encode("a\ud800b") == glm4.encode("a\ufffdb")


def test_long_text_is_cut_where_the_pattern_cuts(glm4: Tokenizer) -> None:
    text = "The 1st line, 你好.  \n\n\n second\r\nLine\n" * (2 * MAX_PIECE_CHARS // 35)
    assert len(text) > 2 * MAX_PIECE_CHARS
    assert glm4.encode(text) == reference(glm4, {}).encode_ordinary(text)


def test_a_million_spaces(glm4: Tokenizer) -> None:
    """tiktoken's regular expression engine overflows its stack on this in one piece."""
    assert glm4.decode(glm4.encode(" " * 1_000_000)) == " " * 1_000_000


def test_ids_without_a_token(glm4: Tokenizer) -> None:
    for token_id in (151343, 151551, -1):
        with pytest.raises(TokenizerError, match=f"token id {token_id} has no token"):
            glm4.token_bytes(token_id)
    with pytest.raises(TokenizerError):
        glm4.decode([9703, 151400])


def test_special_ids_from_the_checkpoint(glm4_folder: Path, tmp_path: Path) -> None:
    """A checkpoint that names its special tokens itself is believed, also about which one ends the text."""
    (tmp_path / "tokenizer.model").write_bytes((glm4_folder / "tokenizer.model").read_bytes())
    decoder = {"151329": {"content": "<|end|>", "special": True}, "151400": {"content": "<note>", "special": False}}
    config = {"added_tokens_decoder": decoder, "eos_token": "<|end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert dict(tokenizer.special_tokens) == {"<|end|>": 151329}
    assert tokenizer.encode("<note><|user|>", allow_special=True)[0] == 151400
    assert tokenizer.eos_ids == {151329}
    assert tokenizer.prefix_ids == ()
    assert tokenizer.decode([151400, 151329]) == "<note>"
    assert tokenizer.decode([151400, 151329], skip_special_tokens=False) == "<note><|end|>"


def test_special_id_inside_the_vocabulary_is_refused(glm4_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((glm4_folder / "tokenizer.model").read_bytes())
    config = {"added_tokens_decoder": {"17": {"content": "<|end|>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match="collides"):
        load_tokenizer(tmp_path)


def test_ranks_read_back(glm4_folder: Path) -> None:
    ranks = read_ranks(glm4_folder / "tokenizer.model")
    assert len(ranks) == 151329
    assert ranks[b"Hello"] == 9703

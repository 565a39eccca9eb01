"""Lower bounds of a text's length in tokens: never above what the tokenizer gives, and checked before it is asked."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from glm4.errors import PromptTooLongError
from glm4.system.text_encoding import well_formed
from glm4.tokenizer import Tokenizer, load_tokenizer

LONGEST = 32
REMOVING = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("a+"), "removed"), pre_tokenizers.ByteLevel()])


def tokenizer(folder: Path, **changes: Any) -> Tokenizer:
    """Byte-level BPE with few tokens, the longest of `LONGEST` spaces."""
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(changes.pop("missing", "")))
    vocabulary, merges = {one: n for n, one in enumerate(alphabet)}, []
    for left, right in [("a", "b"), ("ab", "c"), *(("\u0120" * n, "\u0120" * n) for n in (1, 2, 4, 8, 16))]:
        merges.append((left, right))
        vocabulary[left + right] = len(vocabulary)
    core = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    core.normalizer = changes.pop("normalizer", normalizers.NFC())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = changes.pop("pre_tokenizer", byte_level)
    core.decoder = decoders.ByteLevel()
    folder.mkdir(exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer(tmp_path_factory.mktemp("t"))


# Characters whose composed form is much shorter, and some that have none.
SHRINKING = [
    "\u212a",
    "\u212b",
    "\u2126",
    "\u1100\u1161\u11a8",
    "\u03b1\u0313\u0340\u0345",
    "e\u0301",
    "u\u0344",
    "u\u0308\u0304",
]
TEXTS = st.lists(st.one_of(st.sampled_from([" " * LONGEST, "abc", "\u4e16", *SHRINKING]), st.text(max_size=5))).map(
    "".join
)


def bound(tokenizer: Tokenizer, text: str) -> int:
    return tokenizer._kept_bytes(text) // tokenizer.max_token_bytes


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_a_text_never_has_fewer_tokens(ours: Tokenizer, glm4: Tokenizer, text: str) -> None:
    text = well_formed(text)
    for one in (ours, glm4):
        assert bound(one, text) <= len(one.encode(text))


def test_no_character_becomes_less_than_a_quarter() -> None:
    for code in (*range(0xD800), *range(0xE000, 0x110000)):
        for form in ("NFC", "NFD"):
            character = chr(code)
            composed = unicodedata.normalize(form, character)
            ascii_only = len(character.encode()) if code < 128 else 0
            assert 4 * len(composed.encode()) >= len(character.encode()) + 3 * ascii_only, hex(code)


def test_what_can_be_composed_is_not_shortened_further() -> None:
    """Every composed character, from each of its spellings by the longest equivalents of its parts."""
    longest: dict[str, str] = {}
    for code in (*range(0xD800), *range(0xE000, 0x110000)):
        plain = unicodedata.normalize("NFD", chr(code))
        if len(chr(code).encode()) > len(longest.get(plain, plain).encode()):
            longest[plain] = chr(code)
    for code in (*range(0xD800), *range(0xE000, 0x110000)):
        parts = [longest.get(one, one) for one in unicodedata.normalize("NFD", chr(code))]
        spelled = "".join(parts)
        kept = sum(1 if part.isascii() else len(part.encode()) / 4 for part in parts)
        assert kept <= len(unicodedata.normalize("NFC", spelled).encode()) + 1e-9, hex(code)


def test_bytes_without_a_token_do_not_count(tmp_path: Path) -> None:
    """A character that the vocabulary lacks yields nothing, so a text of any length may fit."""
    ours = tokenizer(tmp_path / "t", missing="x\u0102")
    assert ours.encode("x" * 1000) == []
    assert bound(ours, "x" * 100_000) == 0
    assert bound(ours, "a" * 100_000) == 100_000 // LONGEST


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": normalizers.Replace("a", "")},
        {"normalizer": normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])},
        {"normalizer": normalizers.NFKC()},
        {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel()])},
        {"pre_tokenizer": REMOVING},
    ],
)
def test_what_may_remove_text_gives_no_bound(tmp_path: Path, changes: dict[str, Any]) -> None:
    ours = tokenizer(tmp_path / "t", **changes)
    assert bound(ours, "a" * 100_000) == 0
    assert ours.longest_text(10) is None
    ours.check_length(["a" * 1_000_000], 10)


def test_long_texts_are_refused_before_they_are_encoded(ours: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 4000
    text = " " * (most * LONGEST)
    assert len(ours.encode(text, most=most)) == most
    assert len(ours.encode("ab" * 50_000, most=most)) == 50_000, "what is not certainly too long is counted"
    monkeypatch.setattr(ours, "_encode_plain", lambda text: pytest.fail("it was encoded"))
    for special in (False, True):
        with pytest.raises(PromptTooLongError, match="at least 4001 tokens") as refused:
            ours.encode(text + " " * LONGEST, most=most, allow_special=special)
        assert refused.value.at_least == most + 1


def test_special_tokens_count_as_well(glm4: Tokenizer) -> None:
    with pytest.raises(PromptTooLongError, match="at least 101 tokens"):
        glm4.encode("<|user|>" * 101, allow_special=True, most=100)


def test_long_and_short_texts_are_encoded_alike(ours: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "abc  \u4e16\u754c \U0001f30d\n\n ab  caf\u0065\u0301 " * 2000
    long = ours.encode(text)
    monkeypatch.setattr("glm4.tokenizer.hf_tokenizer.LONG_TEXT", len(text) + 1)
    assert ours.encode(text) == long


def test_placeholders_are_replaced_before_the_text_is_measured(glm4: Tokenizer) -> None:
    restored = {0xF0000: "<|user|>", 0xF0001: "<"}
    text = "a\U000f0000b\U000f0001<|assistant|>\U000f0000"
    plain = [*glm4.encode("a<|user|>b<"), glm4.special_id("<|assistant|>"), *glm4.encode("<|user|>")]
    assert glm4.encode(text, allow_special=True, restored=restored) == plain

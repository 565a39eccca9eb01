"""The incremental detokenizer: its pieces join to what `decode` gives, and no piece ends inside a character."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm4.errors import TokenizerError
from glm4.tokenizer import Tokenizer
from vocabularies import tiny_chatml


def stream(tokenizer: Tokenizer, ids: list[int], **options: Any) -> list[str]:
    detokenizer = tokenizer.detokenizer(**options)
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, tiny_chatml().size - 1), max_size=40), st.booleans())
def test_any_ids_join_to_decode(ids: list[int], skip: bool) -> None:
    """Random ids are mostly bytes that are no UTF-8."""
    tokenizer = tiny_chatml()
    expected = tokenizer.decode(ids, skip_special_tokens=skip)
    assert "".join(stream(tokenizer, ids, skip_special_tokens=skip)) == expected


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30))
def test_no_half_characters(text: str) -> None:
    tokenizer = tiny_chatml()
    ids = tokenizer.encode(text)
    pieces = stream(tokenizer, ids)
    assert pieces[-1] == "", "nothing is left over at the end of whole characters"
    assert "".join(pieces) == tokenizer.decode(ids)
    if "\ufffd" not in tokenizer.decode(ids):
        assert not any("\ufffd" in piece for piece in pieces)


def test_emoji_appears_with_its_last_byte() -> None:
    tokenizer = tiny_chatml()
    assert stream(tokenizer, tokenizer.encode("a🙂b")) == ["a", "", "", "", "🙂", "b", ""]


def test_unfinished_character() -> None:
    tokenizer = tiny_chatml()
    detokenizer = tokenizer.detokenizer()
    assert [detokenizer.push(i) for i in tokenizer.encode("🙂")[:3]] == ["", "", ""]
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.push(tokenizer.encode("a")[0]) == "a", "flush makes it ready for another text"


def test_special_tokens_and_markers() -> None:
    tokenizer = tiny_chatml()
    ids = tokenizer.encode("<|im_start|>hi<tool_call><|im_end|>", allow_special=True)
    assert "".join(stream(tokenizer, ids)) == "hi<tool_call>"
    assert "".join(stream(tokenizer, ids, skip_special_tokens=False)) == "<|im_start|>hi<tool_call><|im_end|>"
    shown = tokenizer.detokenizer(shown_as={tokenizer.special_id("<|im_end|>"): "\x1e"})
    assert "".join(shown.push(i) for i in ids) == "hi<tool_call>\x1e"


def test_id_without_a_token() -> None:
    with pytest.raises(TokenizerError):
        tiny_chatml().detokenizer().push(100_000)

"""Sentences of Chinese and English texts, with exact places."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm4.documents.sentences import split_sentences


def split(text: str) -> list[str]:
    return [text[sentence.start : sentence.end] for sentence in split_sentences(text)]


@pytest.mark.parametrize(
    "sentences",
    [
        ["今天天气很好。", "我们去公园！！", "真的吗？", "当然；", "走吧……", "好"],
        ["他说：“好。”", "然后走了。"],
        ["他说“走吧！”，就离开了。", "没有人回答。"],
        ["圆周率约为3.14。", "见www.example.com。", "版本2.0发布了！"],
        ["（这是注释。）", "《书名》很好。"],
        ["The U.S. economy grew 3.5 percent.", "It was a surprise."],
        ["Dr. Smith met Mr. J. R. Jones at 5 p.m. on Jan. 5.", "They talked."],
        ["See Fig. 1, eq. (2) and pp. 3-4 of vol. 2.", "Then go on!", "Why?", "Because."],
        ['She said, "Stop."', "Then she left."],
        ["“Stop!” he cried.", "Nobody did."],
        ["We use e.g. apples, i.e. fruit, etc. and more.", "Prices rose by 1.5 (see below).", "All of them."],
        ["It went on ... and on.", "Then it ended...", "Really."],
        ["The company (Acme Inc.) grew.", "Its rival, Foo Ltd., did not."],
        ["It moved to Washington D.C. in 1990.", "It stayed."],
        ["GLM-4 支持128K上下文。", "It is fast.", "对吗？"],
        ["Version 1.2.3 is out.", "Node.js and a.b.c are names.", "Go to example.com/x?y=1."],
        ["He was born in 1928.", "She was not."],
    ],
    ids=lambda sentences: sentences[0][:20],
)  # fmt: skip
@pytest.mark.parametrize("join", ["", " ", "\n"])
def test_sentences_end_where_readers_see_it(sentences: list[str], join: str) -> None:
    if not join and any(a[-1].isascii() for a in sentences[:-1]):
        join = " "
    assert split(join.join(sentences)) == sentences


def test_blank_lines_items_and_tables_end_sentences() -> None:
    items = "- one\n- two. And more.\n1. first\n2. second"
    text = f"A heading\n\nA sentence that goes\non here.\n{items}\n\n| a | b |\n| c | d |\nEnd"
    assert split(text) == [
        "A heading", "A sentence that goes\non here.", "- one", "- two.", "And more.", "1. first", "2. second",
        "| a | b |", "| c | d |", "End",
    ]  # fmt: skip


def test_white_space_alone_has_no_sentence() -> None:
    assert split("") == split(" \n\n\t ") == []


@given(st.text(alphabet="aB1 .。！？；”\"'\n…-|,()U", max_size=60))
def test_only_white_space_lies_between_sentences(text: str) -> None:
    at = 0
    for sentence in split_sentences(text):
        assert sentence.start >= at
        assert not text[at : sentence.start].strip()
        part = text[sentence.start : sentence.end]
        assert part
        assert part == part.strip()
        at = sentence.end
    assert not text[at:].strip()


def test_long_texts_are_split_in_linear_time() -> None:
    text = "a. " * 200_000 + "." * 200_000 + "\n" * 200_000 + "(" * 200_000 + "”" * 200_000
    assert split_sentences(text)

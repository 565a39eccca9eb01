"""Answers with citations: LongCite's own results for its form, and what ours reads beyond it."""

from itertools import pairwise

import pytest

from glm4.documents.cited_answer import (
    AnswerStream,
    Cited,
    Statement,
    marked,
    prompt,
    read_answer,
)

LAST = 3  # four sentences


# What THUDM/LongCite's functions make of these, recorded.
@pytest.mark.parametrize(
    ("cited", "spans"),
    [
        ("[0-0][2-3]", ((0, 0), (2, 3))),
        ("[0-0][1-2]", ((0, 2),)),
        ("[2-2][1-1]", ((2, 2), (1, 1))),
        ("[2-99]", ((2, 3),)),
        ("[9-12]", ()),
        ("[3-1]", ()),
        ("[2]", ()),
        ("[0 - 1]", ()),
        ("[0-0, 2-2]", ()),
        ("[0-0][2-2][0-0][3-3]", ((0, 0), (2, 2), (0, 0))),
        ("[0-1][1-2]", ((0, 1), (1, 2))),
        ("", ()),
    ],
)
def test_strict_is_what_longcite_reads(cited: str, spans: tuple[tuple[int, int], ...]) -> None:
    answer = f"<statement>X.<cite>{cited}</cite></statement>"
    assert read_answer(answer, LAST, strict=True) == [Statement("X.", spans)]


@pytest.mark.parametrize(
    ("cited", "spans", "repaired"),
    [
        ("[2]", ((2, 2),), True),
        ("[0 - 1]", ((0, 1),), True),
        ("[0-0, 2-2]", ((0, 0), (2, 2)), True),
        ("[0-0][2-2][0-0][3-3]", ((0, 0), (2, 3)), False),
        ("[0-0][2-3]", ((0, 0), (2, 3)), False),
        ("[9-12]", (), False),
    ],
)
def test_other_forms_are_read_too(cited: str, spans: tuple[tuple[int, int], ...], repaired: bool) -> None:
    answer = f"<statement>X.<cite>{cited}</cite></statement>"
    if cited == "[0-0][2-2][0-0][3-3]":  # without the duplicate, 2-2 and 3-3 are neighbors
        spans = ((0, 0), (2, 3))
    assert read_answer(answer, LAST) == [Statement("X.", spans, repaired=repaired)]


def test_citations_inside_and_text_outside() -> None:
    answer = "Some words outside. <statement>X<cite>[0-0]</cite> is a.</statement>\n\ntail"
    assert read_answer(answer, LAST, strict=True) == [
        Statement("Some words outside. "),
        Statement("X is a.", ((0, 0),)),
        Statement("\n\ntail", cites=False),
    ]


@pytest.mark.parametrize("cut", ["<statement>X is cut <cite>[0-0]", "<statement>X is cut <cite>[0-0]</ci"])
def test_a_statement_that_is_cut_off_is_kept(cut: str) -> None:
    assert read_answer(cut, LAST, strict=True) == []
    assert read_answer(cut, LAST) == [Statement("X is cut ", ((0, 0),), truncated=True)]


def test_an_answer_without_any_tag_is_a_statement() -> None:
    assert read_answer("Just an answer.", LAST) == [Statement("Just an answer.")]
    assert read_answer("", LAST) == []


ANSWER = (
    "Intro < 5. <statement>One.<cite>[0-1]</cite></statement>\n<statement>Two <b>bold</b>.<cite></cite></statement>"
    "<statement>Three<cite>[2]</cite> and on.</statement> End <state"
)


def streamed(pieces: list[str]) -> tuple[str, list[Cited]]:
    stream = AnswerStream(LAST)
    events = [event for piece in pieces for event in stream.push(piece)] + stream.finish()
    assert stream.raw == "".join(pieces)
    return "".join(e for e in events if isinstance(e, str)), [e for e in events if isinstance(e, Cited)]


@pytest.mark.parametrize("size", range(1, 14))
def test_a_stream_shows_the_same_however_it_is_cut(size: int) -> None:
    pieces = [ANSWER[at : at + size] for at in range(0, len(ANSWER), size)]
    text, cited = streamed(pieces)
    assert text == "Intro < 5. One.\nTwo <b>bold</b>.Three and on. End "
    assert [(text[c.start : c.end], c.spans) for c in cited] == [("One.", ((0, 1),)), ("Three and on.", ((2, 2),))]


@pytest.mark.parametrize("end", range(len(ANSWER)))
def test_a_stream_and_a_whole_answer_agree_wherever_it_ends(end: int) -> None:
    text, cited = streamed([ANSWER[:end]])
    statements = read_answer(ANSWER[:end], LAST)
    assert text == "".join(statement.text for statement in statements)
    assert [c.spans for c in cited] == [s.spans for s in statements if s.spans]
    assert all(before.end <= after.start for before, after in pairwise(cited))


def test_the_prompt_ends_with_the_question() -> None:
    text = prompt(marked(["A. ", "B."]), "Why?", longcite=True)
    assert text.startswith("Please answer the user's question based on the following document. When a sentence S")
    assert text.endswith("[Document Start]\n<C0>A. <C1>B.\n[Document End]\n\nWhy?")
    assert marked(["x"], first=7) == "<C7>x"

"""What is done to an answer's text while it streams gives the same result however it is cut into pieces."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from glm4.agent.answer_text import CitationFinder, Placeholders
from glm4.agent.tool import Sources

YEAR = {"[[训练时间]]": "2023年"}


def pieces(text: str) -> Iterator[list[str]]:
    """A text in one piece, in single characters, and cut at every pair of places."""
    yield [text]
    yield list(text)
    for first, second in itertools.combinations(range(len(text) + 1), 2):
        yield [text[:first], text[first:second], text[second:]]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("截至[[训练时间]]。", "截至2023年。"),
        ("[[训练时间]][[训练时间]]", "2023年2023年"),
        ("a[[[训练时间]]]", "a[2023年]"),
        ("[[训练时间]", "[[训练时间]"),
        ("x[[1]] y[", "x[[1]] y["),
    ],
)
def test_placeholders_are_filled_in(text: str, shown: str) -> None:
    for parts in pieces(text):
        filter_ = Placeholders(YEAR)
        pushed = [filter_.push(part) for part in parts]
        assert "".join(pushed) + filter_.finish() == shown
    assert Placeholders(YEAR).whole(text) == shown


def test_text_that_cannot_become_a_placeholder_is_not_held_back() -> None:
    filter_ = Placeholders(YEAR)
    assert [filter_.push("a["), filter_.push("b"), filter_.push("[[训"), filter_.push("练x")] == [
        "a",
        "[b",
        "",
        "[[训练x",
    ]
    assert Placeholders({}).push("[[训练时间") == "[[训练时间"


def sources() -> Sources:
    made = Sources()
    made.add("One", url="https://example.org/1")
    made.add("Two", url="https://example.org/2")
    return made


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("A【7†source】and【8†b】.", [7, 8]),
        ("【7†】", [7]),
        ("【 8 †two words】", [8]),
        ("【9†unknown】【7】【†x】【x†7】", []),
        ("【【7†a】】", [7]),
        ("【7†a【8†b】", [8]),
    ],
)
def test_citations_are_found(text: str, numbers: list[int]) -> None:
    for parts in pieces(text):
        finder = CitationFinder(sources())
        found = [citation for part in parts for citation in finder.push(part)]
        assert [citation.source.n for citation in found] == numbers
        for citation in found:
            cited = text[citation.start : citation.end]
            assert cited.startswith("【")
            assert cited.endswith("】")
            assert str(citation.source.n) in cited


def test_a_citation_is_found_when_it_is_complete() -> None:
    finder = CitationFinder(sources())
    assert finder.push("x【7†sour") == []
    (citation,) = finder.push("ce】y")
    assert (citation.start, citation.end, citation.source.title) == (1, 11, "One")


def test_an_open_bracket_does_not_collect_text_for_ever() -> None:
    finder = CitationFinder(sources())
    finder.push("【7†")
    for _ in range(1000):
        assert finder.push("x" * 10) == []
    assert finder.push("】【8†b】")[0].start == 10_004

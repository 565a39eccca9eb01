"""Citations of files by words, where an answer has none of its own."""

from __future__ import annotations

from typing import Any

from glm4.agent.tool import Sources
from glm4.agent.word_citations import cited_by_words
from glm4.documents.citations import Source

BIRDS = "# Birds\n\nThe heron nests in March. It waits for fish.\n\nOld herons are gray and very large."
SOURCES = [
    Source(7, "birds.md", file="aa", section="Birds", text=BIRDS),
    Source(8, "towers.pdf", file="bb", page=2, text="Tower number 2 is 52 meters high.\nIt stands near the river."),
    Source(9, "Web", url="http://x", text="The web says that Paris is a large city."),
]


def found(text: str, **part: Any) -> list[tuple[str, int, str]]:
    """What is cited of a text: the words that cite, the source's number, what of it is quoted."""
    parts: list[dict[str, Any]] = [
        {"kind": "reasoning", "text": "The heron nests in March."},
        {"kind": "text", "text": text, **part},
    ]
    events = cited_by_words(parts, SOURCES)
    assert all(event.part == 1 for event in events)
    cited = [event.citation for event in events]
    return [(text[one.start : one.end], one.source.n, one.source.text) for one in cited]


def test_sentences_with_the_words_of_a_file_cite_it() -> None:
    text = "Hello! Herons nest in March.\n\n- Tower number 2 is 52 meters high."
    assert found(text) == [
        ("Herons nest in March.", 7, "The heron nests in March."),
        ("- Tower number 2 is 52 meters high.", 8, "Tower number 2 is 52 meters high."),
    ]


def test_other_words_and_numbers_and_pages_of_the_web_are_not_cited() -> None:
    assert found("Tower number 2 is 53 meters high.") == []
    assert found("Paris is a large city.") == []
    assert found("I do not know that.") == []
    assert found("") == []


def test_what_a_model_cites_itself_is_left_alone() -> None:
    assert found("Herons nest in March.【8†x】", citations=[{"n": 8, "title": "x", "start": 21, "end": 26}]) == []


def test_code_cites_nothing() -> None:
    assert found("```\nThe heron nests in March.\n```\nHerons nest in March.") == [
        ("Herons nest in March.", 7, "The heron nests in March.")
    ]
    assert found("```python\nThe heron nests in March.") == []


def test_of_one_source_one_run_of_sentences_is_quoted() -> None:
    said = "The heron nests in March and it waits for fish."
    assert found(said) == [(said, 7, "The heron nests in March. It waits for fish.")]
    both = "The heron nests in March, and tower number 2 is 52 meters high."
    assert [n for _, n, _ in found(both)] == [7, 8]


def test_long_files_are_compared_as_far_as_there_is_time() -> None:
    text = "".join(f"Line {n} tells of the thing called x{n}y. " for n in range(4000))
    sources = Sources()
    for page in range(40):
        sources.add("long.pdf", file="cc", page=page, text=f"Page {page}. {text}")
    parts = [{"kind": "text", "text": "Line 77 tells of the thing called x77y. " * 300}]
    events = cited_by_words(parts, sources.all())
    assert len(events) == 100
    assert {event.citation.source.n for event in events} == {7}

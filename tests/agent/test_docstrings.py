"""Docstrings in the styles of Google, NumPy and Sphinx."""

from __future__ import annotations

import pytest

from glm4.agent.docstrings import Docstring, read_docstring

TEXT = "Find trains.\n\nSlow ones too: all of them."
FOUND = Docstring(TEXT, {"start": "where it begins, a station", "end": "where it ends"})

GOOGLE = """Find trains.

    Slow ones too: all of them.

    Args:
        start (str): where it begins,
            a station
        end: where it ends
        undescribed:

    Returns:
        list: start: of trains

    Raises:
        ValueError: end: no such station
    """
NUMPY = """Find trains.

    Slow ones too: all of them.

    Parameters
    ----------
    start : str
        where it begins,
        a station
    end : {"a", "b"}, optional
        where it ends

    Returns
    -------
    end
        of trains
    """
SPHINX = """Find trains.

    Slow ones too: all of them.

    :param str start: where it begins,
        a station
    :param end: where it ends
    :type end: str
    :returns: trains
    """


@pytest.mark.parametrize(
    "written", [GOOGLE, NUMPY, SPHINX, SPHINX.replace("\n    ", "\n"), GOOGLE.replace("    ", "\t")]
)
def test_styles(written: str) -> None:
    assert read_docstring(written) == FOUND


def test_several_names_at_once() -> None:
    said = read_docstring("A.\n\nParameters\n----------\nx, y : int\n    Its place.\n*rest\n    More.\n")
    assert said.parameters == {"x": "Its place.", "y": "Its place.", "rest": "More."}


def test_text_that_only_looks_like_a_section() -> None:
    for text in (
        "Args are not here.",
        "Parameters\n\nof a kind.",
        "Use it so:\n\n    f(x)\n\nand so on.",
        "It takes: nothing.\n:smile: is no field, as text follows.\nEnd.",
    ):
        assert read_docstring(text) == Docstring(text, {})


def test_a_section_in_the_middle_ends_where_text_goes_on() -> None:
    said = read_docstring("A.\n\nArgs:\n    x: one\n\nB.\n")
    assert said == Docstring("A.\n\nB.", {"x": "one"})


@pytest.mark.parametrize("nothing", [None, "", "   \n "])
def test_nothing(nothing: str | None) -> None:
    assert read_docstring(nothing) == Docstring("", {})

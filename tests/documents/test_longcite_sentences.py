"""Sentences as LongCite's training data has them."""

from itertools import pairwise

import pytest

from glm4.documents.longcite_sentences import longcite_starts

pytest.importorskip("nltk")


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in pairwise([*longcite_starts(text), len(text)])]


# The first two are recorded from the original, the others follow its rules.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("我们去公园！！真的吗？", ["我们去公园！", "！", "真的吗？"]),
        ("他说：“好。”然后走了。", ["他说：“好。", "”然后走了。"]),
        ("One. Two three.\n\nFour", ["One. ", "Two three.\n\n", "Four"]),
        ("no end\n\nof sentences\n\n\n\nhere", ["no end\n\n", "of sentences\n\n\n\n", "here"]),
        ("  lead. Then.", ["lead. ", "Then."]),
        ("甲；乙；", ["甲；", "乙；"]),
        ("", []),
    ],
)
def test_as_the_original(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_it_learns_abbreviations_from_the_text() -> None:
    people = "".join(f"Person {n} ({'Smith' if n % 2 else 'Jones'}), poet (b. 19{n + 10}). " for n in range(40))
    assert len(sentences(people)) == 40

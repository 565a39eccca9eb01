"""The text metrics against what sacrebleu 2.6 (chrF2, one sentence) and rouge-score 0.1.2 (rougeL) computed."""

from __future__ import annotations

import pytest

from glm4.training.text_metrics import chrf, rouge_l, words

RECORDED = [  # answer, reference, chrF2, ROUGE-L
    ("the cat sat on the mat", "the cat is on the mat", 0.645779420625287, 0.8333333333333334),
    ("Hello, world!", "hello world", 0.46123358414818775, 1.0),
    ("a", "abcdef", 0.2, 0.0),
    ("It is 21 degrees in Paris.", "The weather in Paris: 21 degrees, sunny.", 0.3909161238127661, 0.3076923076923077),
    ("", "something", 0.0, 0.0),
    ("same text", "same text", 1.0, 1.0),
    ("completely different", "42", 0.0, 0.0),
]


@pytest.mark.parametrize(("answer", "reference", "expected_chrf", "expected_rouge"), RECORDED)
def test_scores_are_those_of_the_usual_libraries(
    answer: str, reference: str, expected_chrf: float, expected_rouge: float
) -> None:
    assert chrf(answer, reference) == pytest.approx(expected_chrf, abs=1e-9)
    assert rouge_l(answer, reference) == pytest.approx(expected_rouge, abs=1e-9)


def test_chinese_is_compared_by_character() -> None:
    # sacrebleu works on characters anyway; rouge-score drops Chinese, so ROUGE-L is counted by hand: 4 of 8 in order.
    answer, reference = "北京今天天气很好", "今天北京天气不错"
    assert words("北京GLM-4，好 naïve_x") == ["北", "京", "glm", "4", "好", "naïve", "x"]
    assert chrf(answer, reference) == pytest.approx(0.19642857142857142, abs=1e-9)
    assert rouge_l(answer, reference) == 0.5


def test_both_empty_have_nothing_in_common() -> None:
    assert chrf("", "") == rouge_l("", "") == 0.0

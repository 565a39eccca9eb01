"""A GLM-4V that was trained (tools/train_tiny_vision.py) sees, end to end: folder in, answers about pictures out.

The pictures are drawn here and were not seen in training; the digits are those of scikit-learn's data set that training
left out. The checkpoint is 0.8 MB in glm-4v-9b's own layout and goes through everything that a published one does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

import golden_models as gm
import vision_pictures as vp
from glm4 import LLM, SamplingParams

CHECKPOINT = gm.GOLDEN / "vision" / "trained"
SCENES, DIGITS = 100, 200
PARAMS = SamplingParams(temperature=0.0, max_tokens=4)


class Question:
    """A kind of question about a picture, in English (0) or Chinese (1)."""

    def __init__(self, picture: vp.Picture, kind: str, language: int) -> None:
        self.picture, self.kind, self.language = picture, kind, language
        self.text = vp.QUESTIONS[kind][language]
        self.answer = picture.answers[kind][language]

    def turn(self, shown: vp.Picture | None) -> dict[str, Any]:
        """The user's message, with the picture to look at."""
        parts: list[dict[str, Any]] = [] if shown is None else [{"type": "image", "image": shown.pixels}]
        return {"role": "user", "content": [*parts, {"type": "text", "text": self.text}]}


QUESTIONS = [
    Question(picture, kind, (index + number) % 2)
    for index, picture in enumerate(vp.held_out(SCENES, DIGITS))
    for number, kind in enumerate(picture.answers)
]


def answers(llm: LLM, conversations: Sequence[list[dict[str, Any]]]) -> list[str]:
    """All conversations at once, as the engine batches them."""
    return [output.outputs[0].text.strip() for output in llm.chat(conversations, PARAMS)]


def accuracy(found: Sequence[str], questions: Sequence[Question]) -> float:
    return sum(text == question.answer for text, question in zip(found, questions, strict=True)) / len(questions)


@pytest.fixture(scope="module")
def exact() -> Iterator[LLM]:
    with LLM(str(CHECKPOINT), dtype="fp32") as llm:
        yield llm


@pytest.fixture(scope="module")
def exact_answers(exact: LLM) -> list[str]:
    return answers(exact, [[question.turn(question.picture)] for question in QUESTIONS])


def test_held_out_pictures_in_float32(exact_answers: list[str]) -> None:
    assert len(QUESTIONS) >= 300
    assert accuracy(exact_answers, QUESTIONS) >= 0.95
    for kind in vp.QUESTIONS:
        rows = [index for index, question in enumerate(QUESTIONS) if question.kind == kind]
        assert accuracy([exact_answers[i] for i in rows], [QUESTIONS[i] for i in rows]) >= 0.93, kind


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_other_formats_answer_as_well(dtype: str, exact_answers: list[str]) -> None:
    with LLM(str(CHECKPOINT), dtype=dtype) as llm:
        assert llm.info.execution is not None
        assert llm.info.execution.dtype == dtype
        found = answers(llm, [[question.turn(question.picture)] for question in QUESTIONS])
    assert accuracy(found, QUESTIONS) >= accuracy(exact_answers, QUESTIONS) - 0.01


@pytest.mark.parametrize("kind", list(vp.QUESTIONS))
def test_it_is_the_picture_that_it_answers_from(kind: str, exact: LLM) -> None:
    """With another question's picture it describes that one, and is right about its own as often as chance has it."""
    own = [question for question in QUESTIONS if question.kind == kind]
    others = own[1:] + own[:1]
    found = answers(exact, [[mine.turn(other.picture)] for mine, other in zip(own, others, strict=True)])
    shown = [Question(other.picture, kind, mine.language) for mine, other in zip(own, others, strict=True)]
    assert accuracy(found, shown) >= 0.93
    labels = Counter(question.picture.answers[kind] for question in own)
    chance = sum((count / len(own)) ** 2 for count in labels.values())
    assert chance < 0.3
    assert accuracy(found, own) < chance + 0.1


def test_a_picture_is_kept_in_later_turns(exact: LLM) -> None:
    """The second question has no picture of its own."""
    first = [question for question in QUESTIONS if question.kind == "color"]
    second = [Question(question.picture, "count", question.language) for question in first]
    conversations = [
        [one.turn(one.picture), {"role": "assistant", "content": one.answer}, two.turn(None)]
        for one, two in zip(first, second, strict=True)
    ]
    assert accuracy(answers(exact, conversations), second) >= 0.93

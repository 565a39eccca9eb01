"""instructor: typed answers by a schema, by a forced call, and by several calls at once."""

from __future__ import annotations

import instructor
import openai
import pytest
from common import KEY, STARTER, TYPED, form
from pydantic import BaseModel

MODES = [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.JSON]


def connect(mode: instructor.Mode) -> instructor.Instructor:
    return instructor.from_openai(openai.OpenAI(base_url=f"{STARTER}/v1", api_key=KEY, max_retries=0), mode=mode)


@pytest.mark.parametrize("mode", MODES[:2], ids=lambda mode: mode.name)
@pytest.mark.parametrize("kind", TYPED, ids=lambda kind: kind.__name__)
def test_typed_answer(kind: type[BaseModel], mode: instructor.Mode) -> None:
    answer = connect(mode).chat.completions.create(
        model="starter", response_model=kind, max_retries=0, temperature=0, max_tokens=400,
        messages=[{"role": "user", "content": form(kind)}],
    )  # fmt: skip
    assert isinstance(answer, kind)


class Person(BaseModel):
    """Easy enough for a model that no schema holds."""

    name: str
    age: int


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_answer_is_about_the_question(mode: instructor.Mode) -> None:
    person = connect(mode).chat.completions.create(
        model="starter", response_model=Person, max_retries=2, temperature=0, max_tokens=100,
        messages=[{"role": "user", "content": "Extract: Jason is 25 years old."}],
    )  # fmt: skip
    assert person.model_dump() == {"name": "Jason", "age": 25}


def test_an_answer_in_pieces() -> None:
    pieces = list(
        connect(instructor.Mode.TOOLS).chat.completions.create_partial(
            model="starter",
            response_model=Person,
            temperature=0,
            max_tokens=100,
            messages=[{"role": "user", "content": "Extract: Jason is 25 years old."}],
        )
    )
    assert pieces[-1].model_dump() == {"name": "Jason", "age": 25}

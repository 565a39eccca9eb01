"""Answers follow a grammar, whether the backend is given it compiled or compiles it itself."""

from __future__ import annotations

import json
import re

import pytest
from contract import GREEDY, PROMPTS, Subject

from glm4.outputs import RequestOutput
from glm4.sampling_params import SamplingParams, StructuredOutputs

DATE = r"[12][0-9]{3}-[01][0-9]-[0-3][0-9]"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{1,8}$"},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["red", "green"]},
        "flags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "count", "kind", "flags"],
    "additionalProperties": False,
}


def generated(subject: Subject, *forms: StructuredOutputs | None, temperature: float = 1.0) -> list[RequestOutput]:
    """One answer per form, in one batch; None is a greedy answer without one."""
    subject.need(grammar="structured_outputs")
    follow = SamplingParams(temperature=temperature, max_tokens=160)
    params = [GREEDY if form is None else follow.replace(structured_outputs=form) for form in forms]
    return subject.llm.generate([list(PROMPTS[0].ids) for _ in forms], params)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_a_regular_expression_is_matched(subject: Subject, temperature: float) -> None:
    forms = [StructuredOutputs(regex=DATE)] * 3
    for output in generated(subject, *forms, temperature=temperature):
        (one,) = output.outputs
        assert re.fullmatch(DATE, one.text)
        assert one.finish_reason == "stop"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_schema_is_followed(subject: Subject, temperature: float) -> None:
    for output in generated(subject, *[StructuredOutputs(json=SCHEMA)] * 3, temperature=temperature):
        (one,) = output.outputs
        assert one.finish_reason == "stop"
        value = json.loads(one.text)
        assert sorted(value) == ["count", "flags", "kind", "name"]
        assert re.fullmatch("[a-z]{1,8}", value["name"])
        assert type(value["count"]) is int
        assert 0 <= value["count"] <= 99
        assert value["kind"] in ("red", "green")
        assert 1 <= len(value["flags"]) <= 3
        assert all(flag in (True, False) for flag in value["flags"])


def test_a_choice_and_a_lark_grammar_are_followed(subject: Subject) -> None:
    lark = 'start: "<" WORD ("," WORD)* ">"\nWORD: /[a-c]{2,4}/'
    choice, written = generated(subject, StructuredOutputs(choice=["yes", "no"]), StructuredOutputs(grammar=lark))
    assert choice.outputs[0].text in ("yes", "no")
    assert re.fullmatch(r"<[a-c]{2,4}(,[a-c]{2,4})*(>|,?[a-c]*)", written.outputs[0].text)
    assert written.outputs[0].text.endswith(">") == (written.outputs[0].finish_reason == "stop")


def test_neighbors_without_a_grammar_are_not_touched(subject: Subject) -> None:
    (alone,) = generated(subject, None)
    _, beside, _ = generated(subject, StructuredOutputs(regex=DATE), None, StructuredOutputs(json=SCHEMA))
    assert beside.outputs[0].token_ids == alone.outputs[0].token_ids


def test_a_limit_cuts_a_form_short(subject: Subject) -> None:
    subject.need(grammar="structured_outputs")
    params = SamplingParams(temperature=1.0, max_tokens=4, structured_outputs=StructuredOutputs(regex=DATE))
    (output,) = subject.llm.generate(list(PROMPTS[0].ids), params)
    assert re.fullmatch(r"[12][0-9]{3}", output.outputs[0].text)
    assert output.outputs[0].finish_reason == "length"

"""Arguments are checked against the function's schema, and what is wrong is said in words a model can use."""

from __future__ import annotations

from typing import Any

import pytest

from glm4.agent.arguments import ArgumentsError, check, read_object

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 2},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "unit": {"enum": ["C", "F", None]},
        "at": {"type": ["number", "null"], "exclusiveMinimum": 0},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2},
        "who": {"anyOf": [{"type": "string"}, {"type": "object", "required": ["name"]}]},
        "fixed": {"const": True},
    },
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"tag": {"type": "object", "properties": {"k": {"type": "string"}}, "required": ["k"]}},
}


@pytest.mark.parametrize(
    "arguments",
    [
        {"city": "Beijing"},
        {"city": "Beijing", "days": 7, "unit": None, "at": 0.5, "tags": [{"k": "a"}, {"k": "b", "more": 1}]},
        {"city": "Beijing", "days": 2.0, "at": None, "who": "me", "fixed": True},
        {"city": "Beijing", "who": {"name": 1}},
    ],
)
def test_arguments_that_match(arguments: dict[str, Any]) -> None:
    check(arguments, SCHEMA)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "city is missing"),
        ({"city": 1}, "city must be of type string, not integer"),
        ({"city": "x"}, "city must be at least 2 characters long"),
        ({"city": "ab", "days": True}, "days must be of type integer, not boolean"),
        ({"city": "ab", "days": "3"}, "days must be of type integer, not string"),
        ({"city": "ab", "days": 1.5}, "days must be of type integer, not number"),
        ({"city": "ab", "days": 8}, "days must be at most 7"),
        ({"city": "ab", "unit": "K"}, 'unit must be one of ["C", "F", null]'),
        ({"city": "ab", "at": 0}, "at must be more than 0"),
        ({"city": "ab", "at": "now"}, "at must be of type number or null, not string"),
        ({"city": "ab", "tags": [{"k": 1}]}, "tags[0].k must be of type string, not integer"),
        ({"city": "ab", "tags": [{}]}, "tags[0].k is missing"),
        ({"city": "ab", "tags": [{"k": "a"}] * 3}, "tags must be at most 2 items long"),
        ({"city": "ab", "who": {}}, "who must be of type string, not object or who.name is missing"),
        ({"city": "ab", "fixed": 1}, "fixed must be true"),
        ({"city": "ab", "town": 1}, "there is no argument town (known: city, days, unit, at, tags, who, fixed)"),
    ],
)
def test_arguments_that_do_not(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        check(arguments, SCHEMA)
    assert str(caught.value) == problem


def test_all_problems_are_named_up_to_a_few() -> None:
    with pytest.raises(ArgumentsError, match="city is missing; days must be at least 1; unit must be one of"):
        check({"days": 0, "unit": 1}, SCHEMA)
    many = {"type": "object", "required": [f"p{n}" for n in range(50)]}
    with pytest.raises(ArgumentsError) as caught:
        check({}, many)
    assert str(caught.value).count("missing") == 5


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "$ref": "#/nowhere"},
        {"$ref": "https://example.org/schema"},
        {"type": "thing"},
        {"required": None, "properties": None, "additionalProperties": {}},
        {"properties": {"a": True}},
        {"$ref": "#"},
        {"additionalProperties": {"$ref": "#"}},
    ],
)
def test_schemas_that_demand_nothing_here(schema: dict[str, Any]) -> None:
    check({"a": {"b": {"c": 1}}}, schema)


def test_nothing_is_allowed_where_the_schema_is_false() -> None:
    with pytest.raises(ArgumentsError, match="a is not allowed"):
        check({"a": 1}, {"properties": {"a": False}})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "must be a JSON object, not array"),
        ("null", "must be a JSON object, not null"),
        ('"x"', "must be a JSON object, not string"),
        ("1", "must be a JSON object, not integer"),
        ("true", "must be a JSON object, not boolean"),
    ],
)
def test_text_that_is_no_object(text: str, problem: str) -> None:
    with pytest.raises(ArgumentsError, match=problem):
        read_object(text)


def test_empty_text_is_an_empty_object() -> None:
    assert read_object(" \n") == {}

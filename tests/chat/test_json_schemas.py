"""What schemas demand, in the words of the grammar library; numbers that it would change are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from glm4.chat.call_grammar import callables
from glm4.chat.json_schemas import enforceable
from glm4.errors import InvalidRequestError


def error(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param="here")


def read(schema: dict[str, Any], *, strict: bool = False) -> dict[str, Any]:
    return enforceable(schema, error, strict=strict)


@pytest.mark.parametrize(
    "nothing",
    [
        {"uniqueItems": False}, {"uniqueItems": True, "maxItems": 1}, {"propertyNames": {"type": "string"}},
        {"propertyNames": True}, {"unevaluatedProperties": True}, {"unevaluatedItems": {}}, {"dependentRequired": {}},
        {"dependentRequired": {"a": []}}, {"dependentSchemas": {"a": True}}, {"dependencies": {}}, {"not": False},
        {"if": {"type": "string"}}, {"then": False}, {"else": False}, {"minContains": 3, "maxContains": 5},
        {"contains": {"type": "string"}, "minContains": 0}, {"maxLength": 1 << 40}, {"format": "password"},
        {"title": "t", "description": "d", "default": 1 << 70, "examples": [1 << 70], "deprecated": True},
        {"readOnly": True, "writeOnly": True, "$comment": "c", "contentEncoding": "base64", "nullable": True},
        {"discriminator": {"propertyName": "kind"}, "xml": {}, "externalDocs": {}, "$dynamicAnchor": "a"},
        {"$schema": "mine"}, {"enum": None, "minimum": None},
    ],
)  # fmt: skip
def test_what_demands_nothing_is_left_out(nothing: dict[str, Any]) -> None:
    left = {"maxItems": 1} if "maxItems" in nothing else {}
    assert read({"type": "array", **nothing}, strict=True) == {"type": "array", **left}
    inner = read({"properties": {"title": {"type": "array", **nothing}}})
    assert inner == {"properties": {"title": {"type": "array", **left}}}


@pytest.mark.parametrize(
    "demand",
    [
        {"not": {"type": "string"}}, {"if": {}, "then": False}, {"contains": {}}, {"format": "date"},
        {"propertyNames": {"minLength": 2}}, {"dependentRequired": {"a": ["b"]}},
        {"unevaluatedProperties": {"type": "null"}},
        {"const": None}, {"enum": ["title", {"default": None}]}, {"contains": {}, "minContains": 0, "maxContains": 1},
    ],
)  # fmt: skip
def test_what_demands_something_stays(demand: dict[str, Any]) -> None:
    assert read(demand) == demand


def test_unique_items_are_left_to_the_model_unless_strict() -> None:
    assert read({"uniqueItems": True}) == {}
    assert read({"uniqueItems": True}, strict=True) == {"uniqueItems": True}


def test_keywords_in_the_words_of_others() -> None:
    value = {"type": "integer"}
    closed = {"properties": {"a": value}, "additionalProperties": False}
    assert read({"properties": {"a": value}, "unevaluatedProperties": False}) == closed
    assert read({"propertyNames": {"enum": ["a"]}, "additionalProperties": value}) == closed
    named = {"$defs": {"N": {"const": "a"}}, "propertyNames": {"$ref": "#/$defs/N"}, "additionalProperties": value}
    assert read(named) == {"$defs": {"N": {"const": "a"}}, **closed}
    pattern = read({"propertyNames": {"pattern": "^x"}, "additionalProperties": value})
    assert pattern == {"patternProperties": {"^x": value}, "additionalProperties": False}
    composed = {"allOf": [{"properties": {"a": value}}], "unevaluatedProperties": False}
    assert read(composed) == composed, "which properties were evaluated is not known here"


def test_alternatives_that_look_around_give_way_to_others() -> None:
    around = {"type": "string", "pattern": "^(?!a)b"}
    assert read({"anyOf": [{"type": "number"}, around]}) == {"anyOf": [{"type": "number"}]}
    assert read({"anyOf": [around]}) == {"anyOf": [around]}


# Numbers

BIG = 175928847299117063


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [BIG, BIG + 1]}, {"const": -BIG}, {"const": {"a": [1, BIG]}}, {"minimum": BIG},
        {"exclusiveMinimum": BIG}, {"maximum": -BIG}, {"const": -(1 << 63)}, {"const": 10**30}, {"const": 1e300},
        {"const": 123456789.12345679}, {"minimum": float("inf")}, {"$defs": {"x": {"items": {"const": BIG}}}},
        {"components": {"x": {"enum": [BIG]}}},
    ],
)  # fmt: skip
def test_numbers_that_would_not_stay_exact_are_refused_by_name(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=r"(enum|const|inimum|aximum).*exactly"):
        read(schema)


def test_other_numbers_are_unchanged() -> None:
    for schema in (
        {"enum": [1 << 53, -(1 << 53), 0.1, 1.5, 1e-7, 3.14159, 0.30000000000000004 / 3]},
        {"minimum": -5, "exclusiveMaximum": 0.5, "multipleOf": 0.01},
        {"minItems": 2, "maxLength": 10},
    ):
        assert read(schema) == schema
    assert read({"minItems": 2.0}) == {"minItems": 2}
    assert str(read({"const": -0.0})) == "{'const': 0.0}"


def test_ranges_of_machine_types_are_narrowed_to_what_is_enforced() -> None:
    inside = (1 << 63) - 1024
    signed = {"type": "integer", "minimum": -(1 << 63), "maximum": (1 << 63) - 1}
    assert read(signed) == {"type": "integer", "minimum": -inside, "maximum": inside}
    assert read({"type": "integer", "exclusiveMaximum": (1 << 53) + 2}) == {"type": "integer", "maximum": 1 << 53}
    both = {"type": "integer", "maximum": 5, "exclusiveMaximum": 1 << 60}
    assert read(both) == {"type": "integer", "maximum": 5}


def test_a_tool_is_named() -> None:
    tool = {"type": "function", "function": {"name": "ban", "parameters": {"properties": {"id": {"enum": [BIG]}}}}}
    with pytest.raises(InvalidRequestError, match=rf"'ban': enum has {BIG}") as caught:
        callables([tool], ())
    assert caught.value.param == "tools[0].function.parameters"


def test_levels_and_long_texts_are_bounded() -> None:
    schema: dict[str, Any] = {}
    for _ in range(101):
        schema = {"items": schema}
    with pytest.raises(InvalidRequestError, match="100 levels"):
        read(schema)
    constant: Any = 1
    for _ in range(101):
        constant = [constant]
    with pytest.raises(InvalidRequestError, match="100 levels"):
        read({"const": constant})
    with pytest.raises(InvalidRequestError, match="limit is 65536"):
        read({"enum": ["x" * 65537]})

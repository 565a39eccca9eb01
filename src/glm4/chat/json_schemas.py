"""JSON schemas as the grammar library takes them: `enforceable` keeps what they demand and drops what demands nothing.

Schemas come from pydantic, zod, MCP servers and OpenAPI tools, which write keywords that the library does not know even
where their values demand nothing (`uniqueItems: false`), and annotations. The library reads every number as a float64,
and some numbers end the process; those that it would change are refused here by name.

Formats beyond `FORMATS` are annotations, as JSON Schema has it. `uniqueItems`, which pydantic writes for every set,
cannot be enforced where there may be two items; it is refused only if the caller asks for strictness.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from glm4.errors import InvalidRequestError
from glm4.sampling_params import MAX_CONSTANT

MAX_LEVELS = 100  # the library's parser stops at 128; the program's own objects around a schema are some
EXACT = 1 << 53
_INT64 = (1 << 63) - 1024  # the largest float64 that the library enforces as an integer's bound
_MOST = 10**17  # and as a number's

FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)  # fmt: skip
"""Formats of strings that are enforced."""

_ANNOTATIONS = frozenset(
    (
        "title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly", "$comment",
        "contentEncoding", "contentMediaType", "contentSchema", "discriminator", "nullable", "xml", "externalDocs",
        "$dynamicAnchor", "$recursiveAnchor", "$vocabulary", "enumNames", "markdownDescription", "errorMessage",
        "x-guidance",
    )
)  # fmt: skip
_LOOKS_AROUND = re.compile(r"\(\?<?[=!]")
_DIALECTS = ("http://json-schema.org/", "https://json-schema.org/")
_ONE = ("items", "additionalItems", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else",
        "unevaluatedProperties", "unevaluatedItems")  # fmt: skip
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_LOWER, _UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
_BOUNDS = frozenset((*_LOWER, *_UPPER))
# Whether these demand anything depends on their values and on each other.
_DEPENDENT = frozenset(
    ("uniqueItems", "format", "$schema", "contains", "minContains", "maxContains", "if", "then", "else")
)
_UNLISTED = frozenset(("propertyNames", "unevaluatedProperties", "unevaluatedItems"))
# Keywords that look at the same value with further schemas; what they evaluate is not known here.
_IN_PLACE = ("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "dependentSchemas")
_DEMANDS_NOTHING: Mapping[str, Callable[[Any], bool]] = {
    "uniqueItems": lambda value: value is False,
    "propertyNames": lambda value: value in (True, {}, {"type": "string"}),
    "unevaluatedProperties": lambda value: value in (True, {}),
    "unevaluatedItems": lambda value: value in (True, {}),
    "dependentRequired": lambda value: isinstance(value, Mapping) and not any(value.values()),
    "dependentSchemas": lambda value: isinstance(value, Mapping) and all(v in (True, {}) for v in value.values()),
    "dependencies": lambda value: isinstance(value, Mapping) and all(v in (True, {}, []) for v in value.values()),
    "not": lambda value: value is False or value == {"not": {}},
    "maxLength": lambda value: _is_number(value) and value >= 1 << 31,
    "maxItems": lambda value: _is_number(value) and value >= 1 << 31,
    "maxProperties": lambda value: _is_number(value) and value >= 1 << 31,
}


def enforceable(
    schema: Mapping[str, Any], error: Callable[[str], InvalidRequestError], *, strict: bool = False
) -> dict[str, Any]:
    """A schema of the same texts for the grammar library.

    Args:
        schema: as the caller wrote it; not changed.
        error: makes the error for a message.
        strict: keep `uniqueItems`.

    Raises:
        InvalidRequestError: a number that the library would change, or too many levels. Other demands that cannot be
            enforced are kept, and the library refuses them by name.
    """
    return _Reader(schema, error, strict).schema(schema, 1)


class _Reader:
    def __init__(self, root: Mapping[str, Any], error: Callable[[str], InvalidRequestError], strict: bool) -> None:
        self._root, self._error, self._strict = root, error, strict

    def schema(self, given: Mapping[str, Any], level: int) -> dict[str, Any]:
        if level > MAX_LEVELS:
            raise self._error(f"the JSON schema nests too deeply; the limit is {MAX_LEVELS} levels")
        given = self._without_nothing(given)
        kept: dict[str, Any] = {}
        for name, value in given.items():
            if name in _MAPS and isinstance(value, Mapping):
                kept[name] = {key: self._any(one, level + 2) for key, one in value.items()}
            elif name in _LISTS and isinstance(value, list):
                kept[name] = [self._any(one, level + 2) for one in _supported(name, value)]
            elif name in _ONE:
                kept[name] = self._any(value, level + 1)
            elif name in ("enum", "const"):
                kept[name] = self._constant(name, value, level + 1)
            elif name in _COUNTS:
                kept[name] = int(value) if isinstance(value, float) and value.is_integer() else value
            elif name not in _BOUNDS:  # definitions elsewhere: "#/components/schemas/Pet"
                kept[name] = self._any(value, level + 1)
        if not given.keys().isdisjoint(_BOUNDS):
            self._bounds(given, kept)
        return self._names(kept)

    def _any(self, value: object, level: int) -> Any:
        return self.schema(value, level) if isinstance(value, Mapping) else value

    def _without_nothing(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords that demand something and are enforced."""
        left = {
            name: value
            for name, value in given.items()
            if name not in _ANNOTATIONS
            and (value is not None or name == "const")
            and not (name in _DEMANDS_NOTHING and _DEMANDS_NOTHING[name](value))
        }
        if left.keys().isdisjoint(_DEPENDENT):
            return left
        if left.get("uniqueItems") is True and (_at_most_one(left) or not self._strict):
            del left["uniqueItems"]
        if left.get("format") not in FORMATS:
            left.pop("format", None)
        if not str(left.get("$schema", "")).startswith(_DIALECTS):
            left.pop("$schema", None)
        if left.get("minContains") == 0 and "maxContains" not in left:
            left.pop("contains", None)
        idle = [("contains", ("minContains", "maxContains")), ("if", ("then", "else"))]
        for name, followers in idle:
            if name not in left:
                for follower in followers:
                    left.pop(follower, None)
        if "then" not in left and "else" not in left:
            left.pop("if", None)
        return left

    def _names(self, kept: dict[str, Any]) -> dict[str, Any]:
        """Keywords about unlisted names, in terms of those that the library knows."""
        if kept.keys().isdisjoint(_UNLISTED):
            return kept
        alone = kept.keys().isdisjoint(_IN_PLACE)
        for new, old in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
            if kept.get(new) is False and alone:
                kept.pop(new)
                kept.setdefault(old, False)
        names = kept.get("propertyNames")
        if not isinstance(names, Mapping) or not alone or kept.get("properties") or kept.get("patternProperties"):
            return kept
        names, value = self._resolved(names), kept.get("additionalProperties", {})
        listed = names.get("enum", [names["const"]] if "const" in names else None)
        if isinstance(listed, list) and all(isinstance(name, str) for name in listed):
            kept |= {"properties": dict.fromkeys(listed, value), "additionalProperties": False}
        elif names.keys() - {"type"} == {"pattern"}:
            kept |= {"patternProperties": {names["pattern"]: value}, "additionalProperties": False}
        elif self._strict or names.keys() - {"type", "format"}:
            return kept
        del kept["propertyNames"]
        return kept

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a reference to a definition at the top refers to."""
        parts = str(schema.get("$ref", "")).split("/")
        if len(schema) == 1 and len(parts) == 3 and parts[0] == "#" and parts[1] in ("$defs", "definitions"):
            found = (self._root.get(parts[1]) or {}).get(parts[2])
            return self._without_nothing(found) if isinstance(found, Mapping) else schema
        return schema

    def _constant(self, name: str, value: object, level: int) -> Any:
        if level > MAX_LEVELS:
            raise self._error(f"the JSON schema nests too deeply; the limit is {MAX_LEVELS} levels")
        if isinstance(value, Mapping):
            return {key: self._constant(name, one, level + 1) for key, one in value.items()}
        if isinstance(value, list):
            return [self._constant(name, one, level + 1) for one in value]
        if isinstance(value, str) and len(value) > MAX_CONSTANT:
            raise self._error(f"{name} has a text of {len(value)} characters; the limit is {MAX_CONSTANT}")
        if _is_number(value):
            return self._exact(name, value)
        return value

    def _exact(self, name: str, value: float) -> float:
        if isinstance(value, int) and abs(value) > EXACT:
            raise self._error(
                f"{name} has {_shown(value)}; whole numbers beyond 2^53 ({EXACT}) cannot be enforced exactly: let the"
                " schema ask for a string, or for an integer without a list"
            )
        if isinstance(value, float) and not _survives(value):
            raise self._error(f"{name} has {value!r}, which cannot be enforced exactly: give it fewer digits")
        return value + 0.0 if value == 0 and isinstance(value, float) else value  # -0.0 is 0

    def _bounds(self, given: Mapping[str, Any], kept: dict[str, Any]) -> None:
        """Bounds beyond 2^53 are ranges of machine types (int64): they are narrowed to what the library enforces."""
        most = _INT64 if given.get("type") == "integer" else _MOST
        for (inclusive, exclusive), sign in ((_LOWER, -1), (_UPPER, 1)):
            found: list[float] = []
            for name in (inclusive, exclusive):
                value = given.get(name)
                if _is_number(value) and abs(value) > EXACT:
                    if value * sign < 0 or (isinstance(value, float) and not math.isfinite(value)):
                        raise self._error(
                            f"{name} is {_shown(value)}; the numbers from there on cannot be enforced exactly"
                        )
                    found.append(min(most, _float_at_most(abs(int(value)) - (name == exclusive))))
                elif isinstance(value, float) and not _survives(value):
                    raise self._error(f"{name} is {value!r}, which cannot be enforced exactly: give it fewer digits")
                elif name == inclusive and _is_number(value):
                    found.append(value * sign)
                elif value is not None:
                    kept[name] = value
            if found:
                kept[inclusive] = min(found) * sign


def _supported(name: str, schemas: list[Any]) -> list[Any]:
    """Without alternatives whose pattern looks around, which no grammar can, as long as there is another one.

    What the others allow is valid. Pydantic writes a Decimal as a number, or a string with such a pattern.
    """
    if name not in ("anyOf", "oneOf"):
        return schemas
    able = [one for one in schemas if not (isinstance(one, Mapping) and _LOOKS_AROUND.search(str(one.get("pattern"))))]
    return able or schemas


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _float_at_most(value: int) -> int:
    """The largest float64 that is at most this."""
    shift = max(0, value.bit_length() - 53)
    return value >> shift << shift


def _survives(value: float) -> bool:
    """Whether the library reads a number as it is: its digits as one float64, times or by one power of ten."""
    if not abs(value) < _MOST:
        return False
    digits, _, power = repr(abs(value)).partition("e")
    whole, _, fraction = digits.partition(".")
    exponent, significand = int(power or 0) - len(fraction), float(int(whole + fraction))
    if exponent < -300:
        return False
    ten = float(f"1e{abs(exponent)}")  # the nearest float64, which `10.0 ** 23` is not
    return (significand * ten if exponent >= 0 else significand / ten) == abs(value)


def _at_most_one(schema: Mapping[str, Any]) -> bool:
    most = schema.get("maxItems")
    return _is_number(most) and most <= 1


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:40] + "…"

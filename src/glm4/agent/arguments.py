"""Arguments of calls: read, and checked against the function's schema, with words for the model on what to fix.

Checked are types, required and unknown properties, enumerations, bounds, lengths and alternatives. Other keywords
(patterns, formats, conditions) are left to the tool itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, TypeGuard

_MOST_PROBLEMS = 5
_MAX_DEPTH = 64
_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


class ArgumentsError(Exception):
    """Arguments that a function does not take; the message is for the model."""


def read_object(text: str) -> dict[str, Any]:
    """The arguments of a call; empty text is an empty object.

    Raises:
        ArgumentsError: they are not the JSON text of an object.
    """
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArgumentsError(f"the arguments are not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ArgumentsError(f"the arguments must be a JSON object, not {_kind(value)}")
    return value


def check(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Check arguments.

    Raises:
        ArgumentsError: they do not match; names the first problems.
    """
    problems = list(islice(_Checker(schema).problems(arguments, schema, "", 0), _MOST_PROBLEMS))
    if problems:
        raise ArgumentsError("; ".join(problems))


def fits(value: Any, schema: object, root: Mapping[str, Any]) -> bool:
    """Whether a value matches a schema, whose references are within `root`."""
    return next(_Checker(root).problems(value, schema, "", 0), None) is None


class _Checker:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root

    def problems(self, value: Any, schema: object, where: str, depth: int) -> Iterator[str]:
        if schema is False:
            yield f"{where or 'the object'} is not allowed"
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
            return
        if isinstance(schema.get("$ref"), str):
            yield from self.problems(value, self._target(schema["$ref"]), where, depth + 1)
        place = where or "the object"
        types = schema.get("type")
        if types is not None and not _is_one(value, types):
            wanted = " or ".join(types) if isinstance(types, list) else str(types)
            yield f"{place} must be of type {wanted}, not {_kind(value)}"
            return
        if isinstance(schema.get("enum"), list) and not any(_same(value, one) for one in schema["enum"]):
            yield f"{place} must be one of {json.dumps(schema['enum'], ensure_ascii=False)[:400]}"
        if "const" in schema and not _same(value, schema["const"]):
            yield f"{place} must be {json.dumps(schema['const'], ensure_ascii=False)[:400]}"
        yield from _bounds(value, schema, place)
        yield from self._inner(value, schema, where, depth)
        yield from self._alternatives(value, schema, where, depth)

    def _inner(self, value: Any, schema: Mapping[str, Any], where: str, depth: int) -> Iterator[str]:
        if isinstance(value, list):
            first = schema.get("prefixItems")
            first = first if isinstance(first, list) else []
            for index, one in enumerate(value):
                item = first[index] if index < len(first) else schema.get("items")
                yield from self.problems(one, item, f"{where}[{index}]", depth + 1)
        if not isinstance(value, dict):
            return
        properties = schema.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        for name in schema.get("required") or ():
            if name not in value:
                yield f"{_join(where, name)} is missing"
        for name, one in value.items():
            if name in properties:
                yield from self.problems(one, properties[name], _join(where, name), depth + 1)
            elif schema.get("additionalProperties") is False and not schema.get("patternProperties"):
                known = ", ".join(properties) or "none"
                yield f"there is no argument {_join(where, name)} (known: {known})"
            elif not schema.get("patternProperties"):
                yield from self.problems(one, schema.get("additionalProperties"), _join(where, name), depth + 1)

    def _alternatives(self, value: Any, schema: Mapping[str, Any], where: str, depth: int) -> Iterator[str]:
        for one in schema.get("allOf") or ():
            yield from self.problems(value, one, where, depth + 1)
        for key in ("anyOf", "oneOf"):
            options = schema.get(key)
            if isinstance(options, list) and options:
                found = [list(islice(self.problems(value, one, where, depth + 1), 1)) for one in options]
                if all(found):
                    yield " or ".join(dict.fromkeys(problem for problems in found for problem in problems))

    def _target(self, reference: str) -> object:
        """What a reference within the schema names; True, which allows everything, for any other."""
        found: Any = self._root
        if not reference.startswith("#"):
            return True
        for name in filter(None, reference[1:].split("/")):
            found = found.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        return True if found is None else found


def _bounds(value: Any, schema: Mapping[str, Any], place: str) -> Iterator[str]:
    if _is_number(value):
        names, size, unit = ("minimum", "maximum"), value, ""
    elif isinstance(value, str):
        names, size, unit = ("minLength", "maxLength"), len(value), " characters long"
    elif isinstance(value, list):
        names, size, unit = ("minItems", "maxItems"), len(value), " items long"
    else:
        return
    least, most = (schema.get(name) for name in names)
    if _is_number(least) and size < least:
        yield f"{place} must be at least {least}{unit}"
    if _is_number(most) and size > most:
        yield f"{place} must be at most {most}{unit}"
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if _is_number(value) and _is_number(above) and value <= above:
        yield f"{place} must be more than {above}"
    if _is_number(value) and _is_number(below) and value >= below:
        yield f"{place} must be less than {below}"


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_one(value: Any, types: object) -> bool:
    names = types if isinstance(types, list) else [types]
    for name in names:
        if not isinstance(name, str) or name not in _TYPES:
            return True  # not a type we know; nothing is demanded
        if isinstance(value, bool) and name != "boolean":
            continue
        if isinstance(value, _TYPES[name]) or (name == "integer" and isinstance(value, float) and value.is_integer()):
            return True
    return False


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _kind(value: object) -> str:
    return next(
        (
            name
            for name, types in _TYPES.items()
            if isinstance(value, types) and isinstance(value, bool) == (bool in types)
        ),
        type(value).__name__,
    )


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else str(name)

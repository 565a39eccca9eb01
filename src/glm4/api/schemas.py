"""The JSON schemas of each API, read from `schemas.json` in its folder.

The files hold JSON schemas in shorthand. A schema may be a string: a type (`string`, `count` …), the name of another
schema in the file (lowercase: copied in place; uppercase: a component of the OpenAPI document, from any API),
`x[]` for a list of x, or `x?` for x or null. An object with `properties` and no `type` is closed: it has these
properties and no others, and a property may be missing only if its name ends in `?`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

Schema = Mapping[str, Any]

_TYPES: Mapping[str, Schema] = {
    "count": {"type": "integer", "minimum": 0},
    **{name: {"type": name} for name in ("string", "integer", "number", "boolean", "object", "null")},
}


@cache
def schemas(api: str) -> Mapping[str, Schema]:
    """The schemas of one API (the name of its folder), expanded."""
    file = resources.files("glm4.api") / api / "schemas.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    return MappingProxyType({name: _read(schema, written) for name, schema in written.items()})


def components(api: str) -> dict[str, Schema]:
    """The schemas that the OpenAPI document lists by name."""
    return {name: schema for name, schema in schemas(api).items() if name[0].isupper()}


def ref(name: str) -> Schema:
    """A reference to a component."""
    return {"$ref": f"#/components/schemas/{name}"}


def closed(properties: Mapping[str, Schema], *optional: str) -> dict[str, Any]:
    """An object with exactly these properties, of which the optional ones may be missing."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def _read(schema: Any, written: Mapping[str, Any]) -> Schema:
    """Expand a schema. Raises KeyError for an unknown name."""
    if isinstance(schema, str):
        return _named(schema, written)
    full = {key: _read_member(key, value, written) for key, value in schema.items()}
    if "properties" in full and "type" not in full:
        properties = {name.rstrip("?"): value for name, value in full.pop("properties").items()}
        optional = [name[:-1] for name in schema["properties"] if name.endswith("?")]
        full = {**closed(properties, *optional), **full}
    return full


def _read_member(key: str, value: Any, written: Mapping[str, Any]) -> Any:
    """Expand one keyword of a schema: values that hold schemas are expanded, the others are left unchanged."""
    if key == "properties":
        return {name: _read(one, written) for name, one in value.items()}
    if key in ("anyOf", "oneOf"):
        return [_read(one, written) for one in value]
    return _read(value, written) if key in ("items", "additionalProperties") and value is not False else value


def _named(name: str, written: Mapping[str, Any]) -> Schema:
    if name.endswith("?"):
        return {"anyOf": [_named(name[:-1], written), _TYPES["null"]]}
    if name.endswith("[]"):
        return {"type": "array", "items": _named(name[:-2], written)}
    if name[0].isupper():
        return ref(name)
    return _read(written[name], written) if name in written else _TYPES[name]

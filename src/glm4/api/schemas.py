"""The JSON schemas of each API, read from `schemas.json` of its folder.

The files hold JSON schema in short form. A schema may be a string: a type (`string`, `count` …), the name of another
schema of the file (a lower-case one is copied to where it is named, an upper-case one is a component of the OpenAPI
document, of whichever API), `x[]` for a list of x, or `x?` for x or null. An object with `properties` and no `type` is
closed: it has these properties and no others, and a property may be missing only if its name ends in `?`.
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
    """The schemas of one API (the name of its folder), written out."""
    file = resources.files("glm4.api") / api / "schemas.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    return MappingProxyType({name: _read(schema, written) for name, schema in written.items()})


def components(api: str) -> dict[str, Schema]:
    """Those that the OpenAPI document lists by name."""
    return {name: schema for name, schema in schemas(api).items() if name[0].isupper()}


def ref(name: str) -> Schema:
    """Points to a component."""
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
    """A schema in full. Raises KeyError where a name is unknown."""
    if isinstance(schema, str):
        return _named(schema, written)
    full = {key: _read_member(key, value, written) for key, value in schema.items()}
    if "properties" in full and "type" not in full:
        properties = {name.rstrip("?"): value for name, value in full.pop("properties").items()}
        optional = [name[:-1] for name in schema["properties"] if name.endswith("?")]
        full = {**closed(properties, *optional), **full}
    return full


def _read_member(key: str, value: Any, written: Mapping[str, Any]) -> Any:
    """One keyword of a schema: those that hold schemas are read, the others stay as they are."""
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

"""The few words that the JSON schemas of answers are written with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

ANYTHING: Schema = {}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NULL: Schema = {"type": "null"}
NUMBER: Schema = {"type": "number"}
OBJECT: Schema = {"type": "object"}
STRING: Schema = {"type": "string"}
TOKENS: Schema = {"type": "array", "items": COUNT}


def ref(name: str) -> Schema:
    """Points to a component."""
    return {"$ref": f"#/components/schemas/{name}"}


def array(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


def one_of(*schemas: Schema) -> Schema:
    """Any of them."""
    return {"anyOf": list(schemas)}


def nullable(schema: Schema) -> Schema:
    """That, or null."""
    return one_of(schema, NULL)


def closed(properties: Mapping[str, Schema], *optional: str) -> Schema:
    """An object with exactly these fields, of which the optional ones may be missing."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }

"""Forms of answers that end, stall or fill the process of a grammar library that compiles them unguarded."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

LINKS: dict[str, Callable[[Schema], Schema]] = {
    "properties": lambda inner: {"type": "object", "properties": {"a": inner}, "required": ["a"]},
    "items": lambda inner: {"type": "array", "items": inner},
    "prefixItems": lambda inner: {"type": "array", "prefixItems": [inner], "minItems": 1},
    "additionalProperties": lambda inner: {"type": "object", "additionalProperties": inner},
    "patternProperties": lambda inner: {"patternProperties": {"a": inner}, "additionalProperties": False},
    "anyOf": lambda inner: {"anyOf": [inner, {"type": "null"}]},
    "oneOf": lambda inner: {"oneOf": [inner, {"type": "null"}]},
    "allOf": lambda inner: {"allOf": [inner]},
    "alone": lambda inner: inner,
    "beside": lambda inner: {**inner, "maxLength": 7},
}


def chain(link: str, count: int) -> Schema:
    """A schema whose definitions refer to each other, `count` deep."""
    definitions: Schema = {f"d{i}": LINKS[link]({"$ref": f"#/$defs/d{i + 1}"}) for i in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{count}": {"type": "string"}}}


def rules(form: str, count: int) -> str:
    """A Lark grammar of rules or terminals that refer to each other."""
    first = form.split()[0].rstrip(":")
    lines = [form.replace("NEXT", f"{first}{i + 1}").replace(f"{first}:", f"{first}{i}:", 1) for i in range(count)]
    return f"start: {first}0\n" + "\n".join(lines) + f'\n{first}{count}: "x"'


def doubled(count: int) -> Schema:
    """Each definition copies the next one twice."""
    two = [{"$ref": "NEXT", "maxLength": 9}, {"$ref": "NEXT", "minLength": 1}]
    text = json.dumps({"anyOf": two})
    definitions = {f"d{i}": json.loads(text.replace("NEXT", f"#/$defs/d{i + 1}")) for i in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{count}": {"type": "string"}}}


OVERLAPPING = " & ".join(f"/(a|b)*{'ab'[i % 2]}(a|b){{{i}}}/" for i in range(40))

HOSTILE: dict[str, dict[str, Any]] = {
    **{link: {"json": chain(link, 6000)} for link in LINKS},
    "rules": {"grammar": rules('r: "a" NEXT', 20_000)},
    "optional rules": {"grammar": rules("r: NEXT?", 20_000)},
    "terminals": {"grammar": rules('T: "a" | NEXT', 20_000)},
    "intersections": {"grammar": f"start: T\nT: {OVERLAPPING}"},
    "patterns": {"json": {"allOf": [{"type": "string", "pattern": f"a.{{{i}}}b"} for i in range(40)]}},
    "stars": {"regex": "(a*b|c)*" * 20_000},
    "copies": {"json": doubled(40)},
    "panic": {"regex": "a{1000000}"},
}

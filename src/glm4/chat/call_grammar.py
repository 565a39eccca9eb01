"""The building blocks with which dialects describe what an answer must spell: Lark syntax, as llguidance reads it.

Nothing is compiled here; `glm4.requests.grammar_compiler` does that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glm4.chat.json_schemas import enforceable
from glm4.errors import InvalidRequestError, shown
from glm4.tokenizer import Tokenizer

# One space after `:` and `,` is how models saw JSON in training (json.dumps writes it that way); not allowing more
# keeps small models from writing whitespace forever. `lenient` would ignore unknown keywords.
JSON_OPTIONS: Mapping[str, Any] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": True,
    "lenient": False,
}


# Once small models start calling tools, they do not know when to stop.
MAX_CALLS = 16

# The library follows all openings of calls at once, and gives up between 160 and 200.
MAX_FREE_TOOLS = 128


@dataclass(frozen=True)
class CallableTool:
    """A tool as a grammar sees it.

    Attributes:
        schema: of its arguments, enforceable; None for a built-in tool, whose argument is free text.
        param: the request field with the schema, for errors.
    """

    name: str
    schema: Mapping[str, Any] | None
    param: str = field(default="tools", compare=False)


def literal(text: str) -> str:
    """Exactly this text, in ordinary tokens."""
    return json.dumps(text, ensure_ascii=False)


def marker(name: str, tokenizer: Tokenizer) -> str:
    """This token, or its spelling in ordinary tokens if the vocabulary has no token of that name."""
    token = tokenizer.added_tokens.get(name)
    return literal(name) if token is None else f"<[{token.id}]>"


ANY = "/[^\\x1e]*/"
"""Text of any kind; the character left out is what parsers see in place of a marker."""

LINES = "/([^\\n\\x1e]*\\n)*/"
"""Whole lines."""


def free_text_rules(openings: Sequence[tuple[str, str, str]], committed: str) -> str:
    """Lark rules for text that is free except where a call begins in it.

    `text` matches text without a call, `called` text up to the end of a call, its first one. What opens a call may also
    be text: whether it is, is decided by what follows. So a call has to fit once it is certain that it is one, and
    everything else stays free.

    Args:
        openings: for each: a terminal that matches text, from the start of a line, up to the end of the opening; the
            same from the end of an opening that was text; and the rule that has to follow if this is a call.
        committed: a terminal: what makes a call of an opening that it follows. Calls begin with it.
    """
    # Openings are lazy: each ends the text as soon as it is complete, so no later text can contain it.
    each = range(len(openings))
    rules = [
        "text: TEXT | opened others",
        "others: (other)* OTHER_TEXT",
        "called: " + " | ".join(f"called_{i}" for i in each),
        "opened: " + " | ".join(f"opened_{i}" for i in each),
        "other: " + " | ".join(f"other_{i}" for i in each),
        f"TEXT: {ANY}",
        f"COMMITTED: {committed} {ANY}",
        f"OTHER_TEXT: {ANY} & ~COMMITTED",
    ]
    for i, (opening, later, following) in enumerate(openings):
        rules += [
            f"called_{i}: (opened_{i} | opened (other)* other_{i}) {following}",
            f"opened_{i}[lazy]: OPENED_{i}",
            f"OPENED_{i}: {opening}",
            f"other_{i}[lazy]: OTHER_{i}",
            f"LATER_{i}: {later}",
            f"OTHER_{i}: LATER_{i} & ~COMMITTED",
        ]
    return "\n".join(rules)


def takes_nothing(schema: Mapping[str, Any]) -> bool:
    """Whether an enforceable schema certainly allows an empty object."""
    return not schema.get("required") and schema.keys() <= _EMPTY_FITS


_EMPTY_FITS = frozenset(("type", "properties", "required", "additionalProperties", "$defs", "definitions", "$schema"))


def json_rule(schema: Mapping[str, Any]) -> str:
    """JSON that validates against a schema."""
    return "%json " + json.dumps(with_options(schema))


def with_options(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with our options for writing JSON; options in the schema itself are overridden."""
    return {**schema, "x-guidance": dict(JSON_OPTIONS)}


def callables(tools: Sequence[Mapping[str, Any]], builtin: Sequence[str], *, attached: int = 0) -> list[CallableTool]:
    """The tools that may be called; for duplicate names, the first one.

    Args:
        tools: checked tools in OpenAI's form.
        builtin: tool types that consist of their type alone.
        attached: how many of them, the first ones, are attached to messages.

    Raises:
        InvalidRequestError: `parameters` is not the schema of an object, or cannot be enforced; `.param` names it.
    """
    found: dict[str, CallableTool] = {}
    for index, tool in enumerate(tools, -attached):
        if tool.get("type", "function") in builtin:
            found.setdefault(tool["type"], CallableTool(tool["type"], None))
        else:
            function = tool["function"]
            param = f"tools[{index}].function.parameters" if index >= 0 else "messages"
            name, strict = function["name"], function.get("strict") is True
            if name not in found:
                schema = _arguments_schema(name, function.get("parameters"), param, strict)
                found[name] = CallableTool(name, schema, param)
    return list(found.values())


def _arguments_schema(name: str, parameters: object, param: str, strict: bool) -> Mapping[str, Any]:
    """A function's parameters as an enforceable schema of an object; if none are given, any object."""
    if parameters is None:
        return {"type": "object"}
    if not isinstance(parameters, Mapping):
        raise InvalidRequestError(f"the parameters of function {shown(name)} must be a JSON schema", param=param)
    kind = parameters.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise InvalidRequestError(
            f"the parameters of function {shown(name)} must be an object, not {shown(kind)}", param=param
        )

    def error(message: str) -> InvalidRequestError:
        return InvalidRequestError(f"the parameters of function {shown(name)}: {message}", param=param)

    return enforceable({**parameters, "type": "object"}, error, strict=strict)

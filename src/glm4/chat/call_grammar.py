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


@dataclass(frozen=True)
class Opening:
    """What opens calls in free text, unless it is part of the text: what follows decides.

    Attributes:
        begins: terminals that match text, from the start of a line, up to the end of an opening of this kind; each with
            the rule that has to follow if it is a call.
        between: a terminal for what precedes these after an opening that was text; empty if nothing has to.
        committed: a terminal: what makes a call of the opening that it follows. Calls begin with it.
    """

    begins: Sequence[tuple[str, str]]
    between: str
    committed: str


def free_text_rules(openings: Sequence[Opening]) -> str:
    """Lark rules for text that is free except where a call begins in it.

    `text` matches text without a call, `called` text up to the end of a call, its first one. A call has to fit once it
    is certain that it is one, and everything else stays free.
    """
    # Openings are lazy: each ends the text as soon as it is complete, so no later text can contain it.
    kinds = [
        (k, i, begin, then) for k, opening in enumerate(openings) for i, (begin, then) in enumerate(opening.begins)
    ]
    rules = [
        f"text: TEXT | {' | '.join(f'opened_{k} after_{k}' for k in range(len(openings)))}",
        f"called: {' | '.join(f'opened_{k} call_after_{k}' for k in range(len(openings)))}"
        + "".join(f" | opened_{k}_{i} {then}" for k, i, _, then in kinds),
        f"TEXT: {ANY}",
    ]
    for k, opening in enumerate(openings):
        each = range(len(opening.begins))
        rules.append(f"opened_{k}: {' | '.join(f'opened_{k}_{i}' for i in each)}")
        for i, (begin, _) in enumerate(opening.begins):
            rules += [f"opened_{k}_{i}[lazy]: OPENED_{k}_{i}", f"OPENED_{k}_{i}: {begin}"]
        later = range(len(openings))
        rules += [
            f"after_{k}: OTHER_TEXT_{k} | {' | '.join(f'other_{k}_{n} after_{n}' for n in later)}",
            f"call_after_{k}: {' | '.join(f'other_{k}_{n} call_after_{n}' for n in later)}"
            + "".join(f" | other_{k}_{n}_{i} {then}" for n, i, _, then in kinds),
            f"COMMITTED_{k}: {opening.committed} {ANY}",
            f"OTHER_TEXT_{k}: {ANY} & ~COMMITTED_{k}",
        ]
        for n in later:
            rules.append(f"other_{k}_{n}: {' | '.join(f'other_{k}_{n}_{i}' for i in range(len(openings[n].begins)))}")
        for n, i, begin, _ in kinds:
            rules += [
                f"other_{k}_{n}_{i}[lazy]: OTHER_{k}_{n}_{i}",
                f"LATER_{k}_{n}_{i}: {openings[n].between} {begin}",
                f"OTHER_{k}_{n}_{i}: LATER_{k}_{n}_{i} & ~COMMITTED_{k}",
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

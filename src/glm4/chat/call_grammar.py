"""The words in which dialects describe what an answer must spell: texts in Lark's notation, as llguidance reads it.

Nothing is compiled here; `glm4.requests.grammar_compiler` does that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glm4.errors import InvalidRequestError
from glm4.tokenizer import Tokenizer

# One space after `:` and `,` is how models have seen JSON in training (Python's json.dumps writes it so); where they
# may not put more, small ones cannot write whitespace forever. `lenient` would ignore keywords it does not know.
JSON_OPTIONS: Mapping[str, Any] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": True,
    "lenient": False,
}


# Small models, once they call, do not know when to stop.
MAX_CALLS = 16


@dataclass(frozen=True)
class CallableTool:
    """A tool as a grammar sees it; `schema` None is a built-in one, whose argument is free text."""

    name: str
    schema: Mapping[str, Any] | None


def literal(text: str) -> str:
    """Exactly this text, of ordinary tokens."""
    return json.dumps(text, ensure_ascii=False)


def marker(name: str, tokenizer: Tokenizer) -> str:
    """This token; the same spelt in ordinary tokens where the vocabulary has none of that name."""
    token = tokenizer.added_tokens.get(name)
    return literal(name) if token is None else f"<[{token.id}]>"


def json_rule(schema: Mapping[str, Any]) -> str:
    """JSON that validates against a schema."""
    return "%json " + json.dumps(with_options(schema))


def with_options(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with our options for writing JSON; options that it brings along itself do not count."""
    return {**schema, "x-guidance": dict(JSON_OPTIONS)}


def callables(tools: Sequence[Mapping[str, Any]], builtin: Sequence[str]) -> list[CallableTool]:
    """The tools that may be called, the first of each name.

    Args:
        tools: checked tools in OpenAI's form.
        builtin: tool types that consist of their type alone.

    Raises:
        InvalidRequestError: `parameters` is no schema of an object; `.param` is "tools".
    """
    found: dict[str, CallableTool] = {}
    for tool in tools:
        if tool.get("type", "function") in builtin:
            found.setdefault(tool["type"], CallableTool(tool["type"], None))
        else:
            name = tool["function"]["name"]
            found.setdefault(name, CallableTool(name, _arguments_schema(name, tool["function"].get("parameters"))))
    return list(found.values())


def _arguments_schema(name: str, parameters: object) -> Mapping[str, Any]:
    """A function's parameters as the schema of an object; nothing given is any object."""
    if parameters is None:
        return {"type": "object"}
    if not isinstance(parameters, Mapping):
        raise InvalidRequestError(f"the parameters of function {name!r} must be a JSON schema", param="tools")
    kind = parameters.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise InvalidRequestError(f"the parameters of function {name!r} must be an object, not {kind!r}", param="tools")
    return {**parameters, "type": "object"}

"""What models see of a server's tools: names, descriptions and schemas, all of them a stranger's.

Names are made valid and unique; descriptions are cut and lose what cannot be seen. What remains is text in the prompt:
a server can still write instructions to the model there, therefore calls ask the user unless configured otherwise.

A schema that the grammar library refuses would break every request that has it. So each is tried when the list comes:
as it is; without the keywords that are at fault; and at last as any object, with the schema as text in the description.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from glm4.agent.mcp.text import visible
from glm4.agent.tool import Function
from glm4.chat.call_grammar import with_options
from glm4.chat.json_schemas import enforceable
from glm4.errors import InvalidRequestError
from glm4.grammars.matcher import panics_as, reason
from glm4.grammars.trial import MAX_LEXER_STATES
from glm4.requests.grammar_guard import is_plain

if TYPE_CHECKING:
    import mcp_types as types

log = logging.getLogger("glm4.mcp")

MAX_NAME, _MAX_SERVER = 64, 24
MAX_DESCRIPTION, _MAX_PART = 2000, 500
MAX_SCHEMA, MAX_SCHEMAS = 16_000, 60_000
"""Characters of one tool's schema, and of all of a server: they are in the prompt of every request."""

_MAX_LEVELS = 12
_SIMPLE = frozenset(("type", "properties", "required", "items", "enum", "const", "anyOf", "description", "title"))
_TYPES = frozenset(("object", "array", "string", "number", "integer", "boolean", "null"))
_ANY = {"type": "object"}


def prefix(server: str, taken: Mapping[str, object]) -> str:
    """The first part of the names of a server's functions; no other server has it.

    It has no `__` and does not end with `_`, so that two servers cannot come to the same name.
    """
    plain = re.sub(r"_+", "_", re.sub(r"[^a-zA-Z0-9_-]", "_", server))[:_MAX_SERVER].strip("_") or "server"
    return _numbered(plain, taken, _MAX_SERVER, separator="-")


class Names:
    """Names of one server's functions. A tool keeps its name for as long as the server is known."""

    def __init__(self, server_prefix: str) -> None:
        self._prefix = server_prefix
        self._by_tool: dict[str, str] = {}
        self._by_name: dict[str, str] = {}

    def of(self, tool: str) -> str:
        """A name of letters, digits, `_` and `-`, at most 64; those that would be equal are numbered."""
        if tool not in self._by_tool:
            plain = f"{self._prefix}__{re.sub(r'[^a-zA-Z0-9_-]', '_', tool)}"[:MAX_NAME]
            name = _numbered(plain, self._by_name, MAX_NAME, separator="_")
            self._by_tool[tool], self._by_name[name] = name, tool
        return self._by_tool[tool]

    def tool(self, name: str) -> str | None:
        """The server's name of a function."""
        return self._by_name.get(name)


def functions(server: str, tools: list[types.Tool], names: Names) -> list[Function]:
    """The tools as functions. A tool that is listed twice is taken once."""
    found: dict[str, Function] = {}
    left = MAX_SCHEMAS
    for tool in tools:
        name = names.of(tool.name)
        if name not in found:
            found[name] = _function(server, name, tool, left)
            left -= len(json.dumps(found[name].parameters))
    return list(found.values())


def _function(server: str, name: str, tool: types.Tool, room: int) -> Function:
    about = visible(tool.description or tool.title or "", MAX_DESCRIPTION)
    given = _cleaned(tool.input_schema, 0)
    size = len(json.dumps(given))
    problem = f"it has {size} characters; {MAX_SCHEMA} are allowed, and {MAX_SCHEMAS} for all tools of a server"
    for tried in (given, _simplified(given, 0)) if size <= min(MAX_SCHEMA, room) else ():
        schema = {**tried, "type": "object"}
        found = why_not(schema) if _is_object(given) else "it is not the schema of an object"
        if found is None:
            return Function(name, about, schema)
        log.warning(
            "MCP server %r: the schema of %s cannot be enforced as it is: %s", server, name, visible(found, 300)
        )
        problem = found
    log.warning("MCP server %r: the arguments of %s are not constrained: %s", server, name, problem)
    text = visible(json.dumps(given, ensure_ascii=False), min(MAX_DESCRIPTION, max(room, 200)))
    return Function(name, f"{about}\nJSON schema of the arguments: {text}".strip(), dict(_ANY))


def why_not(schema: Mapping[str, Any]) -> str | None:
    """Why a request with this schema could be refused; None if it would not."""
    try:
        kept = enforceable(schema, InvalidRequestError)
    except InvalidRequestError as error:
        return str(error)
    if not is_plain(kept):
        return "it has keywords, or combinations of keywords, that may take too long to compile"
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    grammar = json.dumps({"grammars": [{"name": "start", "json_schema": with_options(kept)}]})
    try:
        with panics_as(InvalidRequestError("the grammar library fails on it")):
            # As `GrammarVocabulary.compile` does it, with a vocabulary of bytes instead of the model's.
            limits = LLParserLimits(verbose_errors=False, max_lexer_states=MAX_LEXER_STATES)
            matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0, limits=limits)
            matcher.try_consume_tokens(matcher.compute_ff_tokens())
            if not matcher.is_error() and not matcher.is_stopped():
                matcher.compute_bitmask()
            return reason(matcher.get_error()) if matcher.is_error() else None
    except InvalidRequestError as error:
        return str(error)


def _is_object(schema: Mapping[str, Any]) -> bool:
    kind = schema.get("type", "object")
    return kind == "object" or (isinstance(kind, list) and "object" in kind)


def _numbered(plain: str, taken: Mapping[str, object], most: int, *, separator: str) -> str:
    name, number = plain, 1
    while name in taken:
        number += 1
        end = f"{separator}{number}"
        name = plain[: most - len(end)] + end
    return name


def _cleaned(value: Any, level: int) -> Any:
    """A JSON value whose texts are visible and not too long; what lies too deep is left out."""
    if isinstance(value, Mapping):
        if level > 2 * _MAX_LEVELS:
            return {}
        return {_key(key): _cleaned(inner, level + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_cleaned(inner, level + 1) for inner in value] if level <= 2 * _MAX_LEVELS else []
    return visible(value, _MAX_PART) if isinstance(value, str) else value


def _key(key: object) -> str:
    return visible(str(key), 128)


def _simplified(schema: Any, level: int) -> dict[str, Any]:
    """The keywords that the library surely knows. What is left out is demanded of nobody; the server still checks."""
    if not isinstance(schema, Mapping) or level > _MAX_LEVELS:
        return {}
    kept = {key: value for key, value in schema.items() if key in _SIMPLE and _fits(key, value)}
    if "properties" in kept:
        kept["properties"] = {name: _simplified(inner, level + 1) for name, inner in kept["properties"].items()}
        kept["required"] = [name for name in kept.get("required", []) if name in kept["properties"]]
    else:
        kept.pop("required", None)
    if "items" in kept:
        kept["items"] = _simplified(kept["items"], level + 1)
    if "anyOf" in kept:  # alone, as `is_plain` wants it
        choices = [_simplified(inner, level + 1) for inner in kept["anyOf"]]
        kept = {key: kept[key] for key in ("description", "title") if key in kept} | {"anyOf": choices}
    return kept


def _fits(key: str, value: object) -> bool:
    if key == "type":
        listed = value if isinstance(value, list) else [value]
        return bool(listed) and all(isinstance(one, str) and one in _TYPES for one in listed)
    if key in ("enum", "const"):
        listed = value if key == "enum" and isinstance(value, list) else [value]
        return bool(listed) and all(one is None or isinstance(one, (str, int, bool)) for one in listed)
    if key == "required":
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if key == "anyOf":
        return isinstance(value, list) and bool(value)
    return isinstance(value, str if key in ("description", "title") else Mapping)

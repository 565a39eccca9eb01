"""OpenAI's built-in tools in /v1/responses, which this server runs: how requests offer them, and what they are here.

code_interpreter    the python tool; `container` names an interpreter that stays for the next response
web_search          the browser
file_search         vector stores; `vector_store_ids` may also name single files of /v1/files and /v1/agent/files
mcp                 a server of the operator's file, by its `server_label`; requests name no addresses
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glm4.api.fields import Reader, only, text
from glm4.errors import InvalidRequestError

WEB_SEARCH = ("web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11")


@dataclass(frozen=True)
class BuiltinTool:
    """A tool that the server runs.

    Attributes:
        kind: "code_interpreter", "web_search", "file_search" or "mcp".
        tool: its name among the server's tools.
        container: of a code interpreter: the id of the one to go on with; None makes a new one.
        files: ids of files for it.
        allowed: of an MCP server: names of its functions; None is all.
    """

    kind: str
    tool: str
    container: str | None = None
    files: tuple[str, ...] = ()
    allowed: tuple[str, ...] | None = None


def is_builtin(kind: object) -> bool:
    """Whether a tool of this type is one that the server runs."""
    return isinstance(kind, str) and kind in _READERS


def read_builtin(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A built-in tool as the response object repeats it.

    Raises:
        InvalidRequestError: it has a field that is not supported; `.param` names it.
    """
    checks = {"type": text, **_READERS[given["type"]]}
    for key in given:
        if key not in checks:
            reason = _REFUSED.get(key, "leave it out")
            raise InvalidRequestError(f"{where}.{key} is not supported: {reason}", param=f"{where}.{key}")
    read = {key: checks[key](f"{where}.{key}", value) for key, value in given.items()}
    for key in _REQUIRED.get(given["type"], ()):
        if key not in read:
            hint = "; nobody is asked here, so send never" if key == "require_approval" else ""
            raise InvalidRequestError(f"{where}.{key} is missing{hint}", param=f"{where}.{key}")
    return {**_DEFAULTS.get(given["type"], {}), **read}


def builtin_tools(tools: Sequence[Mapping[str, Any]]) -> list[BuiltinTool]:
    """The built-in tools among those of a request."""
    return [_MAKERS[tool["type"]](tool) for tool in tools if is_builtin(tool["type"])]


def _container(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping) or value.get("type") != "auto":
        raise InvalidRequestError(f'{name} must be the id of a container, or {{"type": "auto"}}', param=name)
    known = {key: one for key, one in value.items() if one is not None}
    if set(known) - {"type", "file_ids"}:
        other = sorted(set(known) - {"type", "file_ids"})[0]
        raise InvalidRequestError(f"{name}.{other} is not supported; leave it out", param=f"{name}.{other}")
    return {**known, **({"file_ids": _strings(f"{name}.file_ids", known["file_ids"])} if "file_ids" in known else {})}


def _strings(name: str, value: Any) -> list[str]:
    if not isinstance(value, list) or len(value) > 64 or not all(isinstance(one, str) for one in value):
        raise InvalidRequestError(f"{name} must be a list of at most 64 strings", param=name)
    return value


def _names(name: str, value: Any) -> Any:
    """Names of an MCP server's functions: a list, or {"tool_names": a list}."""
    if isinstance(value, Mapping):
        if set(value) - {"tool_names", "read_only"} or value.get("read_only"):
            raise InvalidRequestError(f"{name} takes tool_names only", param=name)
        return {"tool_names": _strings(f"{name}.tool_names", value.get("tool_names", []))}
    return _strings(name, value)


_READERS: Mapping[str, Mapping[str, Reader]] = {
    "code_interpreter": {"container": _container},
    # How much of a page a model reads is decided by its context.
    **{
        name: {"search_context_size": only("low", "medium", "high"), "external_web_access": only(True)}
        for name in WEB_SEARCH
    },
    "file_search": {"vector_store_ids": _strings},
    "mcp": {
        "server_label": text,
        "server_description": text,
        "allowed_tools": _names,
        "require_approval": only("never"),
    },
}
_REQUIRED = {"file_search": ("vector_store_ids",), "mcp": ("server_label", "require_approval")}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"code_interpreter": {"container": {"type": "auto"}}}
_REFUSED = {
    "server_url": "the operator of this server lists its MCP servers; name one by its server_label",
    "connector_id": "there are no connectors here",
    "headers": "the operator of this server lists its MCP servers",
    "authorization": "the operator of this server lists its MCP servers",
    "user_location": "the search engine does not take one",
    "filters": "name sites or files in the question",
    "max_num_results": "the model gets the best few passages, and can ask for more",
    "ranking_options": "passages are found by their words",
}


def _code_interpreter(tool: Mapping[str, Any]) -> BuiltinTool:
    container = tool.get("container", {"type": "auto"})
    if isinstance(container, str):
        return BuiltinTool("code_interpreter", "python", container)
    return BuiltinTool("code_interpreter", "python", files=tuple(container.get("file_ids", ())))


def _web_search(tool: Mapping[str, Any]) -> BuiltinTool:
    return BuiltinTool("web_search", "browser")


def _file_search(tool: Mapping[str, Any]) -> BuiltinTool:
    return BuiltinTool("file_search", "files", files=tuple(tool["vector_store_ids"]))


def _mcp(tool: Mapping[str, Any]) -> BuiltinTool:
    names = tool.get("allowed_tools")
    names = names["tool_names"] if isinstance(names, Mapping) else names
    return BuiltinTool("mcp", f"mcp:{tool['server_label']}", allowed=None if names is None else tuple(names))


_MAKERS: Mapping[str, Callable[[Mapping[str, Any]], BuiltinTool]] = {
    "code_interpreter": _code_interpreter,
    **dict.fromkeys(WEB_SEARCH, _web_search),
    "file_search": _file_search,
    "mcp": _mcp,
}

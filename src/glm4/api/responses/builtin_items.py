"""Items of built-in tool calls: written as they happen, and read from the input of later requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glm4.agent.files import StoredFile
from glm4.api.responses.item_writing import Emit
from glm4.api.responses.items import Item, item_id

FILES = "/v1/agent/files/"
"""Where files that a tool made are."""


@dataclass(frozen=True)
class Kind:
    """What a function of a built-in tool is in this API.

    Attributes:
        kind: see `BuiltinTool`; "function" is run by the client.
        label: of an MCP server.
        container: of a code interpreter.
    """

    kind: str
    label: str = ""
    container: str = ""


@dataclass
class BuiltinItem:
    """A call that the server runs, as its item and its events.

    Attributes:
        name: of the function, as the model called it.
    """

    place: int
    kind: Kind
    name: str
    arguments: str = ""
    output: list[str] = field(default_factory=list)
    files: list[StoredFile] = field(default_factory=list)
    id: str = ""
    ran: bool = False

    def __post_init__(self) -> None:
        self.id = item_id(_KINDS[self.kind.kind].prefix)

    @property
    def _at(self) -> dict[str, Any]:
        return {"output_index": self.place, "item_id": self.id}

    def _item(self, status: str) -> Item:
        row = _KINDS[self.kind.kind]
        return {"id": self.id, "type": f"{self.kind.kind}_call", "status": status, **row.fields(self)}

    def begin(self, emit: Emit) -> None:
        """Its first events."""
        emit("response.output_item.added", output_index=self.place, item=self._item("in_progress"))
        emit(f"response.{self.kind.kind}_call.in_progress", **self._at)

    def delta(self, emit: Emit, arguments: str) -> None:
        """More of its arguments."""
        self.arguments += arguments
        name = _KINDS[self.kind.kind].delta
        if arguments and name and not self._wrapped:
            emit(f"response.{name}.delta", **self._at, delta=arguments)

    @property
    def _wrapped(self) -> bool:
        """The arguments are JSON text with the code in it, which is shown when it is whole."""
        return self.kind.kind == "code_interpreter" and self.arguments.lstrip().startswith("{")

    def run(self, emit: Emit) -> None:
        """It begins to run."""
        self.ran = True
        self._written(emit)
        if running := _KINDS[self.kind.kind].running:
            emit(f"response.{self.kind.kind}_call.{running}", **self._at)

    def _written(self, emit: Emit) -> None:
        """The model has written the whole call."""
        if self.kind.kind == "code_interpreter":
            code = code_of(self.arguments)
            if self._wrapped:
                emit("response.code_interpreter_call_code.delta", **self._at, delta=code)
            emit("response.code_interpreter_call_code.done", **self._at, code=code)
        elif self.kind.kind == "mcp":
            emit("response.mcp_call_arguments.done", **self._at, arguments=self.arguments)

    def end(self, emit: Emit, status: str, *, failed: bool = False) -> Item:
        """Its last events; returns the finished item."""
        kind = self.kind.kind
        if not self.ran:
            self._written(emit)
            status = status if self.output else "incomplete"  # the turn ended before it could run
        if status == "completed":
            emit(f"response.{kind}_call.{'failed' if failed and kind == 'mcp' else 'completed'}", **self._at)
            # Code that raises an error was run, and its output says so.
            status = "failed" if failed and kind != "code_interpreter" else status
        item = self._item(status)
        if kind == "mcp" and status != "incomplete":
            text = "".join(self.output)
            error = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": text}]}
            item |= {"error": error} if failed else {"output": text}
        emit("response.output_item.done", output_index=self.place, item=item)
        return item


def code_of(arguments: str) -> str:
    """The code in a call of the python tool, which is raw in GLM-4's own form."""
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    code = given.get("code") if isinstance(given, dict) else None
    return code if isinstance(code, str) else arguments


def _code_fields(item: BuiltinItem) -> dict[str, Any]:
    text = "".join(item.output)
    outputs: list[dict[str, Any]] = [{"type": "logs", "logs": text}] if text else []
    pictures = (file for file in item.files if file.media_type.startswith("image/"))
    outputs += [{"type": "image", "url": FILES + file.sha256} for file in pictures]
    return {"code": code_of(item.arguments), "container_id": item.kind.container, "outputs": outputs}


def _search_fields(item: BuiltinItem) -> dict[str, Any]:
    return {"action": _action(item.arguments)}


def _action(arguments: str) -> dict[str, Any]:
    """What the browser did: as JSON arguments say, or GLM-4's own call expressions."""
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError):
        given = None
    if isinstance(given, dict):
        if "url" in given:
            return {"type": "open_page", "url": str(given["url"])}
        if "ids" in given:
            return {"type": "open_page", "url": None}
        return {"type": "search", "query": str(given.get("query", ""))}
    text = arguments.strip()
    if text.startswith(("open_url", "mclick")):
        return {"type": "open_page", "url": _quoted(text)}
    return {"type": "search", "query": _quoted(text) or text}


def _quoted(text: str) -> str | None:
    parts = text.replace("'", '"').split('"')
    return parts[1] if len(parts) > 2 else None


def _file_fields(item: BuiltinItem) -> dict[str, Any]:
    try:
        given = json.loads(item.arguments)
    except (ValueError, RecursionError):
        given = {}
    query = given.get("query", given.get("name", "")) if isinstance(given, dict) else ""
    return {"queries": [str(query)] if query else [], "results": None}


def _mcp_fields(item: BuiltinItem) -> dict[str, Any]:
    name = item.name.removeprefix(f"{item.kind.label}__")
    return {
        "server_label": item.kind.label, "name": name, "arguments": item.arguments, "output": None, "error": None,
        "approval_request_id": None,
    }  # fmt: skip


@dataclass(frozen=True)
class _Row:
    prefix: str
    fields: Callable[[BuiltinItem], dict[str, Any]]
    delta: str = ""
    running: str = ""


_KINDS: Mapping[str, _Row] = {
    "code_interpreter": _Row("ci", _code_fields, "code_interpreter_call_code", "interpreting"),
    "web_search": _Row("ws", _search_fields, running="searching"),
    "file_search": _Row("fs", _file_fields, running="searching"),
    "mcp": _Row("mcp", _mcp_fields, "mcp_call_arguments"),
}


def listed_tools(label: str, functions: Sequence[Mapping[str, Any]]) -> Item:
    """The item that lists the functions of an MCP server."""
    tools = [
        {
            "name": one["name"].removeprefix(f"{label}__"),
            "description": one.get("description"),
            "input_schema": one.get("parameters", {}),
            "annotations": None,
        }
        for one in functions
    ]
    return {"id": item_id("mcpl"), "type": "mcp_list_tools", "server_label": label, "tools": tools, "error": None}

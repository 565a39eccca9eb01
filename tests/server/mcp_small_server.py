"""A small MCP server for tests, which starts fast: `add`, `fail`, `echo`, and `hang`, which never ends."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

NUMBER = {"type": "integer"}
TOOLS: dict[str, dict[str, Any]] = {
    "add": {"a": NUMBER, "b": NUMBER},
    "fail": {},
    "echo": {"text": {"type": "string"}},
    "hang": {},
}


def result(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if name == "hang":
        time.sleep(3600)
    if name == "fail":
        return {"content": [{"type": "text", "text": "there is no such file"}], "isError": True}
    text = json.dumps({"sum": arguments["a"] + arguments["b"]}) if name == "add" else str(arguments["text"])
    return {"content": [{"type": "text", "text": text}]}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    if request["method"] == "initialize":
        info = {"name": "small", "version": "0"}
        return {"result": {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info}}
    if request["method"] == "tools/list":
        listed = []
        for name, properties in TOOLS.items():
            schema = {"type": "object", "properties": properties, "required": list(properties)}
            listed.append({"name": name, "description": f"{name} it", "inputSchema": schema})
        return {"result": {"tools": listed}}
    if request["method"] == "tools/call":
        return {"result": result(request["params"]["name"], request["params"]["arguments"])}
    return {"error": {"code": -32601, "message": "Method not found"}}


for line in sys.stdin:
    request = json.loads(line)
    if "id" in request:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": request["id"], **answer(request)}) + "\n")
        sys.stdout.flush()

"""An MCP server that does what one may not, in the form that its first argument names. Standard library only.

It speaks the handshake of 2025-06-18, line by line. The tools are named like the forms of `CALLS`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FORM = sys.argv[1]
ARGUMENTS = sys.argv[2:]
CALLS = (
    "ok", "crash", "hang", "slow", "huge", "endless_line", "notifications", "stderr", "garbage", "not_a_result", "deaf",
    "mute", "late",
)  # fmt: skip


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def answer(request: dict[str, Any], result: dict[str, Any]) -> None:
    say({"id": request["id"], "result": result})


def text(value: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": value}]}


def tool(name: str, schema: Any = None, description: Any = "") -> dict[str, Any]:
    return {"name": name, "description": description, "inputSchema": {"type": "object"} if schema is None else schema}


def tools() -> list[dict[str, Any]]:
    if FORM == "many":
        return [tool(f"tool{i}", description="x" * 10_000) for i in range(1000)]
    if FORM == "schemas":
        return [tool(name, schema) for name, schema in json.loads(Path(ARGUMENTS[0]).read_text()).items()]
    if FORM == "names":
        return [tool(name, description=about) for name, about in json.loads(Path(ARGUMENTS[0]).read_text())]
    if FORM == "bad_list":
        return [{"name": 7}]
    return [tool(name) for name in CALLS]


def call(request: dict[str, Any]) -> None:
    name = request["params"]["name"]
    if name == "crash":
        sys.stderr.write("Traceback: the disk is on fire\n")
        sys.stderr.flush()
        os._exit(3)
    elif name == "hang":
        time.sleep(3600)
    elif name == "mute":
        pass
    elif name == "slow":
        time.sleep(0.5)
        answer(request, text("at last"))
    elif name == "huge":
        answer(request, text("x" * 1_000_000))
    elif name == "endless_line":
        while True:
            sys.stdout.write("x" * 1_000_000)
    elif name == "notifications":
        token = request["params"]["_meta"]["progressToken"]
        for i in range(5000):
            say({"method": "notifications/progress", "params": {"progressToken": token, "progress": i}})
            say({"method": "notifications/unknown", "params": {"i": i}})
        answer(request, text("done"))
    elif name == "stderr":
        sys.stderr.write("e" * 10_000_000)
        sys.stderr.flush()
        answer(request, text("done"))
    elif name == "garbage":
        sys.stdout.write(
            'Listening on port 1\n\n{"jsonrpc": "2.0", "id"\n[1, 2]\n\xff\udcff null\n' + "[" * 10_000 + "\n"
        )
        answer(request, text("done"))
    elif name == "not_a_result":
        answer(request, {"content": "a text"})
    elif name == "deaf":
        os.close(0)
        time.sleep(3600)
    elif name == "late":  # an answer, and then the end, with a child that keeps the output open
        subprocess.Popen(["sleep", "3600"])
        answer(request, text("just in time"))
        os._exit(0)
    else:
        answer(request, text(f"{name} {os.getpid()}"))


def start() -> None:
    if FORM == "crash_at_start":
        sys.exit("no license file")
    if FORM == "hang_at_start":
        time.sleep(3600)
    if FORM == "not_mcp":
        print("220 mail.example.org ESMTP")
    if FORM == "children":  # of the group, and of a session of its own, whose parent has ended
        seconds = ARGUMENTS[0]
        subprocess.Popen(["sleep", seconds])
        program = f"import subprocess; subprocess.Popen(['sleep', '{seconds}'], start_new_session=True)"
        subprocess.run([sys.executable, "-c", program])
    if FORM == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def main() -> None:
    sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    start()
    for line in sys.stdin:
        request = json.loads(line)
        method = request.get("method")
        if method == "initialize":
            version = "1999-01-01" if FORM == "wrong_version" else "2025-06-18"
            info = {"name": "raw", "version": "0"}
            answer(request, {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info})
        elif method == "tools/list":
            if FORM == "endless_pages":
                answer(request, {"tools": [tool(f"t{time.monotonic_ns()}")], "nextCursor": "more"})
            else:
                answer(request, {"tools": tools()})
        elif method == "tools/call":
            call(request)
        elif "id" in request and method:
            say({"id": request["id"], "error": {"code": -32601, "message": "Method not found"}})
    if FORM == "stubborn":
        time.sleep(3600)


main()

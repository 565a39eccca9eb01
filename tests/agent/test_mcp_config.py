"""The `mcpServers` JSON: what desktop clients write is understood, and what is wrong is named by file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glm4.agent.mcp.config import McpServer, load_servers, read_servers
from glm4.errors import InvalidRequestError

ENVIRONMENT = {"TOKEN": "s3cret", "EMPTY": ""}


def read(**entry: Any) -> McpServer:
    [server] = read_servers({"mcpServers": {"files": entry}}, "mcp.json", Path("/etc/glm4"), ENVIRONMENT)
    return server


def test_a_file_of_a_desktop_client(tmp_path: Path) -> None:
    path = tmp_path / "claude_desktop_config.json"
    servers = {
        "files": {
            "command": "npx",
            "args": ["-y", "server-files", "/data"],
            "env": {"KEY": "${TOKEN}"},
            "cwd": "x",
        },
        "search": {
            "type": "http",
            "url": "http://10.0.0.3:80/mcp?k=${env:TOKEN}",
            "headers": {"X-Key": "${NONE:-no}"},
        },
        "old": {"command": "${NOT_SET}", "disabled": True},
    }
    path.write_text(json.dumps({"globalShortcut": "Ctrl+Space", "mcpServers": servers}))
    files, search = load_servers(path, ENVIRONMENT)
    assert (files.command, files.args) == ("npx", ("-y", "server-files", "/data"))
    assert (files.env, files.cwd) == ({"KEY": "s3cret"}, tmp_path / "x")
    assert (files.approval, files.timeout, files.tools) == ("ask", 60.0, None)
    assert (search.url, search.headers) == ("http://10.0.0.3:80/mcp?k=s3cret", {"X-Key": "no"})
    assert search.place == "http://10.0.0.3:80/mcp"
    assert "s3cret" not in repr((files, search))


def test_only_values_that_ask_for_it_are_expanded() -> None:
    server = read(command="run", args=["$TOKEN", "%TOKEN%", "a${EMPTY}b", "${TOKEN}-${TOKEN}"])
    assert server.args == ("$TOKEN", "%TOKEN%", "ab", "s3cret-s3cret")


def test_what_a_variable_holds_is_not_expanded_again() -> None:
    given = {"mcpServers": {"a": {"command": "${A}"}}}
    [server] = read_servers(given, "x", environment={"A": "${B}", "B": "no"})
    assert server.command == "${B}"


def test_approvals_and_allowed_tools() -> None:
    server = read(
        command="run",
        approval="always",
        toolApprovals={"write": "ask", "delete": "never"},
        tools=["read", "write", "delete"],
        timeout=5,
        startupTimeout=9,
    )
    assert [server.approval_of(tool) for tool in ("read", "write", "delete")] == ["always", "ask", "never"]
    assert [server.offers(tool) for tool in ("read", "write", "delete", "other")] == [True, True, False, False]
    assert (server.timeout, server.startup) == (5.0, 9.0)


@pytest.mark.parametrize(
    ("entry", "key", "problem"),
    [
        ({}, "files", 'either "command"'),
        ({"command": "a", "url": "http://b"}, "files", 'either "command"'),
        ({"command": "a", "alwaysAllow": []}, "files.alwaysAllow", "is not a field"),
        ({"command": ""}, "files.command", "empty"),
        ({"command": ["a"]}, "files.command", "must be a text"),
        ({"command": "a", "args": "b"}, "files.args", "must be a list"),
        ({"command": "a", "args": [1]}, "files.args[0]", "must be a text"),
        ({"command": "a", "args": ["${MISSING}"]}, "files.args[0]", "MISSING, which is not set"),
        ({"command": "a", "args": ["${workspaceFolder}/x y"]}, "files.args[0]", "workspaceFolder"),
        ({"command": "a", "args": ["${1+1}"]}, "files.args[0]", "not the name"),
        ({"command": "a", "env": {"B": 1}}, "files.env.B", "must be a text"),
        ({"command": "a", "env": {"B=C": ""}}, "files.env.B=C", "environment variable"),
        ({"command": "a\0b"}, "files.command", "must be a text"),
        ({"command": "a", "headers": {}}, "files.headers", 'does not go with "command"'),
        ({"command": "a", "type": "http"}, "files.type", 'needs "url"'),
        ({"command": "a", "disabled": "yes"}, "files.disabled", "true or false"),
        ({"url": "http://b", "type": "sse"}, "files.type", "replaced"),
        ({"url": "http://b", "type": "ws"}, "files.type", '"stdio" or "http"'),
        ({"url": "http://b", "type": []}, "files.type", "must be a text"),
        ({"url": "http://b", "cwd": "/"}, "files.cwd", 'does not go with "url"'),
        ({"url": "file:///etc/passwd"}, "files.url", "http:// or https://"),
        ({"url": "http://"}, "files.url", "http:// or https://"),
        ({"url": "http://b:99999/"}, "files.url", "http:// or https://"),
        ({"url": "http://b", "headers": {"A": "b\r\nC: d"}}, "files.headers.A", "not a header"),
        ({"url": "http://b", "headers": {"A B": "c"}}, "files.headers.A B", "not a header"),
        ({"url": "http://b", "timeout": 600_000}, "files.timeout", "seconds"),
        ({"url": "http://b", "timeout": True}, "files.timeout", "seconds"),
        ({"url": "http://b", "timeout": float("nan")}, "files.timeout", "seconds"),
        ({"url": "http://b", "approval": "yes"}, "files.approval", '"always", "ask" or "never"'),
        ({"url": "http://b", "toolApprovals": {"x": 1}}, "files.toolApprovals.x", '"always", "ask" or "never"'),
        (7, "files", "must be an object"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(entry: Any, key: str, problem: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_servers({"mcpServers": {"files": entry}}, "mcp.json", environment=ENVIRONMENT)
    assert caught.value.param == f"mcpServers.{key}"
    assert str(caught.value).startswith(f"mcp.json: mcpServers.{key} ")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not valid JSON"),
        ("[]", "must have the form"),
        ('{"servers": {}}', "must have the form"),
        ('{"mcpServers": {"a": {"command": "b"}, "a": {"command": "c"}}}', "'a' is there twice"),
        ("[" * 100_000, "JSON|nests"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "mcp.json"
    path.write_text(text)
    with pytest.raises(InvalidRequestError, match=problem) as caught:
        load_servers(path)
    assert str(path) in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"none\.json cannot be read: No such file"):
        load_servers(tmp_path / "none.json")

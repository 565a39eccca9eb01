"""`McpServer`: a server as the `mcpServers` JSON of desktop clients describes it, with a few fields of ours.

Only this file adds servers: nothing that a model, a page or a server says does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

from glm4.agent.tool import Approval
from glm4.errors import InvalidRequestError, shown

DEFAULT_TIMEOUT, DEFAULT_STARTUP = 60.0, 60.0
_MOST_SECONDS = 24 * 3600
_VARIABLE = re.compile(r"\$\{(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_KINDS = {
    "stdio": "command",
    "http": "url",
    "streamable-http": "url",
    "streamableHttp": "url",
    "streamable_http": "url",
}


@dataclass(frozen=True)
class McpServer:
    """A server: a command to start, or the URL of one that runs.

    Attributes:
        command, args: of a stdio server; an empty command means HTTP.
        env: its environment beside PATH, HOME and LANG.
        cwd: its working folder; None is this process's.
        url, headers: of a streamable HTTP server. The URL is the administrator's own, so it may name private addresses.
        approval: whether its functions run without asking.
        approvals: of single functions, by the server's names; "never" hides a function.
        tools: the only functions that are offered; None offers all.
        timeout: seconds that a call may take.
        startup: seconds until it must have answered with its list of functions. `npx` and `uvx` download in that time.
    """

    name: str
    command: str = ""
    args: tuple[str, ...] = field(default=(), repr=False)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: Path | None = None
    url: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    approval: Approval = "ask"
    approvals: Mapping[str, Approval] = field(default_factory=dict)
    tools: tuple[str, ...] | None = None
    timeout: float = DEFAULT_TIMEOUT
    startup: float = DEFAULT_STARTUP

    def approval_of(self, tool: str) -> Approval:
        """Of one of its functions, by the server's name."""
        return self.approvals.get(tool, self.approval)

    def offers(self, tool: str) -> bool:
        """Whether models may see this function."""
        return (self.tools is None or tool in self.tools) and self.approval_of(tool) != "never"

    @property
    def place(self) -> str:
        """Where it is, without what may be secret: arguments, passwords, queries."""
        if self.command:
            return self.command
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def load_servers(path: Path, environment: Mapping[str, str] | None = None) -> list[McpServer]:
    """Read a file of the form {"mcpServers": {NAME: {"command": …} or {"url": …}}}; other members are left alone.

    Args:
        environment: what `${NAME}` in texts refers to; by default this process's.

    Raises:
        InvalidRequestError: it cannot be read, or something in it is wrong; names the file and the key.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repetition)
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InvalidRequestError(f"{path} is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequestError(f"{path} nests too deeply") from None
    return read_servers(data, str(path), path.absolute().parent, environment)


def read_servers(
    data: object, where: str, folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> list[McpServer]:
    """The same of what is read already.

    Args:
        where: what errors call it.
        folder: that a relative `cwd` is relative to; by default the working folder.
    """
    servers = data.get("mcpServers") if isinstance(data, Mapping) else None
    if not isinstance(servers, Mapping):
        raise InvalidRequestError(f'{where} must have the form {{"mcpServers": {{"NAME": {{"command": "…"}}}}}}')
    given = os.environ if environment is None else environment
    readers = (_Reader(name, entry, where, folder or Path.cwd(), given) for name, entry in servers.items())
    return [server for server in (reader.server() for reader in readers) if server is not None]


class _Reader:
    """Reads one entry; every method raises an error that names the key."""

    def __init__(self, name: str, entry: Any, where: str, folder: Path, environment: Mapping[str, str]) -> None:
        self._name, self._entry, self._where = name, entry, where
        self._folder, self._environment = folder, environment

    def server(self) -> McpServer | None:
        """The server; None if it is disabled."""
        if not isinstance(self._entry, Mapping):
            raise self._error("", f"must be an object, not {shown(self._entry)}")
        for key in self._entry:
            if key not in _FIELDS:
                known = ", ".join(sorted(_FIELDS))
                raise self._error(key, f"is not a field that glm4 knows; remove it. Known are: {known}")
        if self._get("disabled", bool, False):
            return None
        self._check_kind()
        values = {name: read(self, key) for key, (name, read) in _FIELDS.items() if name and key in self._entry}
        return McpServer(self._name, **values)

    def _check_kind(self) -> None:
        kind = self._get("type", str, "stdio" if "command" in self._entry else "http")
        if kind == "sse":
            raise self._error("type", 'is "sse", which MCP has replaced; use "http" with the URL of streamable HTTP')
        if kind not in _KINDS:
            raise self._error("type", f'must be "stdio" or "http", not {shown(kind)}')
        given = [key for key in ("command", "url") if key in self._entry]
        if len(given) != 1:
            raise self._error("", 'must have either "command", for a program, or "url", for an HTTP server')
        if _KINDS[kind] != given[0]:
            raise self._error("type", f'is {shown(kind)}, which needs "{_KINDS[kind]}", not "{given[0]}"')
        for key in ("args", "env", "cwd") if given == ["url"] else ("headers",):
            if key in self._entry:
                raise self._error(key, f'does not go with "{given[0]}"')

    def text(self, key: str) -> str:
        """A text that is not empty."""
        value = self._expanded(key, self._get(key, str))
        if not value.strip():
            raise self._error(key, "is empty")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        return tuple(self._expanded(f"{key}[{i}]", value) for i, value in enumerate(self._get(key, list)))

    def map(self, key: str) -> dict[str, str]:
        """An object of texts."""
        found = {name: self._expanded(f"{key}.{name}", value) for name, value in self._get(key, Mapping).items()}
        for name, value in found.items():
            if key == "headers" and not (re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) and _is_header(value)):
                raise self._error(f"{key}.{name}", "is not a header that HTTP allows")
            if key == "env" and (not name or "=" in name):
                raise self._error(f"{key}.{name}", "is not a name of an environment variable")
        return found

    def folder(self, key: str) -> Path:
        """A folder, relative to that of the file."""
        return self._folder / Path(self.text(key)).expanduser()

    def url(self, key: str) -> str:
        """An http or https URL."""
        value = self.text(key)
        try:
            parts = urlsplit(value)
            fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            fits = False
        if not fits or not value.isprintable() or " " in value:
            raise self._error(key, "must be an http:// or https:// URL")
        return value

    def seconds(self, key: str) -> float:
        """A number of seconds."""
        value = self._entry[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= _MOST_SECONDS:
            raise self._error(key, f"must be a number of seconds up to {_MOST_SECONDS}, not {shown(value)}")
        return float(value)

    def approval(self, key: str) -> Approval:
        """Of all functions."""
        return self._approval(key, self._entry[key])

    def approvals(self, key: str) -> dict[str, Approval]:
        """Of single functions."""
        return {tool: self._approval(f"{key}.{tool}", value) for tool, value in self._get(key, Mapping).items()}

    def _approval(self, key: str, value: object) -> Approval:
        for known in get_args(Approval):
            if value == known:
                return known  # type: ignore[no-any-return]
        raise self._error(key, f'must be "always", "ask" or "never", not {shown(value)}')

    def _get(self, key: str, kind: type, default: Any = None) -> Any:
        value = self._entry.get(key, default)
        if not isinstance(value, kind):
            raise self._error(key, f"must be {_KIND_NAMES[kind]}, not {shown(value)}")
        return value

    def _expanded(self, key: str, value: object) -> str:
        """With `${NAME}` and `${NAME:-default}` replaced; `${env:NAME}` is the same as `${NAME}`."""
        if not isinstance(value, str) or "\0" in value:
            raise self._error(key, f"must be a text, not {shown(value)}")

        def replaced(match: re.Match[str]) -> str:
            found = self._environment.get(match[1], match[2])
            if found is None:
                raise self._error(key, f"asks for the environment variable {match[1]}, which is not set")
            return found

        if "${" in _VARIABLE.sub("", value):
            raise self._error(key, "has a ${…} that is not the name of an environment variable")
        return _VARIABLE.sub(replaced, value)

    def _error(self, key: str, problem: str) -> InvalidRequestError:
        place = ".".join(filter(None, ("mcpServers", self._name, key)))
        return InvalidRequestError(f"{self._where}: {place} {problem}", param=place)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {shown(repeated)} is there twice")
    return found


def _is_header(value: str) -> bool:
    return value.isascii() and value.isprintable() and value == value.strip()


_KIND_NAMES: Mapping[type, str] = {bool: "true or false", str: "a text", list: "a list", Mapping: "an object"}

# Key -> attribute of McpServer and how it is read. Those without an attribute are looked at in other places.
_FIELDS: Mapping[str, tuple[str, Callable[[_Reader, str], Any]]] = {
    "command": ("command", _Reader.text),
    "args": ("args", _Reader.texts),
    "env": ("env", _Reader.map),
    "cwd": ("cwd", _Reader.folder),
    "url": ("url", _Reader.url),
    "headers": ("headers", _Reader.map),
    "type": ("", _Reader.text),
    "disabled": ("", _Reader.text),
    "approval": ("approval", _Reader.approval),
    "toolApprovals": ("approvals", _Reader.approvals),
    "tools": ("tools", _Reader.texts),
    "timeout": ("timeout", _Reader.seconds),
    "startupTimeout": ("startup", _Reader.seconds),
}

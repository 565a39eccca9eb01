"""`ToolRun`: a response of /v1/responses in which the server runs tools: the agent's loop in place of one generation.

Functions of the client stay the client's: the turn ends where the model calls one, and goes on with its output in the
next request. A code interpreter stays open for as long as idle tools do, and a later response goes on with its id.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.applications import Starlette

from glm4.agent.async_agent import AsyncAgent
from glm4.agent.cited_files import last_number
from glm4.agent.conversation import Conversation
from glm4.agent.events import AgentEvent, CallChanged, FileAdded, TurnEnded
from glm4.agent.files import StoredFile
from glm4.agent.sessions import new_id
from glm4.agent.tool import Approval, Function, Invocation, Sources, Tool, ToolContext, ToolResult
from glm4.api.responses.agent_events import HANDED_OVER
from glm4.api.responses.builtin import BuiltinTool
from glm4.api.responses.builtin_items import Kind
from glm4.api.responses.request import ResponsesRequest
from glm4.chat.chat_request import ChatRequest
from glm4.errors import InvalidRequestError, MissingExtraError, SandboxError, ToolServerError
from glm4.server.agent.state import AgentState
from glm4.server.agent.turns import generator
from glm4.server.errors import ApiError
from glm4.server.registry import Target
from glm4.server.state import ServerState, find_state

_PATIENCE = 120.0


class ClientFunctions(Tool):
    """Functions that the client runs: a call of one ends the turn.

    Attributes:
        called: the model has called one.
    """

    name = "client"
    timeout = _PATIENCE

    def __init__(self, functions: Sequence[Function]) -> None:
        self.functions = tuple(functions)
        self.called = threading.Event()
        self.end_turn: Any = None

    def run(self, invocation: Invocation, context: ToolContext) -> ToolResult:
        """End the turn, and wait until it has ended."""
        self.called.set()
        self.end_turn()
        context.cancelled.wait(context.left())
        return ToolResult.error("the client runs this function")


class ToolRun:
    """One response; made by `open`, and always closed.

    Attributes:
        kinds: function → what it is in the API.
        listed: MCP servers and their functions.
        file_ids: sha256 of a file that was given → the id that it was given by.
    """

    def __init__(self, agents: AgentState, owner: str, key: str, *, stays: bool) -> None:
        self._agents = agents
        self._owner = owner
        self._key = key
        self._stays = stays  # the tools, for a later response
        self._agent: AsyncAgent | None = None
        self._events: AsyncGenerator[AgentEvent, None] | None = None
        self._client: ClientFunctions | None = None
        self.kinds: dict[str, Kind] = {}
        self.listed: dict[str, list[Mapping[str, Any]]] = {}
        self.file_ids: dict[str, str] = {}

    @classmethod
    async def open(
        cls, app: Starlette, state: ServerState, target: Target, wanted: ResponsesRequest, chat: ChatRequest, owner: str
    ) -> ToolRun:
        """Open the tools.

        Raises:
            InvalidRequestError: the server does not have one of them, or there is no such file or container.
            ApiError: a tool cannot be opened (424), or those of too many others are in use (429).
        """
        agents = find_state(app, AgentState)
        names = tuple(dict.fromkeys(one.tool for one in wanted.builtin))
        agents.tools.check(names)
        container = next((one.container for one in wanted.builtin if one.container), None)
        key = f"{owner} {container or f'cntr_{new_id()}'}"
        if container is not None and not agents.tools.has(key):
            raise InvalidRequestError(
                f"there is no container {container[:80]!r}, or it was closed, as idle ones are; send"
                ' {"type": "auto"} for a new one', param="tools",
            )  # fmt: skip
        run = cls(agents, owner, key, stays="python" in names)
        given = await run._given([name for one in wanted.builtin for name in one.files])
        try:
            tools = await agents.tools.take(key, names, agents.files, given)
            try:
                await run._set_up(state, target, wanted, chat, [_allowed(tool, wanted.builtin) for tool in tools])
            except BaseException:
                await run.close()
                raise
        except (ToolServerError, MissingExtraError, SandboxError) as error:
            raise ApiError(424, str(error), "tools", "tool_unavailable") from error
        return run

    async def _given(self, names: Sequence[str]) -> list[StoredFile]:
        try:
            found = await self._agents.given(names, self._owner)
        except ApiError as error:
            raise InvalidRequestError(error.message, param="tools") from None
        self.file_ids = {file.sha256: name for name, file in found.items()}
        return list(found.values())

    async def _set_up(
        self, state: ServerState, target: Target, wanted: ResponsesRequest, chat: ChatRequest, tools: Sequence[Tool]
    ) -> None:
        for tool in tools:
            await asyncio.to_thread(self._describe, tool)
        self._client = client = _client_functions(chat)
        limits = self._agents.config.limits
        if wanted.max_tool_calls is not None:
            limits = replace(limits, rounds=min(limits.rounds, wanted.max_tool_calls), calls_per_round=1)
        if chat.params is not None and chat.params.max_tokens is not None:
            limits = replace(limits, tokens=chat.params.max_tokens)
        self._agent = agent = AsyncAgent(
            generator(state, target), target.llm, [*tools, *([client] if client else [])], params=chat.params,
            adapter=target.adapter, limits=limits, approve=_approve,
        )  # fmt: skip
        if client is not None:
            self.kinds |= {function.name: Kind("function") for function in client.functions}
            loop = asyncio.get_running_loop()
            client.end_turn = lambda: loop.call_soon_threadsafe(agent.stop)
        sources = Sources(after=last_number(message.text for message in chat.messages))
        self._events = agent.run(Conversation(messages=list(chat.messages), sources=sources, files=self._agents.files))

    async def start(self) -> None:
        """Nothing waits: rounds queue one by one."""

    async def chunks(self) -> AsyncIterator[AgentEvent]:
        """What happens, to the end."""
        assert self._events is not None  # noqa: S101 (for the type checker)
        async for event in self._events:
            if isinstance(event, FileAdded):
                self._agents.keep(self._owner, event.file)
            if isinstance(event, CallChanged) and event.state != "writing":
                self._hand_over(event.tool)
            if isinstance(event, TurnEnded) and self._client is not None and self._client.called.is_set():
                yield TurnEnded("completed", HANDED_OVER)
            else:
                yield event

    def _hand_over(self, function: str) -> None:
        """A call of a client's function is the client's, whatever the loop thinks of its arguments."""
        if self._client is not None and self.kinds.get(function) == Kind("function"):
            self._client.called.set()
            assert self._agent is not None  # noqa: S101
            self._agent.stop()

    async def close(self) -> None:
        """End the turn, and let go of the tools; a code interpreter stays for a later response. Idempotent."""
        if self._events is not None:
            await self._events.aclose()
        key, self._key = self._key, ""
        if key:
            self._agents.tools.release(key)
            if not self._stays:
                await self._agents.tools.forget(key)

    def _describe(self, tool: Tool) -> None:
        """Note what this tool's functions are in the API."""
        container = self._key.rpartition(" ")[2] if tool.name == "python" else ""
        kind = Kind(_KINDS.get(tool.name, "mcp"), tool.name.partition(":")[2], container)
        functions = list(tool.functions)
        for name in (*([tool.builtin] if tool.builtin else []), *(function.name for function in functions)):
            self.kinds[name] = kind
        if kind.kind == "mcp":
            self.listed[kind.label] = [function.definition()["function"] for function in functions]


_KINDS = {"python": "code_interpreter", "browser": "web_search", "files": "file_search"}


class _Chosen(Tool):
    """A tool with some of its functions."""

    def __init__(self, tool: Tool, names: Sequence[str]) -> None:
        self._tool = tool
        label = tool.name.partition(":")[2]
        wanted = {*names, *(f"{label}__{name}" for name in names)}
        self.name, self.timeout = tool.name, tool.timeout
        self.functions = tuple(function for function in tool.functions if function.name in wanted)

    def run(self, invocation: Invocation, context: ToolContext) -> ToolResult:
        """See `Tool.run`."""
        return self._tool.run(invocation, context)

    def approval_of(self, function: str) -> Approval:
        """See `Tool.approval_of`."""
        return self._tool.approval_of(function)


def _allowed(tool: Tool, builtin: Sequence[BuiltinTool]) -> Tool:
    names = next((one.allowed for one in builtin if one.tool == tool.name), None)
    return tool if names is None else _Chosen(tool, names)


async def _approve(tool: Tool, invocation: Invocation) -> Any:
    """The client has said that the server may run what it offers: it is the user here."""
    return "once"


def _client_functions(chat: ChatRequest) -> ClientFunctions | None:
    functions = [
        Function(
            tool["function"]["name"],
            tool["function"].get("description") or "",
            tool["function"].get("parameters") or {"type": "object", "properties": {}},
        )
        for tool in chat.tools
        if tool.get("type") == "function"
    ]
    return ClientFunctions(functions) if functions else None

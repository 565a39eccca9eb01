"""`ToolRun`: a response of /v1/responses in which the server runs tools: the agent's loop in place of one generation.

Functions of the client stay the client's: the turn ends where the model calls one, and goes on with its output in the
next request. A code interpreter stays open for as long as idle tools do, and a later response goes on with its id.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.applications import Starlette

from glm4.agent.async_agent import AsyncAgent
from glm4.agent.conversation import Conversation
from glm4.agent.events import AgentEvent, FileAdded, TurnEnded
from glm4.agent.sessions import new_id
from glm4.agent.tool import Approval, Function, Invocation, Tool, ToolContext, ToolResult
from glm4.api.responses.agent_events import HANDED_OVER
from glm4.api.responses.builtin import BuiltinTool
from glm4.api.responses.builtin_items import Kind
from glm4.api.responses.request import ResponsesRequest
from glm4.chat.chat_request import ChatRequest
from glm4.errors import InvalidRequestError
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
        kinds: the function of a tool → what it is in the API.
        listed: MCP servers and their functions.
        file_ids: sha256 of a file that was given → the id that it was given by.
    """

    def __init__(
        self,
        state: AgentState,
        owner: str,
        key: str,
        agent: AsyncAgent,
        conversation: Conversation,
        client: ClientFunctions | None,
    ) -> None:
        self._state = state
        self._owner = owner
        self._key = key
        self._agent = agent
        self._conversation = conversation
        self._client = client
        self.kinds: dict[str, Kind] = {}
        self.listed: dict[str, list[Mapping[str, Any]]] = {}
        self.file_ids: dict[str, str] = {}

    @classmethod
    async def open(
        cls, app: Starlette, state: ServerState, target: Target, wanted: ResponsesRequest, chat: ChatRequest, owner: str
    ) -> ToolRun:
        """Open the tools.

        Raises:
            InvalidRequestError: the server does not have one of them, or there is no such file.
            Glm4Error: a tool cannot be opened.
        """
        agents = find_state(app, AgentState)
        names = tuple(dict.fromkeys(one.tool for one in wanted.builtin))
        try:
            agents.tools.check(names)
        except InvalidRequestError as error:
            raise InvalidRequestError(str(error), param="tools") from None
        container = next((one.container for one in wanted.builtin if one.container), None) or f"cntr_{new_id()}"
        key = f"{owner} {container}"
        try:
            given = await agents.given([name for one in wanted.builtin for name in one.files], owner)
        except ApiError as error:
            raise InvalidRequestError(error.message, param="tools") from None
        tools = list(await agents.tools.take(key, names, agents.files, list(given.values())))
        try:
            client = _client_functions(chat)
            chosen = [_allowed(tool, wanted.builtin) for tool in tools]
            limits = agents.config.limits
            if wanted.max_tool_calls is not None:
                limits = replace(limits, rounds=min(limits.rounds, wanted.max_tool_calls), calls_per_round=1)
            if chat.params is not None and chat.params.max_tokens is not None:
                limits = replace(limits, tokens=chat.params.max_tokens)
            agent = AsyncAgent(
                generator(state, target), target.llm, [*chosen, *([client] if client else [])], params=chat.params,
                adapter=target.adapter, limits=limits, approve=_approve,
            )  # fmt: skip
            if client is not None:
                loop = asyncio.get_running_loop()
                client.end_turn = lambda: loop.call_soon_threadsafe(agent.stop)
            run = cls(agents, owner, key, agent, Conversation(messages=list(chat.messages), files=agents.files), client)
            run.file_ids = {file.sha256: name for name, file in given.items()}
            for tool in chosen:
                await asyncio.to_thread(run._describe, tool, container)
        except BaseException:
            agents.tools.release(key)
            raise
        return run

    async def start(self) -> None:
        """Nothing waits: rounds queue one by one."""

    async def chunks(self) -> AsyncIterator[AgentEvent]:
        """What happens, to the end."""
        async with aclosing(self._agent.run(self._conversation)) as events:
            async for event in events:
                if isinstance(event, FileAdded):
                    self._state.keep(self._owner, event.file)
                if isinstance(event, TurnEnded) and self._client is not None and self._client.called.is_set():
                    yield TurnEnded("completed", HANDED_OVER)
                else:
                    yield event

    async def close(self) -> None:
        """Let go of the tools; they stay for a later response. Idempotent."""
        if self._key:
            self._state.tools.release(self._key)
            self._key = ""

    def _describe(self, tool: Tool, container: str) -> None:
        """Note what this tool's functions are in the API."""
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

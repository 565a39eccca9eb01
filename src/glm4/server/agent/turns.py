"""`Turns`: starts turns of an assistant, keeps them while they can be followed, stores what becomes of them.

A turn is a task of the server: it goes on when its reader hangs up. Stop, a limit, or deleting the conversation ends
it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from glm4.agent.async_agent import AsyncAgent
from glm4.agent.conversation import Conversation
from glm4.agent.events import AgentEvent, CallChanged, ErrorRaised, FileAdded, PartBegan, TurnEnded
from glm4.agent.files import FileStore, StoredFile
from glm4.agent.sessions import Session, SessionMessage, new_id
from glm4.agent.tool import Invocation, Sources, Tool
from glm4.agent.transcript import file_dict
from glm4.agent.word_citations import cited_by_words
from glm4.api.agent.request import ROOT, TurnRequest, turn_params
from glm4.chat.chat_request import ChatRequest
from glm4.chat.messages import Message
from glm4.documents.citations import Source
from glm4.errors import Glm4Error, InvalidRequestError, StoreError
from glm4.llm import LLM
from glm4.outputs import StreamChunk
from glm4.server.agent.config import AgentConfig
from glm4.server.agent.store import ThreadedSessionStore
from glm4.server.agent.tool_pool import ToolPool
from glm4.server.agent.turn import KEPT_SECONDS, Decision, Turn
from glm4.server.errors import ApiError, as_api_error, busy
from glm4.server.generation import Generation
from glm4.server.memory import BodyMemory
from glm4.server.pictures import prepare_chat
from glm4.server.registry import Target
from glm4.server.state import ServerState

log = logging.getLogger("glm4.server")

_WRITE_SECONDS = 2.0
Attach = Callable[[Message, Sequence[StoredFile], LLM, Sequence[str], Sources], Awaitable[Message]]
"""A user's message, its files, the model, the names of the tools and the sources → the message as the model gets it."""


@dataclass
class _Running:
    turn: Turn
    agent: AsyncAgent
    conversation: Conversation
    stored: SessionMessage
    before: int
    """Messages of the conversation before the turn."""
    known: list[Source]
    """Sources before it."""


class Turns:
    """The turns of one server.

    Args:
        attach: gives the model what a message's files have.
    """

    def __init__(
        self, config: AgentConfig, store: ThreadedSessionStore, files: FileStore, tools: ToolPool, attach: Attach
    ) -> None:
        self._config = config
        self.store = store
        self.files = files
        self.tools = tools
        self._attach = attach
        self._turns: dict[str, Turn] = {}
        self._by_client: dict[tuple[str, str], asyncio.Future[Turn]] = {}
        self._clients: dict[str, tuple[str, str]] = {}  # turn → its key there
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting: Counter[str] = Counter()  # turns by owner, and by conversation

    def find(self, turn_id: str, owner: str) -> Turn:
        """A turn of this owner.

        Raises:
            ApiError: there is no such one (404).
        """
        turn = self._turns.get(turn_id)
        if turn is None or turn.owner != owner:
            raise ApiError(404, f"there is no turn {turn_id[:100]!r}; its conversation has what became of it", "turn",
                           "not_found")  # fmt: skip
        return turn

    def running(self, owner: str) -> list[Turn]:
        """The turns of this owner that have not ended."""
        return [turn for turn in self._turns.values() if turn.owner == owner and not turn.ended]

    def end_all(self) -> None:
        """End what runs, of all owners; what is there is kept."""
        for turn in self._turns.values():
            turn.end()

    def of_message(self, message: str) -> str | None:
        """The turn that is writing this message."""
        return next((turn.id for turn in self._turns.values() if turn.message == message and not turn.ended), None)

    async def start(
        self, state: ServerState, target: Target, request: TurnRequest, owner: str, files: Sequence[StoredFile]
    ) -> Turn:
        """Start a turn; the same one for a client id that is known.

        Raises:
            InvalidRequestError: an id, a tool or an option is not known.
            ApiError: the conversation has a turn already (409), or the owner has too many (429).
        """
        if request.client_id is None:
            return await self._start(state, target, request, owner, files)
        key = (owner, request.client_id)
        known = self._by_client.get(key)
        if known is None:
            known = self._by_client[key] = asyncio.ensure_future(self._start(state, target, request, owner, files))
            known.add_done_callback(partial(self._started, key))
        return await asyncio.shield(known)

    def _started(self, key: tuple[str, str], start: asyncio.Future[Turn]) -> None:
        """Keep what a client calls a turn for as long as the turn; a start that failed may be tried again."""
        if start.cancelled() or start.exception() is not None:
            del self._by_client[key]
        else:
            self._clients[start.result().id] = key

    async def _start(
        self, state: ServerState, target: Target, request: TurnRequest, owner: str, files: Sequence[StoredFile]
    ) -> Turn:
        if len(self.running(owner)) + self._starting[f"key {owner}"] >= self._config.max_turns:
            raise busy(f"{self._config.max_turns} turns run already; wait for one of them", 5, status=429)
        with self._counted(f"key {owner}"):
            session = await self._session(request, target, owner)
            try:
                if self._starting[session.id] or any(one.conversation == session.id for one in self.running(owner)):
                    raise ApiError(409, "this conversation has a turn that has not ended; stop it first",
                                   "conversation", "turn_running")  # fmt: skip
                with self._counted(session.id):
                    return await self._start_in(session, state, target, request, owner, files)
            except BaseException:
                if request.conversation is None:  # nobody knows of it yet
                    await asyncio.shield(self.store.delete(session.id, owner))
                raise

    @contextmanager
    def _counted(self, what: str) -> Iterator[None]:
        """A turn that starts counts before there is one."""
        self._starting[what] += 1
        try:
            yield
        finally:
            self._starting[what] -= 1
            if not self._starting[what]:
                del self._starting[what]

    async def _start_in(
        self, session: Session, state: ServerState, target: Target, request: TurnRequest, owner: str,
        files: Sequence[StoredFile],
    ) -> Turn:  # fmt: skip
        names = request.tools if request.tools is not None else tuple(session.params.get("tools", ()))
        self.tools.check(names)
        params = turn_params(request.params or session.params.get("sampling", {}), target.llm.default_sampling_params())
        first = request.parent == ROOT
        branch = [] if first else await self.store.branch(session.id, owner, leaf=request.parent)
        if request.message is None and (not branch or branch[-1].role != "user"):
            raise InvalidRequestError(
                "parent is not a message of the user, so there is nothing to answer", param="parent"
            )
        message, sources = None, _sources(branch)
        if request.message is not None:
            message = await self._attach(request.message, files, target.llm, names, sources)
        given = {file.sha256: file for file in (*await self.store.files(session.id, owner), *files)}
        tools = await self.tools.take(session.id, names, self.files, list(given.values()))
        try:
            if message is not None and request.message is not None:
                new = _new(sources, _sources(branch).all())
                branch.append(await self._asked(session, message, request.message.text, branch, owner, files, new))
            session = await self._keep_choices(session, request, target, owner)
            stored = await self.store.add(
                session.id, SessionMessage("", branch[-1].id, "assistant", "running", target.name, [], []), owner
            )
        except BaseException:
            self.tools.release(session.id)
            raise
        agent = AsyncAgent(
            generator(state, target), target.llm, tools, system=session.system or None, params=params,
            adapter=target.adapter, limits=self._config.limits, approve=self._approver(stored.id),
        )  # fmt: skip
        return self._run_in_background(state, target, owner, session, branch, stored, agent)

    def _run_in_background(
        self, state: ServerState, target: Target, owner: str, session: Session, branch: Sequence[SessionMessage],
        stored: SessionMessage, agent: AsyncAgent,
    ) -> Turn:  # fmt: skip
        conversation = self._conversation(session, branch)
        about = {
            "turn": new_id(), "conversation": session.id, "parent": branch[-1].id, "message": stored.id,
            "model": target.name, "context": target.llm.context(target.adapter),
        }  # fmt: skip
        turn = Turn(str(about["turn"]), owner, session.id, stored.id, about, stop=agent.stop)
        self._turns[turn.id] = turn
        known = conversation.sources.all()
        work = _Running(turn, agent, conversation, stored, len(conversation.messages), known)
        # Not the request's, which is given back when its answer has been sent.
        memory = state.memory.body()
        task = asyncio.create_task(self._run(work, memory), name="glm4-turn")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return turn

    async def _session(self, request: TurnRequest, target: Target, owner: str) -> Session:
        if request.conversation is not None:
            return await self.store.get(request.conversation, owner)
        params = {"tools": list(request.tools or ()), "sampling": dict(request.params)}
        return await self.store.create(owner, system=request.system or "", model=target.name, params=params)

    async def _keep_choices(self, session: Session, request: TurnRequest, target: Target, owner: str) -> Session:
        """What a request chooses holds for the conversation from then on."""
        params = dict(session.params)
        if request.tools is not None:
            params["tools"] = list(request.tools)
        if request.params:
            params["sampling"] = dict(request.params)
        system = session.system if request.system is None else request.system
        chosen = {"params": params, "model": target.name, "system": system}
        if chosen != {"params": dict(session.params), "model": session.model, "system": session.system}:
            return await self.store.change(session.id, owner, chosen)
        return session

    async def _asked(
        self, session: Session, message: Message, text: str, branch: Sequence[SessionMessage], owner: str,
        files: Sequence[StoredFile], sources: Sequence[dict[str, Any]],
    ) -> SessionMessage:  # fmt: skip
        parts: list[dict[str, Any]] = [{"kind": "text", "text": text}]
        parts += [{"kind": "file", **file_dict(file)} for file in files]
        for file in files:
            await self.store.add_file(session.id, file, owner)
        parent = branch[-1].id if branch else None
        asked = SessionMessage("", parent, "user", "completed", "", [message.as_dict()], parts, sources)
        return await self.store.add(session.id, asked, owner)

    def _conversation(self, session: Session, branch: Sequence[SessionMessage]) -> Conversation:
        messages = [Message.from_dict(raw) for message in branch for raw in message.messages]
        approved = self.tools.approved(session.id)
        return Conversation(session.id, messages, _sources(branch), self.files, approved)

    def _approver(self, message: str) -> Callable[[Tool, Invocation], Any]:
        async def approve(tool: Tool, invocation: Invocation) -> Decision:
            turn = next(turn for turn in self._turns.values() if turn.message == message)
            return await turn.decision(invocation.id)

        return approve

    async def _run(self, work: _Running, memory: BodyMemory) -> None:
        turn, loop = work.turn, asyncio.get_running_loop()
        written = loop.time()
        last: TurnEnded | None = None
        try:
            await memory.grow(sum(len(message.text) for message in work.conversation.messages))
            if turn.stopped:
                last = TurnEnded("stopped", "stopped")
                return
            async with aclosing(work.agent.run(work.conversation)) as events:
                async for event in events:
                    if isinstance(event, TurnEnded):
                        last = event  # told once it is stored
                        continue
                    if isinstance(event, FileAdded):
                        await self._keep_file(turn, event.file)
                    turn.add(event)
                    if _matters(event) or loop.time() - written >= _WRITE_SECONDS:
                        written = loop.time()
                        await self._write(work, "running")
            await _cite(work)
        except asyncio.CancelledError:
            last = TurnEnded("stopped", "shutdown")
        except Exception as error:  # its reader is told; the log says more
            told = as_api_error(error)
            turn.add(ErrorRaised("server", told.code or "server_error", told.message))
            last = TurnEnded("error", "server_error")
        finally:
            memory.release()
            self.tools.release(turn.conversation)
            await asyncio.shield(self._end(work, last or TurnEnded("error", "server_error")))

    async def _keep_file(self, turn: Turn, file: StoredFile) -> None:
        """Note a file that a tool made, before its reader hears of it."""
        self.tools.made(turn.conversation, file)
        try:
            await self.store.add_file(turn.conversation, file, turn.owner)
        except Glm4Error as error:
            log.error("a file of a turn was not stored: %s", error)

    async def _end(self, work: _Running, last: TurnEnded) -> None:
        await self._write(work, last.status, last)
        work.turn.add(last)
        asyncio.get_running_loop().call_later(KEPT_SECONDS, self._forget, work.turn.id)

    def _forget(self, turn: str) -> None:
        self._turns.pop(turn, None)
        self._by_client.pop(self._clients.pop(turn, ("", "")), None)

    async def _write(self, work: _Running, status: Any, last: TurnEnded | None = None) -> None:
        told = work.turn.transcript.as_dict()
        stored = replace(
            work.stored,
            status=status,
            messages=[message.as_dict() for message in work.conversation.messages[work.before :]],
            parts=told["parts"] + [{"kind": "error", **error} for error in told["errors"]],
            sources=_new(work.conversation.sources, work.known),
            usage=told["usage"] | ({"reason": last.reason} if last else {}),
        )
        try:
            if not await self.store.write(stored):  # its conversation was deleted
                work.turn.end()
        except StoreError as error:
            log.error("a turn was not stored: %s", error)
        except Exception:  # its readers have to hear of the end all the same
            log.exception("a turn was not stored")

    async def stop_conversation(self, conversation: str, owner: str) -> None:
        """End the turn of a conversation, and close its tools."""
        for turn in self.running(owner):
            if turn.conversation == conversation:
                turn.end()
        await self.tools.forget(conversation)

    async def close(self) -> None:
        """End all turns."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def generator(state: ServerState, target: Target) -> Callable[[ChatRequest], AsyncIterator[StreamChunk]]:
    """Answers an agent's requests through the queue, limits and metrics that all requests go through."""

    async def generate(request: ChatRequest) -> AsyncIterator[StreamChunk]:
        try:
            generation = Generation(state, target, await prepare_chat(target, request))
            try:
                await generation.start()
                async for chunk in generation.chunks():
                    yield chunk
            finally:
                await generation.close()
        except ApiError as error:
            raise Glm4Error(error.message) from None

    return generate


async def _cite(work: _Running) -> None:
    """Say what an answer that cites nothing has from the user's files."""
    sources = work.conversation.sources.all()
    if not any(source.file for source in sources):
        return
    parts = work.turn.transcript.as_dict()["parts"]
    try:
        for event in await asyncio.to_thread(cited_by_words, parts, sources):
            work.turn.add(event)
    except Exception:  # the answer is there all the same
        log.exception("an answer was not compared with its files")


def _sources(branch: Sequence[SessionMessage]) -> Sources:
    """The sources of a branch; of one that was shown again, the latest."""
    found = {raw["n"]: Source(**raw) for message in branch for raw in message.sources}
    return Sources(list(found.values()))


def _new(sources: Sources, known: Sequence[Source]) -> list[dict[str, Any]]:
    """Sources that were not known, or not with this text, to be stored."""
    return [asdict(source) for source in sources.all() if source not in known]


def _matters(event: AgentEvent) -> bool:
    return isinstance(event, PartBegan) or (isinstance(event, CallChanged) and event.seconds is not None)

"""Runs tools on threads, for both drivers: each call has a deadline, and one that does not listen is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

from glm4.agent.conversation import Conversation
from glm4.agent.events import Channel
from glm4.agent.files import StoredFile
from glm4.agent.loop import AgentLoop
from glm4.agent.steps import RunCalls
from glm4.agent.tool import Invocation, Tool, ToolContext, ToolResult
from glm4.errors import Glm4Error
from glm4.system.text_encoding import well_formed

GRACE = 2.0
"""Seconds that a call has to return after it was told to stop. Then the turn goes on without it."""

MOST_OUTPUT = 200_000
"""Characters of a call's output for people; the rest is not kept."""


@dataclass(frozen=True)
class Said:
    """A call has output for people."""

    call: str
    text: str
    channel: Channel
    truncated: bool = False

    def tell(self, loop: AgentLoop) -> None:
        """Pass it to the loop."""
        loop.output(self.call, self.text, self.channel, truncated=self.truncated)


@dataclass(frozen=True)
class Made:
    """A call made a file."""

    call: str
    file: StoredFile

    def tell(self, loop: AgentLoop) -> None:
        """Pass it to the loop."""
        loop.file(self.call, self.file)


@dataclass(frozen=True)
class Finished:
    """A call ended; `news`: the tool has not shown people what came of it."""

    call: str
    result: ToolResult
    seconds: float
    news: bool = True

    def tell(self, loop: AgentLoop) -> None:
        """Pass it to the loop."""
        loop.finish(self.call, self.result, self.seconds, news=self.news)


Happening = Said | Made | Finished
Post = Callable[[Happening], None]


@dataclass
class _Running:
    """A call on its thread; what it says is posted from there."""

    tool: Tool
    invocation: Invocation
    seconds: float  # that it may take
    post: Post
    lock: threading.Lock  # of the tool; taken while it runs, unless the tool is parallel
    cancelled: threading.Event = field(default_factory=threading.Event)
    started: float = field(default_factory=time.monotonic)
    _printed: int = 0
    _shown: bool = False  # people have something of it that is more than a log

    @property
    def deadline(self) -> float:
        return self.started + self.seconds

    def start(self, conversation: Conversation) -> None:
        context = ToolContext(self.deadline, self.cancelled, self, conversation.sources, conversation.files)
        name = f"glm4-tool-{self.invocation.function[:40]}"
        threading.Thread(target=self._run, args=(context,), name=name, daemon=True).start()

    def _run(self, context: ToolContext) -> None:
        # A call that was left behind may still run; its tool is not made for two.
        alone = not self.tool.parallel
        if alone and not self.lock.acquire(timeout=GRACE):
            self._finish(ToolResult.error(f"{self.tool.name} is still busy with an earlier call. Try again later."))
            return
        try:
            result, news = self._outcome(context)
        finally:
            if alone:
                self.lock.release()
        self._finish(result, news=news)

    def _outcome(self, context: ToolContext) -> tuple[ToolResult, bool]:
        try:
            return _valid(self.tool.run(self.invocation, context)), not self._shown
        except Glm4Error as error:
            text = str(error)
        except BaseException as error:  # whatever a tool raises is for the model to read, `sys.exit` too
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return self.timed_out() if self.cancelled.is_set() else _valid(ToolResult.error(text)), True

    def _finish(self, result: ToolResult, *, news: bool = True) -> None:
        self.post(Finished(self.invocation.id, result, time.monotonic() - self.started, news))

    def timed_out(self) -> ToolResult:
        """What the model reads of a call that took too long."""
        return ToolResult.error(
            f"{self.invocation.function} was stopped: it took longer than {self.seconds:.3g} seconds."
        )

    def output(self, text: str, channel: Channel) -> None:
        """See `Listener`."""
        room = MOST_OUTPUT - self._printed
        self._printed += len(text)
        self._shown = self._shown or channel != "log"
        if room > 0 and text:
            self.post(Said(self.invocation.id, well_formed(text[:room]), channel, truncated=len(text) > room))

    def file(self, file: StoredFile) -> None:
        """See `Listener`."""
        self.post(Made(self.invocation.id, file))


def _valid(result: ToolResult) -> ToolResult:
    """What UTF-8 does not have cannot be sent or stored."""
    return replace(result, observations=tuple(replace(one, text=well_formed(one.text)) for one in result.observations))


class Batch:
    """Calls that run at the same time."""

    def __init__(self, running: list[_Running]) -> None:
        self._running = {one.invocation.id: one for one in running}

    @property
    def done(self) -> bool:
        """Every call has ended, or was left behind."""
        return not self._running

    def wait_seconds(self) -> float:
        """How long to wait before the next `check`."""
        now = time.monotonic()
        ends = [one.deadline + (GRACE if one.cancelled.is_set() else 0) for one in self._running.values()]
        return max(0.01, min(ends, default=now) - now)

    def check(self) -> list[Happening]:
        """Tell calls beyond their deadline to stop, and leave those behind that did not within the grace."""
        now = time.monotonic()
        left_behind: list[Happening] = []
        for call_id, one in list(self._running.items()):
            if now >= one.deadline:
                one.cancelled.set()
            if now >= one.deadline + GRACE:
                del self._running[call_id]
                left_behind.append(Finished(call_id, one.timed_out(), now - one.started))
        return left_behind

    def note(self, happening: Happening) -> None:
        """Take what was posted."""
        if isinstance(happening, Finished):
            self._running.pop(happening.call, None)

    def cancel(self) -> None:
        """Tell all calls to stop; nobody waits for them."""
        for one in self._running.values():
            one.cancelled.set()


_LOCKS: WeakKeyDictionary[Tool, threading.Lock] = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


def start(step: RunCalls, conversation: Conversation, post: Post) -> Batch:
    """Start calls on threads of their own.

    Args:
        post: called from those threads.
    """
    running = []
    for tool, invocation in step.calls:
        left = tool.timeout if step.deadline is None else min(tool.timeout, step.deadline - time.monotonic())
        with _LOCKS_LOCK:
            lock = _LOCKS.setdefault(tool, threading.Lock())
        running.append(_Running(tool, invocation, max(0.0, left), post, lock))
    batch = Batch(running)
    for one in running:
        one.start(conversation)
    return batch

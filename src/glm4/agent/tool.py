"""`Tool`: what an agent can use. Tools are synchronous; the loop's drivers run them on threads."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from glm4.agent.events import Channel
from glm4.agent.files import FileStore, StoredFile
from glm4.documents.citations import Source

Approval = Literal["always", "ask", "never"]
"""Whether a tool may run: without asking, after the user agreed to the call, or not at all."""

SYSTEM_ERROR = "system_error"
"""GLM-4's metadata of an observation that says what went wrong."""


@dataclass(frozen=True)
class Function:
    """A function as models see it.

    Attributes:
        name: letters, digits, `_` and `-`, at most 64.
        parameters: a JSON schema of an object.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]

    def definition(self) -> dict[str, Any]:
        """In OpenAI's form."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Invocation:
    """A call to be run.

    Attributes:
        arguments: JSON text of an object, checked against the function's schema; with `raw`, what the model wrote for
            one of GLM-4's built-in tools: code, a call expression, a text.
    """

    id: str
    function: str
    arguments: str
    raw: bool = False


@dataclass(frozen=True)
class Observation:
    """What the model reads of a result.

    Attributes:
        metadata: GLM-4's text behind the role tag; empty for functions.
    """

    text: str
    metadata: str = ""


@dataclass(frozen=True)
class ToolResult:
    """What a call came to.

    Attributes:
        observations: one, except where GLM-4 was trained with several (a page each).
        failed: the tool could not do it; the observation says why, and the model goes on.
    """

    observations: tuple[Observation, ...]
    failed: bool = False

    @classmethod
    def of(cls, text: str, metadata: str = "") -> ToolResult:
        """A result of one observation."""
        return cls((Observation(text, metadata),))

    @classmethod
    def error(cls, text: str) -> ToolResult:
        """A failure that the model can read."""
        return cls((Observation(text, SYSTEM_ERROR),), failed=True)


class Listener(Protocol):
    """Who gets what a running call has for people. Called from the tool's thread."""

    def output(self, text: str, channel: Channel) -> None:
        """More text."""

    def file(self, file: StoredFile) -> None:
        """A file."""


class Sources:
    """The numbered sources of a conversation. Numbers begin at 7, as those in GLM-4's training did. Thread-safe.

    Args:
        after: a number that is in use already, and those before it.
    """

    FIRST = 7
    MOST_TEXT = 20_000
    """Characters that are kept of one source."""

    def __init__(self, sources: Sequence[Source] = (), *, after: int = FIRST - 1) -> None:
        self._lock = threading.Lock()
        self._by_number = {source.n: source for source in sources}
        self._after = max(after, *self._by_number, self.FIRST - 1)

    def add(
        self,
        title: str,
        *,
        url: str | None = None,
        file: str | None = None,
        page: int | None = None,
        section: str | None = None,
        text: str = "",
    ) -> Source:
        """Number a source; the same page of the same address or file keeps its number, and gets further text."""
        with self._lock:
            for known in self._by_number.values():
                if (known.url, known.file, known.page, known.section) == (url, file, page, section):
                    if file is None or text in known.text:
                        return known
                    more = replace(known, text=f"{known.text}\n\n{text}"[: self.MOST_TEXT])
                    self._by_number[known.n] = more
                    return more
            self._after += 1
            made = Source(self._after, title, url, file, page, section, text[: self.MOST_TEXT])
            return self._by_number.setdefault(made.n, made)

    def copy(self) -> Sources:
        """The same sources, to try what further ones would be."""
        return Sources(self.all(), after=self._after)

    def take(self, other: Sources) -> None:
        """Become what a copy has become."""
        with self._lock:
            self._by_number, self._after = {source.n: source for source in other.all()}, other._after

    def get(self, n: int) -> Source | None:
        """The source of this number."""
        return self._by_number.get(n)

    def all(self) -> list[Source]:
        """Every source, by number."""
        with self._lock:
            return [self._by_number[n] for n in sorted(self._by_number)]


@dataclass(frozen=True)
class ToolContext:
    """What a running call may use.

    Attributes:
        deadline: `time.monotonic()` by which it must have returned.
        cancelled: set when nobody wants the result anymore; a tool looks at it at least every 0.1 seconds.
        sources: of the conversation; see `Sources.add`.
        files: of the conversation; None keeps none.
    """

    deadline: float
    cancelled: threading.Event
    listener: Listener
    sources: Sources
    files: FileStore | None = None

    def left(self) -> float:
        """Seconds until the deadline; not negative."""
        return max(0.0, self.deadline - time.monotonic())

    def output(self, text: str, channel: Channel = "output") -> None:
        """Show text to people while the call runs."""
        self.listener.output(text, channel)

    def file(self, file: StoredFile) -> None:
        """Show a file."""
        self.listener.file(file)


class Tool(ABC):
    """A tool of one conversation: it may keep state, and `close` ends it.

    Attributes:
        name: as users name it: `python`, `browser`, `weather`, `mcp:files`.
        builtin: the type under which GLM-4 was trained with it (python, simple_browser, cogview); a dialect that knows
            the type is offered that instead of `functions`, and calls it by that name with raw arguments.
        functions: what other dialects are offered.
        approval: whether it may run without asking.
        timeout: seconds a call may take.
    """

    name: str
    builtin: str | None = None
    functions: Sequence[Function] = ()
    approval: Approval = "always"
    timeout: float = 60.0

    @abstractmethod
    def run(self, invocation: Invocation, context: ToolContext) -> ToolResult:
        """Run a call. On any thread, one call at a time per conversation unless `parallel`.

        Whatever it raises becomes an observation; a `Glm4Error`'s message is shown as it is.
        """

    def about(self, invocation: Invocation) -> str:
        """One line on what a call would do, for the user who is asked."""
        return f"{invocation.function} {invocation.arguments}"

    def approval_of(self, function: str) -> Approval:
        """Whether this one of its functions may run without asking."""
        return self.approval

    def add_file(self, name: str, data: bytes) -> str | None:
        """A file of the user, for calls to use; the name by which they find it, or None if the tool takes no files.

        Raises:
            InvalidRequestError: it takes files, but not this one.
        """
        return None

    @property
    def parallel(self) -> bool:
        """Whether calls of one turn may run at the same time."""
        return False

    def close(self) -> None:  # noqa: B027  (most tools hold nothing)
        """End what it holds: processes, connections. Idempotent."""

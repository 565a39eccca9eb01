"""The events of an agent's turn, as the command line, the API and the page get them.

A new kind of event is one class here and one method per visitor. A turn is a list of parts (text, reasoning, tool
calls, files), numbered from 0; events say which part they belong to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from glm4.agent.files import StoredFile
from glm4.documents.citations import Citation

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)

Phase = Literal["queued", "prefill", "generate", "reading"]
PartKind = Literal["text", "reasoning", "tool"]
CallState = Literal["writing", "waiting", "running", "done", "error", "denied"]
Channel = Literal["output", "error", "log"]
EndStatus = Literal["completed", "stopped", "limit", "error"]


class AgentEventVisitor(ABC, Generic[_T_co]):
    """Has one method per kind of event; `event.accept(visitor)` calls the one for its kind."""

    @abstractmethod
    def progress(self, event: Progress) -> _T_co:
        """Something that takes a while goes on."""

    @abstractmethod
    def part(self, event: PartBegan) -> _T_co:
        """A new part of the turn begins."""

    @abstractmethod
    def text(self, event: TextAdded) -> _T_co:
        """More text of a part."""

    @abstractmethod
    def call(self, event: CallChanged) -> _T_co:
        """A tool call is written, waits, runs or has ended."""

    @abstractmethod
    def output(self, event: OutputAdded) -> _T_co:
        """More of what a tool says."""

    @abstractmethod
    def file(self, event: FileAdded) -> _T_co:
        """A file that a tool made."""

    @abstractmethod
    def citation(self, event: CitationAdded) -> _T_co:
        """A place in the text names a source."""

    @abstractmethod
    def usage(self, event: UsageAdded) -> _T_co:
        """What one round with the model cost."""

    @abstractmethod
    def error(self, event: ErrorRaised) -> _T_co:
        """Something failed that the turn does not survive, or that the user should know."""

    @abstractmethod
    def end(self, event: TurnEnded) -> _T_co:
        """The last event."""


@dataclass(frozen=True)
class Progress:
    """Something that takes a while goes on: `done` of `total`, tokens in prefill, or 0 of 0 if that is unknown."""

    phase: Phase
    done: int = 0
    total: int = 0

    def accept(self, visitor: AgentEventVisitor[_T]) -> _T:
        """Call the visitor's method for this kind."""
        return visitor.progress(self)


@dataclass(frozen=True)
class PartBegan:
    """A new part of the turn."""

    part: int
    kind: PartKind

    def accept(self, visitor: AgentEventVisitor[_T]) -> _T:
        """See `Progress.accept`."""
        return visitor.part(self)


@dataclass(frozen=True)
class TextAdded:
    """More text of a part of kind text or reasoning: Markdown as the model wrote it."""

    part: int
    add: str

    def accept(self, visitor: AgentEventVisitor[_T]) -> _T:
        """See `Progress.accept`."""
        return visitor.text(self)


@dataclass(frozen=True)
class CallChanged:
    """A tool call.

    States: writing (with more of the arguments in `add`), waiting for the user's approval, running, and one of done,
    error (the model reads what went wrong) and denied.

    Attributes:
        call: its id.
        tool: name of the function.
        add: more of the arguments, in state writing.
        about: one line for people on what it would do, in state waiting.
        seconds: it ran, in the last three states.
    """

    part: int
    call: str
    tool: str
    state: CallState
    add: str = ""
    about: str = ""
    seconds: float | None = None

    def accept(self, visitor: AgentEventVisitor[_T]) -> _T:
        """See `Progress.accept`."""
        return visitor.call(self)


@dataclass(frozen=True)
class OutputAdded:
    """More of what a tool says, for people; what the model reads may be shorter.

    Attributes:
        truncated: more was said than is shown; nothing of this call follows.
    """

    call: str
    channel: Channel
    add: str
    truncated: bool = False

    def accept(self, visitor: AgentEventVisitor[_T]) -> _T:
        """See `Progress.accept`."""
        return visitor.output(self)


@dataclass(frozen=True)
class FileAdded:
    """A file that a tool made."""

    file: StoredFile
    call: str | None = None

    def accept(self, visitor: AgentEventVisitor[_T]) -> _T:
        """See `Progress.accept`."""
        return visitor.file(self)


@dataclass(frozen=True)
class CitationAdded:
    """A place in the text of a part names a source."""

    part: int
    citation: Citation

    def accept(self, visitor: AgentEventVisitor[_T]) -> _T:
        """See `Progress.accept`."""
        return visitor.citation(self)


@dataclass(frozen=True)
class UsageAdded:
    """What one round with the model cost; a turn's cost is the sum.

    Attributes:
        context: tokens the model can take.
    """

    prompt: int
    cached: int
    completion: int
    context: int
    prefill_seconds: float | None = None
    decode_seconds: float | None = None

    def accept(self, visitor: AgentEventVisitor[_T]) -> _T:
        """See `Progress.accept`."""
        return visitor.usage(self)


@dataclass(frozen=True)
class ErrorRaised:
    """What failed, in words for the user.

    Attributes:
        code: for programs: prompt_too_long, timeout, tool_failed, …
        retry: doing the same again may help.
    """

    where: Literal["model", "tool", "server"]
    code: str
    message: str
    retry: bool = False

    def accept(self, visitor: AgentEventVisitor[_T]) -> _T:
        """See `Progress.accept`."""
        return visitor.error(self)


@dataclass(frozen=True)
class TurnEnded:
    """The last event of a turn.

    Attributes:
        status: "limit": a limit of the turn ended it; `reason` names the limit.
        reason: the model's finish reason (stop, length), or rounds, seconds, tokens, repeated_calls.
    """

    status: EndStatus
    reason: str = "stop"

    def accept(self, visitor: AgentEventVisitor[_T]) -> _T:
        """See `Progress.accept`."""
        return visitor.end(self)


AgentEvent = (
    Progress
    | PartBegan
    | TextAdded
    | CallChanged
    | OutputAdded
    | FileAdded
    | CitationAdded
    | UsageAdded
    | ErrorRaised
    | TurnEnded
)

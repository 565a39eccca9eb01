"""The calls of an answer: which tool each is for, whether it may run, and what is wrong with those that cannot."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from glm4.agent.arguments import ArgumentsError, check, read_object
from glm4.agent.prompting import Offered, Prompting
from glm4.agent.tool import Invocation, Tool, ToolResult
from glm4.chat.messages import ToolCall

_UNUSUAL = re.compile(r"[^A-Za-z0-9_-]")
_MOST_QUOTED = 400  # characters of what the model wrote, in what it is told about that
_MOST_NAMES = 40


@dataclass
class Call:
    """A call of an answer.

    Attributes:
        written: as the conversation keeps it: its arguments are an object, whatever the model wrote.
        tool: None if there is no such function.
        invocation: None if the call cannot be run; there is a result then.
        allowed: may run; None until the user is asked.
        repeated: it was made in the answer before, and is not run again.
    """

    part: int
    written: ToolCall
    tool: Tool | None = None
    invocation: Invocation | None = None
    result: ToolResult | None = None
    allowed: bool | None = None
    repeated: bool = False

    @property
    def approval_key(self) -> str:
        """What the approval of this call covers: its function."""
        return f"{self.tool.name if self.tool else ''}/{self.written.name}"

    @property
    def signature(self) -> tuple[str, str]:
        """Equal for calls of the same function with the same arguments."""
        return self.written.name, _canonical(self.written.arguments)


class CallReader:
    """Reads the calls of the answers of one turn.

    A call that the model has made in its last answer, and that succeeded, is not run again: small models repeat one
    call without end. One that failed may be tried again.

    Attributes:
        repeats: answers with such a call.
    """

    def __init__(self, prompting: Prompting) -> None:
        self._offered = prompting.offered
        self._done: dict[tuple[str, str], str] = {}  # calls of the last answer that need not be run again: results
        self.repeats = 0

    def read(self, calls: Sequence[ToolCall], parts: Mapping[str, int], approved: set[str]) -> list[Call]:
        """The calls of an answer.

        Args:
            parts: of the turn, by the call's id.
            approved: what the user has approved, as `Call.approval_key`.
        """
        read: list[Call] = []
        for written in calls:
            call = self._read(written, parts[written.id])
            if call.result is None and call.signature in self._done:
                call.result, call.repeated = ToolResult.error(_repeated(written.name, self._done[call.signature])), True
            elif call.result is None and call.signature in (other.signature for other in read):
                call.result, call.repeated = ToolResult.error(_TWICE), True
            if call.result is None and call.tool is not None:
                needs = "always" if call.approval_key in approved else call.tool.approval_of(written.name)
                call.allowed = {"always": True, "never": False}.get(needs)
                if call.allowed is False:
                    call.result = ToolResult.error(NOT_ALLOWED)
            read.append(call)
        self.repeats += any(call.repeated for call in read)
        return read

    def note(self, calls: Sequence[Call]) -> None:
        """Take the calls of an answer, which now have results, for its next answer."""
        done = {}
        for call in calls:
            if call.repeated:
                done[call.signature] = self._done.get(call.signature, "")
            elif call.result is not None and not call.result.failed:
                done[call.signature] = "\n\n".join(one.text for one in call.result.observations)
        self._done = done

    def _read(self, written: ToolCall, part: int) -> Call:
        offered = self._offered.get(written.name)
        if offered is None:
            kept = replace(written, name=_UNUSUAL.sub("_", written.name)[:64] or "unknown", arguments=_object(written))
            return Call(part, kept, result=ToolResult.error(self._unknown(written.name)))
        if offered.function is None:
            invocation = Invocation(written.id, written.name, written.arguments, raw=True)
            return Call(part, written, offered.tool, invocation)
        return _function_call(part, written, offered)

    def _unknown(self, name: str) -> str:
        names = ", ".join(list(self._offered)[:_MOST_NAMES]) or "none"
        return f"There is no function {name[:80]!r}. The functions are: {names}. Call one of them, or answer without."


NOT_ALLOWED = (
    "The user did not allow this call. Do not make it again; answer without it, or say what you would need it for."
)
_TWICE = "This call is made twice in one answer; it was run once, and its result is that of the first."


def _repeated(name: str, result: str) -> str:
    """What a model reads that makes a call again: the result, if it is short, as small models look at what is near."""
    if 0 < len(result) <= _MOST_QUOTED:
        return (
            f"{name} was called with these arguments just before, and was not run again. Its result: {result}\n"
            f"Answer with this result, or call {name} with different arguments."
        )
    return (
        f"{name} was called with these arguments just before, and was not run again: its result stands above. Answer"
        f" with it, or call {name} with different arguments."
    )


def _function_call(part: int, written: ToolCall, offered: Offered) -> Call:
    assert offered.function is not None  # noqa: S101 (for the type checker)
    try:
        arguments = read_object(written.arguments)
    except ArgumentsError as error:
        said = f" You wrote: {written.arguments[:_MOST_QUOTED]}" if written.arguments.strip() else ""
        text = f"{written.name} was not called: {error}. Call it again with a JSON object.{said}"
        return Call(part, replace(written, arguments="{}"), offered.tool, result=ToolResult.error(text))
    text = written.arguments if written.arguments.strip() else "{}"
    kept = replace(written, arguments=text)
    try:
        check(arguments, offered.function.parameters)
    except ArgumentsError as error:
        text = f"{written.name} was not called: {error}. Call it again with arguments that match its parameters."
        return Call(part, kept, offered.tool, result=ToolResult.error(text))
    return Call(part, kept, offered.tool, Invocation(written.id, written.name, kept.arguments))


def _object(written: ToolCall) -> str:
    """The arguments if they are an object, and an empty one otherwise."""
    try:
        return written.arguments if read_object(written.arguments) else "{}"
    except ArgumentsError:
        return "{}"


def _canonical(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments.strip()

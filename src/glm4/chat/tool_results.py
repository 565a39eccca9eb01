"""Tool results beside their calls: matched by id, in the order of the calls.

Prompts show results without their ids, so a model takes the first result for that of the first call. Every API and
dialect therefore gets its conversations from `in_call_order`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from glm4.chat.messages import Message
from glm4.errors import InvalidRequestError

RESULT_ROLES = ("tool", "observation")


@dataclass(eq=False)
class _Call:
    id: str
    name: str
    result: Message | None = None


@dataclass
class _Turn:
    """Consecutive messages of the assistant with the results of their calls, or one message of somebody else."""

    messages: list[Message] = field(default_factory=list)
    calls: list[_Call] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    without_result: deque[_Call] = field(default_factory=deque)
    named: dict[str, deque[_Call]] = field(default_factory=dict)

    def add(self, message: Message) -> list[_Call]:
        """Append a message of the assistant; returns its calls."""
        calls = [_Call(call.id, call.name) for call in message.tool_calls]
        if message.metadata:  # a call in GLM-4's own form
            calls.append(_Call("", message.metadata))
        self.messages.append(message)
        self.calls += calls
        self.without_result += calls
        for call in calls:
            if call.id in self.ids:
                raise _error(f"two calls of one turn have the id {call.id[:80]!r}; give each call an id of its own")
            if call.id:
                self.ids.add(call.id)
            self.named.setdefault(call.name, deque()).append(call)
        return calls

    def all_messages(self) -> Iterator[Message]:
        """The messages, then the results in the order of the calls.

        Raises:
            InvalidRequestError: only some of the calls have a result.
        """
        yield from self.messages
        missing = next((call for call in self.calls if call.result is None), None)
        for call in self.calls:
            if call.result is not None and missing is not None:
                known = f" with the id {missing.id[:80]!r}" if missing.id else ""
                raise _error(
                    f"the call of {missing.name[:80]!r}{known} has no result, but another call of the same turn has;"
                    " send a result for every call of a turn, if only to say that it failed"
                )
            if call.result is not None:
                yield call.result


def in_call_order(messages: Sequence[Message]) -> list[Message]:
    """The conversation with the results of each assistant turn directly after it, in the order of its calls.

    A result belongs to the latest call before it that has its id. One without an id (GLM-4's own
    `observation`, older clients) belongs to the first call without a result, of its `name` if it has one, in the
    latest turn that made calls.

    Left as they are, because nothing can be confused: results at the head of a conversation whose beginning was cut
    off; observations without an id beyond the calls (GLM-4's browser returns several); calls of a turn that has no
    results at all (the tools were not run).

    Raises:
        InvalidRequestError: no call has the id of a result; two calls of a turn, or two results, have the same id; only
            some calls of a turn have a result, or more results than calls. `.param` is "messages".
    """
    return _Matcher().match(messages)


class _Matcher:
    def __init__(self) -> None:
        self._by_id: dict[str, _Call] = {}  # the latest: some clients number the calls of every turn anew
        self._latest: _Turn | None = None  # the latest turn that made calls

    def match(self, messages: Sequence[Message]) -> list[Message]:
        turns: list[_Turn] = []
        speaker, at_head = "", True
        for message in messages:
            call = None
            if message.role == "assistant":
                if speaker != "assistant":
                    turns.append(_Turn())
                self._add(turns[-1], message)
            elif message.role in RESULT_ROLES and not at_head:
                call = self._call_of(message)
            if call is not None:
                call.result = message
            elif message.role != "assistant":
                turns.append(_Turn([message]))
            speaker = message.role
            at_head = at_head and speaker in ("system", *RESULT_ROLES)
        return [message for turn in turns for message in turn.all_messages()]

    def _add(self, turn: _Turn, message: Message) -> None:
        for call in turn.add(message):
            self._latest = turn
            if call.id:
                self._by_id[call.id] = call

    def _call_of(self, result: Message) -> _Call | None:
        """The call that a result answers; None leaves it in its place."""
        if result.tool_call_id:
            return self._call_with_id(result.tool_call_id)
        if self._latest is None:
            return None
        calls = self._latest.without_result
        if result.name is not None:
            if result.name not in self._latest.named:
                raise _error(
                    f"a tool result is named {result.name[:80]!r}, but the calls before it are of"
                    f" {_listed(call.name for call in self._latest.calls)}; send the id of the call it answers"
                )
            calls = self._latest.named[result.name]
        while calls and calls[0].result is not None:
            calls.popleft()
        if not calls and result.role == "tool":
            raise _error("there are more tool results than calls; send one result per call, with the id of the call")
        return calls[0] if calls else None

    def _call_with_id(self, result_id: str) -> _Call:
        call = self._by_id.get(result_id)
        if call is None:
            made = [] if self._latest is None else self._latest.calls
            if len(made) == 1 and not made[0].id and made[0].result is None:
                return made[0]  # the only call of the turn, written without an id
            ids = [call.id for call in made if call.id]
            last = f" (the last calls have {_listed(ids)})" if ids else ""
            raise _error(
                f"a tool result has the id {result_id[:80]!r}, but no call before it has{last}; send the id of the call"
                " it answers, and the assistant's message with that call before it"
            )
        if call.result is not None:
            raise _error(f"two tool results have the id {result_id[:80]!r}; send one result per call")
        return call


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name[:80]) for name in islice(names, 8))


def _error(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param="messages")

"""Tool results: matched to their calls by id, and shown in the order of the calls.

Prompts show results without their ids, so a model takes the first result for that of the first call. Every API and
dialect therefore gets its conversations from `in_call_order`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
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


@dataclass(eq=False)
class _Turn:
    """The calls of consecutive messages of the assistant, and where in the conversation their results are."""

    calls: list[_Call] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    by_id: dict[str, _Call] = field(default_factory=dict)
    without_result: deque[_Call] = field(default_factory=deque)
    by_name: dict[str, deque[_Call]] = field(default_factory=dict)

    def add(self, message: Message) -> None:
        """Note the calls of a message."""
        calls = [_Call(call.id, call.name) for call in message.tool_calls]
        if message.metadata:  # a call in GLM-4's own form
            calls.append(_Call("", message.metadata))
        self.calls += calls
        self.without_result += calls
        for call in calls:
            if call.id in self.by_id:
                raise _error(f"two calls of one turn have the id {call.id[:80]!r}; give each call an id of its own")
            if call.id:
                self.by_id[call.id] = call
            self.by_name.setdefault(call.name, deque()).append(call)

    def results(self) -> list[Message]:
        """The results in the order of the calls: none, or one per call."""
        found = [call.result for call in self.calls if call.result is not None]
        if found and len(found) < len(self.calls):
            missing = next(call for call in self.calls if call.result is None)
            known = f" with the id {missing.id[:80]!r}" if missing.id else ""
            raise _error(
                f"the call of {missing.name[:80]!r}{known} has no result, but another call of the same turn has; send a"
                " result for every call of a turn, if only to say that it failed"
            )
        return found


def in_call_order(messages: Sequence[Message]) -> list[Message]:
    """The conversation, in which the results of each turn are in the order of its calls.

    A result belongs to the call of its id in the latest turn that made calls. One without an id (GLM-4's own
    `observation`, older clients) belongs to the first call of that turn without a result, of its `name` if it has one.
    Results change places with each other only; other messages stay where they are.

    Left as they are, because nothing can be confused: results at the head of a conversation whose beginning was cut
    off; observations without an id beyond the calls (GLM-4's browser returns several); calls of a turn that has no
    results at all (the tools were not run).

    Raises:
        InvalidRequestError: no call of the latest turn has the id of a result; two calls of a turn, or two results,
            have the same id; only some calls of a turn have a result, or more results than calls. `.param` is
            "messages".
    """
    turns: list[_Turn] = []
    ordered = list(messages)
    speaker, at_head = "", True
    for place, message in enumerate(messages):
        if message.role == "assistant" and (message.tool_calls or message.metadata):
            if speaker != "calls":
                turns.append(_Turn())
            turns[-1].add(message)
            speaker = "calls"
        elif message.role in RESULT_ROLES and not at_head:
            call = _call_of(message, turns)
            if call is not None:
                call.result = message
                turns[-1].places.append(place)
            speaker = message.role
        elif not (message.role == "assistant" and speaker == "calls"):  # words beside calls belong to their turn
            speaker = message.role
        at_head = at_head and message.role in ("system", *RESULT_ROLES)
    for turn in turns:
        for place, result in zip(turn.places, turn.results(), strict=True):
            ordered[place] = result
    return ordered


def _call_of(result: Message, turns: Sequence[_Turn]) -> _Call | None:
    """The call that a result answers; None if it has no id, and there is none."""
    if result.tool_call_id:
        return _call_with_id(result.tool_call_id, turns)
    if not turns:
        return None
    calls = turns[-1].without_result
    if result.name is not None:
        if result.name not in turns[-1].by_name:
            raise _error(
                f"a tool result is named {result.name[:80]!r}, but the calls before it are of"
                f" {_listed(turns[-1].by_name)}; send the id of the call it answers"
            )
        calls = turns[-1].by_name[result.name]
    while calls and calls[0].result is not None:
        calls.popleft()
    if not calls and result.role == "tool":
        raise _error("there are more tool results than calls; send one result per call, with the id of the call")
    return calls[0] if calls else None


def _call_with_id(result_id: str, turns: Sequence[_Turn]) -> _Call:
    made = turns[-1] if turns else _Turn()
    call = made.by_id.get(result_id)
    if call is None and len(made.calls) == 1 and not made.calls[0].id:
        call = made.calls[0]  # the only call of the turn, written without an id
    if call is None:
        last = f" in the turn before it (its calls have {_listed(made.by_id)})" if made.by_id else " before it"
        raise _error(
            f"a tool result has the id {result_id[:80]!r}, but no call{last} has; put each result behind the message of"
            " the assistant with its call"
        )
    if call.result is not None:
        raise _error(f"two tool results have the id {result_id[:80]!r}; send one result per call")
    return call


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name[:80]) for name in islice(names, 8))


def _error(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, param="messages")

"""What agents say to a model besides messages: the tools it is offered, the date, and the results of its calls.

GLM-4 was trained with three tools of its own, which its prompt knows by their type, and with results that have a text
behind the role tag. Every other dialect gets functions, and results as OpenAI has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from types import MappingProxyType
from typing import Any

from glm4.agent.tool import Function, Observation, Tool, ToolResult
from glm4.chat.dialects.table import Dialect
from glm4.chat.messages import Message
from glm4.errors import Glm4Error

_BUILTIN_ORDER = ("simple_browser", "python", "cogview")  # of GLM-4's own demo


@dataclass(frozen=True)
class Offered:
    """A name that the model may call.

    Attributes:
        function: None for a tool that the model was trained with, whose arguments are text of its own kind.
    """

    name: str
    tool: Tool
    function: Function | None

    def definition(self) -> dict[str, Any]:
        """As a request has it."""
        return {"type": self.name} if self.function is None else self.function.definition()


class Prompting:
    """The tools of an agent as the models of a dialect see them.

    Args:
        system: instructions; None for none.
        today: the date that the model is told, which would otherwise believe that it is the year of its training; None
            is the date on which it is asked.

    Attributes:
        offered: what the model may call, by name.
        problems: tools or functions that it cannot, and why, in words for the user.
    """

    def __init__(self, dialect: Dialect, tools: Sequence[Tool], *, system: str | None, today: date | None) -> None:
        self.offered: dict[str, Offered] = {}
        self.problems: list[str] = []
        self._all_tools = bool(dialect.builtin_tools)
        self._system = system
        self._today = today
        self.replacements = _REPLACEMENTS.get(dialect.name, {})
        builtin = [tool for tool in tools if tool.builtin in dialect.builtin_tools]
        order = {name: at for at, name in enumerate(_BUILTIN_ORDER)}
        for tool in sorted(builtin, key=lambda tool: order.get(tool.builtin or "", len(order))):
            self._offer(Offered(tool.builtin or "", tool, None))
        for tool in tools:
            for function in () if tool in builtin else self._functions(tool):
                self._offer(Offered(function.name, tool, function))

    def _functions(self, tool: Tool) -> Sequence[Function]:
        try:
            return tool.functions  # of another process, perhaps
        except Glm4Error as error:
            self.problems.append(f"the tool {tool.name} cannot be used: {error}")
            return ()

    def _offer(self, offered: Offered) -> None:
        other = self.offered.setdefault(offered.name, offered)
        if other is not offered:
            self.problems.append(
                f"two tools have a function {offered.name}, {other.tool.name} and {offered.tool.name}; the model gets"
                f" that of {other.tool.name}"
            )

    def definitions(self) -> list[dict[str, Any]]:
        """The tools of a request."""
        return [offered.definition() for offered in self.offered.values()]

    def messages(self, conversation: Sequence[Message]) -> list[Message]:
        """A conversation's messages as the model gets them: the date and the instructions first.

        GLM-4's demo has the date in the block with the tools, for which its chat template has no place: it stands at
        the head of the next system block, before the instructions.
        """
        messages, system = list(conversation), self._system
        if messages and messages[0].role == "system":
            system = messages.pop(0).text
        if self.offered:
            said = "当前日期: " if self._all_tools else "Current date: "
            line = f"{said}{(self._today or date.today()).isoformat()}"
            system = f"{line}\n\n{system}" if system else line
        return [Message("system", system), *messages] if system else messages

    def results(self, call_id: str, result: ToolResult, *, alone: bool, chars: int) -> list[Message]:
        """The messages with a call's result.

        Args:
            alone: the answer made no other call. Otherwise each call has one message, so that results stay in order.
            chars: that the model reads at most.
        """
        observations = cut(result.observations, chars)
        if not self._all_tools:
            return [Message("tool", "\n\n".join(one.text for one in observations) or _NOTHING, tool_call_id=call_id)]
        if not alone or not observations:
            metadata = observations[0].metadata if observations else ""
            observations = (Observation("\n\n".join(one.text for one in observations), metadata),)
        return [
            Message(
                "observation",
                one.text or _NOTHING,
                tool_call_id=call_id if index == 0 else None,
                metadata=one.metadata or None,
            )
            for index, one in enumerate(observations)
        ]


_NOTHING = "(no output)"  # chat templates leave out empty messages


_REPLACEMENTS: Mapping[str, Mapping[str, str]] = MappingProxyType({"glm4": {"[[训练时间]]": "2023年"}})
"""Placeholders that models of a dialect write, and what is meant."""


def cut(observations: Sequence[Observation], chars: int) -> tuple[Observation, ...]:
    """Observations of at most `chars` characters together, each without its middle if it is too long."""
    share = chars
    left = sorted(len(one.text) for one in observations)
    while left:  # short ones leave their part to the others
        share = chars // len(left)
        if left[0] > share:
            break
        chars -= left.pop(0)
    else:
        return tuple(observations)
    return tuple(replace(one, text=cut_text(one.text, share)) for one in observations)


def cut_text(text: str, chars: int) -> str:
    """A text's beginning and end, and between them how much is missing."""
    if len(text) <= chars:
        return text
    head = chars * 2 // 3
    tail = chars - head
    return f"{text[:head]}\n[… {len(text) - chars:,} characters left out …]\n{text[len(text) - tail :]}"

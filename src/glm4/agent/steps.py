"""What an `AgentLoop` has its drivers do, and what a turn is begun with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from glm4.agent.limits import AgentLimits
from glm4.agent.prompting import Prompting
from glm4.agent.tool import Invocation, Tool
from glm4.chat.chat_request import ChatRequest
from glm4.llm import LLM
from glm4.sampling_params import SamplingParams

Decision = Literal["once", "always", "never"]
"""Of the user who is asked: run this call; run it, and further calls of this function without asking; do not run it."""


@dataclass(frozen=True)
class Generate:
    """Ask the model; pass what it says to `AgentLoop.add`, until the loop is not `generating` any more."""

    request: ChatRequest


@dataclass(frozen=True)
class Ask:
    """Ask the user whether a call may run; pass the decision to `AgentLoop.decide`."""

    tool: Tool
    invocation: Invocation


@dataclass(frozen=True)
class RunCalls:
    """Run these calls at the same time; pass what they say and return to `AgentLoop.output`, `file` and `finish`.

    Attributes:
        deadline: on the loop's clock, by which they must have ended; None for no limit but their own.
    """

    calls: tuple[tuple[Tool, Invocation], ...]
    deadline: float | None


Step = Generate | Ask | RunCalls


@dataclass(frozen=True)
class TurnOptions:
    """What a turn does not change.

    Attributes:
        context: tokens the model can take.
    """

    prompting: Prompting
    limits: AgentLimits
    context: int
    params: SamplingParams | None = None
    adapter: str | None = None
    constrain_calls: bool = True

    @property
    def output_chars(self) -> int:
        """Characters of a result that the model reads: a small context must have room for more than one."""
        return min(self.limits.output_chars, max(1000, self.context // 2))


def turn_options(
    llm: LLM,
    tools: Sequence[Tool],
    system: str | None,
    today: date | None,
    *,
    limits: AgentLimits,
    params: SamplingParams | None,
    **options: Any,
) -> TurnOptions:
    """The options of a turn that begins now; may wait, for tools of other processes.

    Args:
        options: adapter, constrain_calls.
    """
    prompting = Prompting(llm.dialect, tools, system=system, today=today)
    params = None if params is None else params.replace(n=1)
    return TurnOptions(prompting, limits, llm.context(options.get("adapter")), params, **options)

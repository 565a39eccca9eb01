"""A model whose answers, round for round, a test writes, and tools that do what a test says.

The real facade, tokenizer, templates, dialects and parsers run over the scripted backend. In answers, the names of
special tokens are those tokens: `weather\\n{"city": "Beijing"}<|observation|>` is a call as GLM-4 writes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from glm4.agent.events import AgentEvent, CallChanged, FileAdded, OutputAdded, TextAdded, TurnEnded
from glm4.agent.tool import Approval, Function, Invocation, Tool, ToolContext, ToolResult
from glm4.backends.scripted import ScriptedBackend
from glm4.chat.dialects.table import dialect_for
from glm4.engine.protocol import GenerationRequest
from glm4.llm import LLM
from glm4.requests.processor import Processor
from tiny import GLM_SPECIALS, VOCAB_SIZE, special_id, write_folder

TODAY = date(2026, 11, 29)
_SPECIAL = re.compile("(" + "|".join(re.escape(name) for name in GLM_SPECIALS) + ")")

Answer = str | Callable[[str], str]


class Script:
    """An LLM and the prompts it was given.

    Args:
        answers: of the rounds, in order; functions get the prompt's text. The last one is given again and again.
        dialect: with its own template.

    Attributes:
        prompts: with special tokens.
        constraints: of the requests; None for a free one.
    """

    def __init__(
        self, folder: Path, answers: Sequence[Answer], *, dialect: str = "glm4", max_model_len: int = 65536
    ) -> None:
        text = Processor.open(write_folder(folder, chat_template=None))
        self._text = replace(text, dialect=dialect_for(dialect), template=None)
        self._answers = list(answers)
        self.prompts: list[str] = []
        self.constraints: list[object] = []
        self.backend = _NotingBackend(self, self._script, vocab_size=VOCAB_SIZE, max_model_len=max_model_len)
        self.llm = LLM.from_backend(self.backend, self._text)

    def _script(self, prompt_ids: Sequence[int]) -> list[int]:
        prompt = self._text.tokenizer.decode(prompt_ids, skip_special_tokens=False)
        self.prompts.append(prompt)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        pieces = _SPECIAL.split(answer if isinstance(answer, str) else answer(prompt))
        ids: list[int] = []
        for piece in pieces:
            ids += [special_id(piece)] if piece in GLM_SPECIALS else self._text.tokenizer.encode(piece)
        return [*ids, special_id("<|user|>")]


class _NotingBackend(ScriptedBackend):
    def __init__(self, script: Script, answer: Callable[[Sequence[int]], list[int]], **options: Any) -> None:
        super().__init__(answer, **options)
        self._noted = script.constraints

    def add_request(self, request: GenerationRequest) -> None:
        self._noted.append(request.constraint)
        super().add_request(request)


class PlainTool(Tool):
    """A tool of one function, which a test writes."""

    def __init__(
        self,
        name: str,
        run: Callable[[Invocation, ToolContext], ToolResult | str],
        *,
        builtin: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        approval: Approval = "always",
        timeout: float = 60.0,
        parallel: bool = False,
    ) -> None:
        self.name = name
        self.builtin = builtin
        self.functions = (Function(name, f"Does {name}.", parameters or {"type": "object"}),)
        self.approval = approval
        self.timeout = timeout
        self._parallel = parallel
        self._run = run
        self.invocations: list[Invocation] = []
        self.closed = 0

    @property
    def parallel(self) -> bool:
        """As a test says."""
        return self._parallel

    def run(self, invocation: Invocation, context: ToolContext) -> ToolResult:
        """Note the call, and do what the test says."""
        self.invocations.append(invocation)
        result = self._run(invocation, context)
        return ToolResult.of(result) if isinstance(result, str) else result

    def close(self) -> None:
        """Count."""
        self.closed += 1


def shown_text(events: Iterable[AgentEvent]) -> str:
    """The visible text, and the thinking."""
    return "".join(event.add for event in events if isinstance(event, TextAdded))


def states(events: Iterable[AgentEvent]) -> list[tuple[str, str]]:
    """Tool and state of each change of a call; writing once per call."""
    found: list[tuple[str, str]] = []
    for event in events:
        if isinstance(event, CallChanged) and (event.tool, event.state) not in found[-1:]:
            found.append((event.tool, event.state))
    return found


def outputs(events: Iterable[AgentEvent]) -> str:
    """What tools said for people."""
    return "".join(event.add for event in events if isinstance(event, OutputAdded))


def files(events: Iterable[AgentEvent]) -> list[str]:
    """Names of files."""
    return [event.file.name for event in events if isinstance(event, FileAdded)]


def ending(events: Sequence[AgentEvent]) -> tuple[str, str]:
    """Status and reason."""
    last = events[-1]
    assert isinstance(last, TurnEnded)
    assert not any(isinstance(event, TurnEnded) for event in events[:-1])
    return last.status, last.reason

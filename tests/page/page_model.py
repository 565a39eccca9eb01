"""A model for the page's tests: answers by question, rounds of tools, and places where an answer waits for the test.

The real facade, tokenizer, template, dialect and parser run over the scripted backend.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glm4.backends.scripted import ScriptedBackend, _Running
from glm4.chat.dialects.table import dialect_for
from glm4.engine.protocol import GenerationOutput
from glm4.llm import LLM
from glm4.requests.processor import Processor
from stepped import until
from tiny import VOCAB_SIZE, special_id, write_folder

HOLD = "\x02"
"""In an answer: here the model waits until the test says `go`."""
_ROLE = re.compile(r"<\|(system|user|assistant|observation)\|>[^\n]*\n")


@dataclass(frozen=True)
class Asked:
    """What the model is asked.

    Attributes:
        question: the last message of the user, with its documents.
        observations: what tools said since then.
        prompt: all of it, with special tokens.
    """

    question: str
    observations: tuple[str, ...]
    prompt: str

    @classmethod
    def of(cls, prompt: str) -> Asked:
        _, *pieces = _ROLE.split(prompt.removesuffix("<|assistant|>"))
        messages = list(zip(pieces[::2], pieces[1::2], strict=True))
        last = max((at for at, (role, _) in enumerate(messages) if role == "user"), default=0)
        said = tuple(text.strip() for role, text in messages[last:] if role == "observation")
        return cls(messages[last][1].strip() if messages else "", said, prompt)


Answer = str | Callable[[Asked], str]
Rules = Mapping[str, Answer | Sequence[Answer]]
"""Words of the question → the answer, or the answers of the rounds: before the first observation, after it, …"""


def call(function: str, arguments: str) -> str:
    """A call as GLM-4 writes it; `before` it there may be text."""
    return f"\x1e{function}\n{arguments}"


class Model:
    """An LLM that follows rules, the first that fits; others are answered with "I do not know."

    Args:
        burst: tokens (bytes) that a step brings.
        delay: seconds that a step takes.

    Attributes:
        asked: what it was asked, in order.
        waiting: requests at a HOLD; `passed` is how many of these were passed.
    """

    def __init__(
        self,
        folder: Path,
        rules: Rules,
        *,
        dialect: str = "glm4",
        max_model_len: int = 65536,
        max_num_seqs: int = 4,
        burst: int = 4,
        delay: float = 0.001,
    ) -> None:
        text = Processor.open(write_folder(folder, chat_template=None))
        self._text = replace(text, dialect=dialect_for(dialect), template=None)
        self._opening = "\n" if dialect in ("glm4", "glm4_0414") else ""
        self._permits = threading.Semaphore(0)
        self._free = False
        self.passed = 0
        self.waiting: set[str] = set()
        self.rules = dict(rules)
        self.asked: list[Asked] = []
        self.backend = _HoldingBackend(self, burst, delay, max_model_len=max_model_len, max_num_seqs=max_num_seqs)
        self.llm = LLM.from_backend(self.backend, self._text)

    def script(self, prompt_ids: Sequence[int]) -> list[int]:
        """Ids of the answer; a HOLD is -1."""
        asked = Asked.of(self._text.tokenizer.decode(prompt_ids, skip_special_tokens=False))
        self.asked.append(asked)
        found = next((answer for words, answer in self.rules.items() if words in asked.question), "I do not know.")
        rounds = [found] if isinstance(found, str) or callable(found) else list(found)
        answer = rounds[min(len(asked.observations), len(rounds) - 1)]
        said = answer if isinstance(answer, str) else answer(asked)
        before, said = (HOLD, said[1:]) if said.startswith(HOLD) else ("", said)
        text = before + (said[1:] if said.startswith("\x1e") else self._opening + said)
        ids: list[int] = []
        for piece in re.split(f"({HOLD}|\x1e)", text):
            if piece == HOLD:
                ids.append(-1)
            elif piece == "\x1e":
                ids.append(special_id("<|assistant|>"))
            else:
                ids += self._text.tokenizer.encode(piece)
        return [*ids, special_id("<|user|>")]

    def may_go_on(self, request: str) -> bool:
        """Whether this request passes the HOLD that it has come to."""
        if not (self._free or self._permits.acquire(blocking=False)):
            self.waiting.add(request)
            return False
        self.waiting.discard(request)
        self.passed += 1
        return True

    def go_to_next(self) -> None:
        """Let the only request pass a HOLD, and come back when it has come to the next one."""
        passed = self.passed
        self.go()
        until(lambda: self.passed > passed and self.waiting, "the next place to wait")

    def go(self, count: int = 1) -> None:
        """Let it pass so many HOLDs."""
        self._permits.release(count)

    def rest(self) -> None:
        """Let it finish what it is at, and be as it was: the end of every test."""
        self._free = True
        until(lambda: not self.llm.has_unfinished_requests(), "the model is idle")
        self._free = False
        self.waiting.clear()
        while self._permits.acquire(blocking=False):
            pass


class _HoldingBackend(ScriptedBackend):
    def __init__(self, model: Model, burst: int, delay: float, **options: Any) -> None:
        super().__init__(model.script, vocab_size=VOCAB_SIZE, **options)
        self._model, self._burst, self.delay = model, burst, delay

    def step(self) -> list[GenerationOutput]:
        time.sleep(self.delay)
        outputs = super().step()
        if not any(output.token_ids or output.finish_reason for output in outputs):
            time.sleep(0.005)  # all wait
        return outputs

    def _advance(self, running: _Running) -> GenerationOutput:
        ids: tuple[int, ...] = ()
        for _ in range(self._burst):
            if running.answer[running.sent : running.sent + 1] == [-1]:
                if not self._model.may_go_on(running.request.request_id):
                    break
                running.answer = [*running.answer[: running.sent], *running.answer[running.sent + 1 :]]
            output = super()._advance(running)
            ids += output.token_ids
            if output.finish_reason is not None:
                return replace(output, token_ids=ids)
        return GenerationOutput(running.request.request_id, ids)

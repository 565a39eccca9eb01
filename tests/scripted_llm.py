"""An LLM whose answers a test writes: the real facade, tokenizer, template and dialect over the scripted backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from glm4.backends.scripted import ScriptedBackend
from glm4.chat.dialects.table import dialect_for
from glm4.llm import LLM
from glm4.requests.processor import Processor
from tiny import GLM_TEMPLATE, VOCAB_SIZE, special_id, write_folder


def scripted_llm(
    folder: Path,
    answer: Callable[[str], str],
    *,
    max_model_len: int = 4096,
    max_num_seqs: int = 4,
    delay: float = 0.0,
    dialect: str | None = None,
    template: str | None = GLM_TEMPLATE,
) -> LLM:
    """An LLM that answers with `answer(prompt)`, a byte a step.

    Args:
        folder: where the tiny checkpoint (its text side is used) is written.
        answer: prompt text, special tokens left out, to answer text.
        delay: seconds a step takes.
        dialect: answer in this one, with its own chat template, which knows tools; None is GLM-4 with a short one.
        template: the checkpoint's chat template; None takes the dialect's own.
    """
    text = Processor.open(write_folder(folder, chat_template=template))
    if dialect is not None:
        text = replace(text, dialect=dialect_for(dialect), template=None)

    def script(prompt_ids: Sequence[int]) -> list[int]:
        return [*text.tokenizer.encode(answer(text.tokenizer.decode(prompt_ids))), special_id("<|user|>")]

    class SlowBackend(ScriptedBackend):
        def step(self):  # type: ignore[no-untyped-def]
            time.sleep(delay)
            return super().step()

    backend = SlowBackend(script, vocab_size=VOCAB_SIZE, max_model_len=max_model_len, max_num_seqs=max_num_seqs)
    return LLM.from_backend(backend, text)

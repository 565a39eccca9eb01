"""At evaluations: answers to prompts of the validation data, compared with what the data has for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from glm4.errors import InvalidRequestError
from glm4.requests.processor import Processor
from glm4.training.answer_tasks import AnswerScores, AnswerTask
from glm4.training.data.examples import TokenizedExample
from glm4.training.generation import greedy_answers

Collate = Callable[[Sequence[TokenizedExample]], Mapping[str, torch.Tensor]]


class GenerationMetrics:
    """Answers the tasks at every `every`-th evaluation, and measures the answers.

    The tasks are shared out among processes, each of which has the whole model.

    Args:
        collate: see `greedy_answers`.
        write_sample: takes a line of samples.jsonl; None in processes that write nothing.
    """

    def __init__(
        self,
        processor: Processor,
        tasks: list[AnswerTask],
        collate: Collate,
        *,
        every: int,
        eval_steps: int,
        max_tokens: int,
        batch_size: int,
        write_sample: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        if not tasks:
            raise InvalidRequestError(
                "generate_every needs validation data with conversations that fit max_length; there are none",
                param="generate_every",
            )
        self._processor = processor
        self._tasks = tasks
        self._collate = collate
        self._scores = AnswerScores(processor, tasks)
        self._steps = every * eval_steps
        self._max_tokens = max_tokens
        self._batch_size = batch_size
        self._write_sample = write_sample

    def __call__(self, model: Any, step: int, precision: Callable[[], AbstractContextManager[Any]]) -> dict[str, float]:
        """Metrics by name; none if this evaluation is not one of those with answers.

        Args:
            step: optimizer steps done. That it alone decides lets a resumed run go on as it would have.
            precision: a context to compute in.
        """
        if step % self._steps:
            return {}
        answers = self._answers(model, precision)
        if self._write_sample is not None:
            decode = self._processor.tokenizer.decode
            for task, ids in zip(self._tasks, answers, strict=True):
                texts = {"prompt": self._shown(task.prompt), "answer": ids, "reference": list(task.reference)}
                self._write_sample(
                    {"step": step, **{name: decode(ids, skip_special_tokens=False) for name, ids in texts.items()}}
                )
        return self._scores.metrics(answers)

    def _shown(self, prompt: TokenizedExample) -> list[int]:
        """Ids in which a picture is its marks, as the template writes it."""
        kept = np.ones(len(prompt), np.bool_)
        if self._processor.image is not None:
            for start in prompt.image_starts:
                kept[start + 2 : start + self._processor.image.num_rows - 1] = False
        ids: list[int] = prompt.ids[kept].tolist()
        return ids

    def _answers(self, model: Any, precision: Callable[[], AbstractContextManager[Any]]) -> list[list[int]]:
        state = PartialState()
        mine = range(state.process_index, len(self._tasks), state.num_processes)
        found = greedy_answers(
            model,
            [self._tasks[index].prompt for index in mine],
            self._collate,
            self._processor.stop_ids,
            max_tokens=self._max_tokens,
            batch_size=self._batch_size,
            precision=precision,
        )
        answers = dict(gather_object(list(zip(mine, found, strict=True))))
        return [answers[index] for index in range(len(self._tasks))]

"""Places in validation data where the model answers, and how well an answer does there. Needs no torch.

A prompt is what precedes the last tokens that carry loss: it ends where the model begins (behind `<|assistant|>`), so
the reference is never in it, and an answer is measured on the very tokens that training would have taught.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from glm4.chat.answer import Answer
from glm4.chat.dialects.base import function_names
from glm4.chat.messages import Message, ToolCall
from glm4.requests.processor import Processor
from glm4.training.data.examples import TokenizedExample, TokenizedPreference
from glm4.training.text_metrics import chrf, rouge_l


@dataclass(frozen=True, eq=False)
class AnswerTask:
    """A prompt and what is expected of its answer.

    Attributes:
        prompt: nothing of it carries loss but earlier answers.
        reference: the ids of the expected answer, the token that ends it included.
    """

    prompt: TokenizedExample
    reference: tuple[int, ...]


def answer_tasks(
    samples: Sequence[TokenizedExample | TokenizedPreference], processor: Processor, most: int
) -> list[AnswerTask]:
    """The tasks of some samples, evenly spread over all of them; of a preference, with the better answer.

    Samples that were cut (whose answers may have no end) or that are plain text have none.

    Args:
        most: how many tasks.
    """
    shortest = max(1, len(processor.tokenizer.prefix_ids))  # what precedes plain text is no prompt
    tasks: list[AnswerTask] = []
    step = max(1, len(samples) // most)
    # Every step-th sample, then those between them, until there are enough.
    for index in (index for start in range(step) for index in range(start, len(samples), step)):
        sample = samples[index]
        task = _task(sample.chosen if isinstance(sample, TokenizedPreference) else sample, shortest)
        if task is not None:
            tasks.append(task)
        if len(tasks) == most:
            break
    return tasks


def _task(example: TokenizedExample, shortest: int) -> AnswerTask | None:
    places = np.flatnonzero(example.mask)
    if example.num_cut or not len(places):
        return None
    end = int(places[-1]) + 1
    start = int(np.flatnonzero(~example.mask[:end])[-1]) + 1
    if start <= shortest:
        return None
    pictures = sum(place < start for place in example.image_starts)
    prompt = replace(
        example,
        ids=example.ids[:start],
        mask=example.mask[:start],
        images=example.images[:pictures],
        image_starts=example.image_starts[:pictures],
    )
    return AnswerTask(prompt, tuple(example.ids[start:end].tolist()))


class AnswerScores:
    """Compares answers with what was expected of them.

    Metrics are shares from 0 to 1:
        exact_match: the text, or the calls (names and the values of their arguments), are those of the reference.
        rouge_l, chrf: means; of calls, of their text.
        right_stop: the answer was ended by the model, a call with the token that ends calls and a reply with the one
            that ends replies.
        valid_calls: of the answers that call: all names are offered, and arguments are JSON objects.
        right_calls: of the references that call: the answer makes the same calls.
    """

    def __init__(self, processor: Processor, tasks: Sequence[AnswerTask]) -> None:
        self._processor = processor
        self._tasks = tasks
        self._references = [self.read(task, task.reference) for task in tasks]
        self._call_endings = processor.dialect.call_ending_ids(processor.tokenizer)
        replies = {
            task.reference[-1]
            for task, message in zip(tasks, self._references, strict=True)
            if not message.tool_calls and task.reference[-1] in processor.stop_ids
        }
        self._reply_endings = replies or processor.stop_ids - self._call_endings

    def read(self, task: AnswerTask, ids: Sequence[int]) -> Message:
        """An answer as the model's dialect understands it."""
        dialect, tokenizer = self._processor.dialect, self._processor.tokenizer
        ended = bool(ids) and ids[-1] in self._processor.stop_ids
        detokenizer, parser = dialect.detokenizer(tokenizer), dialect.parser(task.prompt.tools, tokenizer)
        text = "".join(map(detokenizer.push, ids[:-1] if ended else ids)) + detokenizer.flush()
        return Answer([*parser.push(text), *parser.finish(ids[-1] if ended else None)]).message()

    def metrics(self, answers: Sequence[Sequence[int]]) -> dict[str, float]:
        """Of one answer per task: ids, the token that ended it included."""
        found: dict[str, list[float]] = {}
        for task, reference, ids in zip(self._tasks, self._references, answers, strict=True):
            for name, value in self._scores(task, reference, ids).items():
                found.setdefault(name, []).append(value)
        return {name: sum(values) / len(values) for name, values in found.items()}

    def _scores(self, task: AnswerTask, reference: Message, ids: Sequence[int]) -> dict[str, float]:
        answer = self.read(task, ids)
        said, wanted = _text(answer), _text(reference)
        same_calls = _calls(answer) == _calls(reference)
        scores = {
            "exact_match": float(same_calls and answer.text.strip() == reference.text.strip()),
            "rouge_l": rouge_l(said, wanted),
            "chrf": chrf(said, wanted),
            "right_stop": float(self._stopped_right(answer, ids)),
        }
        if answer.tool_calls:
            names = _offered(task.prompt.tools)
            valid = (
                c.name in names and (names[c.name] or _arguments(c.arguments) is not None) for c in answer.tool_calls
            )
            scores["valid_calls"] = float(all(valid))
        if reference.tool_calls:
            scores["right_calls"] = float(same_calls)
        return scores

    def _stopped_right(self, answer: Message, ids: Sequence[int]) -> bool:
        if not ids or ids[-1] not in self._processor.stop_ids:
            return False
        if answer.tool_calls and self._call_endings:
            return ids[-1] in self._call_endings
        return ids[-1] in self._reply_endings


def _offered(tools: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Names that may be called → whether what they are asked is plain text, as of GLM-4's own tools."""
    own = {str(tool["type"]): True for tool in tools if tool.get("type", "function") != "function"}
    return own | dict.fromkeys(function_names(tools), False)


def _is_valid(call: ToolCall, names: Mapping[str, bool]) -> bool:
    return call.name in names and (names[call.name] or _arguments(call.arguments) is not None)


def _arguments(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _calls(message: Message) -> list[tuple[str, Any]]:
    """Names and arguments, the latter as values where they are JSON: how they are written makes no difference."""
    calls = []
    for call in message.tool_calls:
        value = _arguments(call.arguments)
        calls.append((call.name, call.arguments.strip() if value is None else value))
    return calls


def _text(message: Message) -> str:
    return "\n".join([message.text.strip(), *(f"{call.name}\n{call.arguments}" for call in message.tool_calls)]).strip()

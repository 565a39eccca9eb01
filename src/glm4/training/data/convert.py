"""Examples as rows of our JSONL, whatever format they came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from glm4.chat.messages import Message
from glm4.chat.parts import ImagePart
from glm4.errors import TrainingDataError
from glm4.training.data.examples import ChatExample, Example, TextExample
from glm4.training.data.formats.row_values import LocalImage


def as_row(example: Example) -> dict[str, Any]:
    """The row: `messages` and `tools`, `text`, or `prompt`, `chosen` and `rejected`. Read again, it is the same.

    Pictures of this machine are named by their absolute paths; others are in the row.
    """
    if isinstance(example, TextExample):
        return {"text": example.text}
    row: dict[str, Any] = {}
    if isinstance(example, ChatExample):
        row["messages"] = _messages(example.request.messages)
        for message, weight in zip(row["messages"], example.weights or (), strict=False):
            if message["role"] == "assistant":
                message["weight"] = weight
    else:
        row["prompt"] = _messages(example.request.messages)
        row |= {"chosen": _messages(example.chosen), "rejected": _messages(example.rejected)}
    if example.request.tools:
        row["tools"] = [dict(tool) for tool in example.request.tools]
    return row


def whole_texts(examples: Iterable[Example | TrainingDataError]) -> Iterator[Example | TrainingDataError]:
    """Examples in which the pieces of a long text are one again."""
    pieces: list[str] = []
    for example in examples:
        if not isinstance(example, TextExample):
            yield example
            continue
        pieces.append(example.text)
        if example.ends:
            yield replace(example, text="".join(pieces))
            pieces.clear()


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    rows = []
    for message in messages:
        row = message.as_dict()
        for call in row.get("tool_calls", ()):
            if not call["id"]:
                del call["id"]
        if any(isinstance(part, ImagePart) for part in message.content):
            row["content"] = [_part(part) for part in message.content]
        rows.append(row)
    return rows


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, LocalImage):
        return {"type": "image", "image": part.path}
    shown: dict[str, Any] = part.as_dict()
    return shown

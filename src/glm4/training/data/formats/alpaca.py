"""Alpaca: `{"instruction": …, "input": …, "output": …, "history": [[question, answer], …], "system": …}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glm4.chat.messages import Message
from glm4.chat.parts import refusal
from glm4.training.data.examples import ChatExample
from glm4.training.data.formats.messages import chat_example
from glm4.training.data.formats.row_values import Setting, as_list, as_text, required


def read_alpaca(row: Mapping[str, Any], setting: Setting, place: str) -> ChatExample:
    """A row of Alpaca.

    Raises:
        InvalidRequestError: it is malformed; says where.
    """
    name = setting.columns.output
    messages = [*alpaca_prompt(row, setting), Message("assistant", as_text(required(row, name), name))]
    return chat_example(messages, [1] * len(messages), row, setting, place)


def alpaca_prompt(row: Mapping[str, Any], setting: Setting) -> list[Message]:
    """The earlier turns and the question: instruction and input, a line break between them."""
    columns = setting.columns
    messages: list[Message] = []
    for index, turn in enumerate(as_list(row.get(columns.history), columns.history)):
        where = f"{columns.history}[{index}]"
        if not isinstance(turn, Sequence) or isinstance(turn, (str, bytes)) or len(turn) != 2:
            raise refusal(where, "must be a pair: a question and its answer")
        question, answer = (as_text(text, where) for text in turn)
        messages += [Message("user", question), Message("assistant", answer)]
    texts = [as_text(row.get(name), name) for name in (columns.instruction, columns.input)]
    question = "\n".join(text for text in texts if text)
    if not question:
        raise refusal(columns.instruction, "the row has neither an instruction nor an input")
    return [*messages, Message("user", question)]

"""Preferences: a conversation with a better and a worse answer.

- OpenAI: `{"input": {"messages": […], "tools": […]}, "preferred_output": […], "non_preferred_output": […]}`
- `{"prompt": …, "chosen": …, "rejected": …}`, each a text or a list of messages. Without a prompt, `chosen` and
  `rejected` are whole conversations that begin alike.
- LLaMA-Factory: `conversations` (ShareGPT), or `instruction` and `input` (Alpaca), with `chosen` and `rejected`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glm4.chat.messages import Message
from glm4.chat.parts import refusal
from glm4.errors import shown
from glm4.training.data.examples import PreferenceExample
from glm4.training.data.formats.alpaca import alpaca_prompt
from glm4.training.data.formats.messages import read_turns, row_messages
from glm4.training.data.formats.row_values import Setting, conversation, from_json, required
from glm4.training.data.formats.sharegpt import share_turns

Turns = list[Message]


def read_preference(row: Mapping[str, Any], setting: Setting, place: str) -> PreferenceExample:
    """A row of any of these forms.

    Raises:
        InvalidRequestError: it is malformed; says where.
    """
    columns = setting.columns
    if "preferred_output" in row:
        asked = from_json(required(row, "input"), "input")
        if not isinstance(asked, Mapping):
            raise refusal("input", f"must be an object with messages, not {shown(asked)}")
        prompt, _ = read_turns(required(asked, "messages"), setting, "input.messages")
        names = ("preferred_output", "non_preferred_output")
        extra: Mapping[str, Any] = asked
    else:
        prompt, names, extra = _prompt(row, setting), (columns.chosen, columns.rejected), row
    chosen, rejected = (_answer(required(row, name), setting, name) for name in names)
    if not prompt:
        shared = _shared(chosen, rejected)
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    chosen, rejected = (turns[len(prompt) :] if _begins(turns, prompt) else turns for turns in (chosen, rejected))
    whole, tools = row_messages(prompt, extra, setting)
    request = conversation(whole, tools, answered=False)
    for name, answer in zip(names, (chosen, rejected), strict=True):
        if not answer:
            raise refusal(name, "has no answer behind the prompt")
        try:
            conversation([*request.messages, *answer], tools)
        except Exception as error:
            raise refusal(name, str(error)) from None
    if chosen == rejected:
        raise refusal(names[0], "the two answers are the same; delete the row")
    return PreferenceExample(request, tuple(chosen), tuple(rejected), place)


def _prompt(row: Mapping[str, Any], setting: Setting) -> Turns:
    """The turns before the answers; empty if they are in the answers."""
    columns = setting.columns
    if row.get(columns.prompt) is not None:
        value = from_list(row[columns.prompt], columns.prompt)
        if isinstance(value, str):
            return [Message("user", value)]
        return read_turns(value, setting, columns.prompt)[0]
    for name in dict.fromkeys([columns.messages or "conversations", columns.messages or "messages"]):
        if row.get(name) is not None:
            return _turns(row[name], setting, name)
    if any(row.get(name) for name in (columns.instruction, columns.input)):
        return alpaca_prompt(row, setting)
    return []


def from_list(value: Any, where: str) -> Any:
    """A list that a table keeps as JSON; any other text is text."""
    return from_json(value, where) if isinstance(value, str) and value.lstrip()[:2] in ("[{", "[\n") else value


def _answer(value: Any, setting: Setting, where: str) -> Turns:
    value = from_list(value, where)
    return [Message("assistant", value)] if isinstance(value, str) else _turns(value, setting, where)


def _turns(value: Any, setting: Setting, where: str) -> Turns:
    first = value if isinstance(value, Mapping) else next(iter(value), None) if isinstance(value, Sequence) else None
    if isinstance(first, Mapping) and (setting.columns.role or "from") in first and "role" not in first:
        return share_turns(value, setting, where)[0]
    return read_turns([value] if isinstance(value, Mapping) else value, setting, where)[0]


def _shared(one: Sequence[Message], other: Sequence[Message]) -> int:
    """How many turns two conversations begin with alike."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def _begins(turns: Turns, prompt: Turns) -> bool:
    return len(turns) > len(prompt) > 0 and turns[: len(prompt)] == prompt

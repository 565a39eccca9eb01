"""ShareGPT: `{"conversations": [{"from": "human", "value": …}, …], "tools": "[…]", "system": …}`.

Roles are human, gpt, system, function_call (the value is JSON: a call or a list of calls), and observation or tool.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from glm4.chat.messages import Message, Role
from glm4.chat.parts import refusal
from glm4.errors import shown
from glm4.training.data.examples import ChatExample
from glm4.training.data.formats.messages import chat_example, json_calls, read_weight, turns_field
from glm4.training.data.formats.row_values import Setting, as_list, as_text, is_call, required

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "observation": "observation",
    "tool": "observation",
    "function_response": "observation",
    "system": "system",
}
_CALL = "function_call"


def read_sharegpt(row: Mapping[str, Any], setting: Setting, place: str) -> ChatExample:
    """A row of ShareGPT.

    Raises:
        InvalidRequestError: it is malformed; says where.
    """
    name = turns_field(row, setting, ("conversations", "messages"))
    messages, weights = share_turns(required(row, name), setting, name)
    return chat_example(messages, weights, row, setting, place)


def share_turns(value: Any, setting: Setting, where: str) -> tuple[list[Message], list[int]]:
    """Turns and the weight of each; a single turn need not be in a list."""
    turns = [value] if isinstance(value, Mapping) else as_list(value, where)
    messages: list[Message] = []
    weights: list[int] = []
    for index, raw in enumerate(turns):
        place = f"{where}[{index}]"
        if not isinstance(raw, Mapping):
            raise refusal(place, f"a turn must be an object, not {shown(raw)}")
        found = _results(messages, _turn(raw, setting, place))
        weight = read_weight(raw.get("weight"), f"{place}.weight")
        messages += found
        weights += [weight] * len(found)
    return messages, weights


def _turn(raw: Mapping[str, Any], setting: Setting, where: str) -> Message:
    columns = setting.columns
    role_key, content_key = columns.role or "from", columns.content or "value"
    said = raw.get(role_key)
    text = as_text(raw.get(content_key), f"{where}.{content_key}")
    if said in (columns.call, _CALL):
        calls = json_calls(text)
        if not calls:
            raise refusal(
                f"{where}.{content_key}",
                'a call must be JSON: {"name": …, "arguments": {…}}, or a list of such objects',
            )
        return Message("assistant", tool_calls=calls)
    words = _ROLES | {
        columns.user: "user",
        columns.assistant: "assistant",
        columns.observation: "observation",
        columns.system_role: "system",
    }
    role = words.get(said) if isinstance(said, str) else None
    if role is None:
        known = ", ".join([*dict.fromkeys([*words, columns.call])])
        raise refusal(f"{where}.{role_key}", f"must be one of {known}, not {shown(said)}")
    return Message(role, text)


def _results(before: list[Message], message: Message) -> list[Message]:
    """The message; a result that is a list with one item for each of several calls is as many results."""
    if message.role != "observation" or not before or not is_call(before[-1]) or len(before[-1].tool_calls) < 2:
        return [message]
    try:
        values = json.loads(message.text)
    except (ValueError, RecursionError):
        return [message]
    if not isinstance(values, list) or len(values) != len(before[-1].tool_calls):
        return [message]
    texts = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
    return [Message("observation", text) for text in texts]

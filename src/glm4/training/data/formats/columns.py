"""Names of fields and roles in rows, for data that has others than its format's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Columns:
    """Where a row has what; "" is the name that the row's format has.

    Attributes:
        messages: the list of turns ("messages", ShareGPT's "conversations").
        role, content: of a turn ("role" and "content", ShareGPT's "from" and "value").
        user, assistant, call, observation, system_role: what ShareGPT's `from` says for a role, beside the usual words.
        images: a list of pictures, for the places that texts mark with `<image>`.
    """

    messages: str = ""
    role: str = ""
    content: str = ""
    user: str = "human"
    assistant: str = "gpt"
    call: str = "function_call"
    observation: str = "observation"
    system_role: str = "system"
    system: str = "system"
    tools: str = "tools"
    images: str = "images"
    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"
    history: str = "history"
    text: str = "text"
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"

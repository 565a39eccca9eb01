"""A conversation in `glm4 chat`: its turns and sampling choices, and the JSON file in which it is saved.

The file is `{"model": name, "messages": [OpenAI-style messages], "params": {sampling option: value}}`. An answer
that was stopped has `"interrupted": true`.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from glm4.chat.messages import Message
from glm4.chat.parts import TextPart
from glm4.errors import InvalidRequestError
from glm4.sampling_params import SamplingParams
from glm4.system.text_encoding import read_text

MAX_FILE_BYTES = 64 << 20

# What /params and saved files may set; n, logprobs and similar options do not apply to a conversation.
PARAM_NAMES = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "min_tokens",
    "max_tokens",
)


@dataclass(frozen=True)
class Turn:
    """One message; `interrupted` marks an answer that the user stopped."""

    message: Message
    interrupted: bool = False


@dataclass
class Conversation:
    """Turns so far, with the system message (if any) first, and the options that differ from the model's own."""

    turns: list[Turn] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def messages(self) -> list[Message]:
        """The turns as the model sees them."""
        return [turn.message for turn in self.turns]

    @property
    def system(self) -> str | None:
        """The system message."""
        first = self.turns[0].message if self.turns else None
        return first.text if first is not None and first.role == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        if self.system is not None:
            del self.turns[0]
        if text:
            self.turns.insert(0, Turn(Message("system", text)))

    def clear(self) -> None:
        """Forget everything but the system message."""
        del self.turns[1 if self.system is not None else 0 :]

    def drop_last_exchange(self) -> Message | None:
        """Remove the last user message and what followed; returns the message, or None if there is none."""
        for index in range(len(self.turns) - 1, -1, -1):
            if self.turns[index].message.role == "user":
                message = self.turns[index].message
                del self.turns[index:]
                return message
        return None


def save(conversation: Conversation, model: str, path: Path) -> None:
    """Write a conversation; the file is written atomically.

    Raises:
        InvalidRequestError: `path` exists and is not a saved conversation.
        OSError: it cannot be written.
    """
    if path.exists():
        try:
            load(path)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"not overwritten, choose another name: {error}") from error
    document = {
        "model": model,
        "messages": [_turn_to_dict(turn) for turn in conversation.turns],
        "params": conversation.params,
    }
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            json.dump(document, file, ensure_ascii=False, indent=2)
            file.write("\n")
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def load(path: Path) -> tuple[Conversation, str]:
    """Read a saved conversation.

    Returns:
        The conversation and the name of its model.

    Raises:
        InvalidRequestError: it is not a saved conversation; the message says what is wrong.
        OSError: it cannot be read.
    """
    if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
        raise InvalidRequestError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MB; not a saved conversation")
    try:
        document = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{path} is not a saved conversation: not valid JSON") from error
    try:
        return _from_document(document)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{path} is not a saved conversation: {error}") from error


def _from_document(document: object) -> tuple[Conversation, str]:
    if not isinstance(document, dict) or set(document) != {"model", "messages", "params"}:
        raise InvalidRequestError('expected an object with "model", "messages" and "params"')
    model, messages, params = document["model"], document["messages"], document["params"]
    if not isinstance(model, str) or not isinstance(messages, list) or not isinstance(params, dict):
        raise InvalidRequestError('"model" must be a string, "messages" a list and "params" an object')
    turns = [_turn_from_dict(raw, f"messages[{index}]") for index, raw in enumerate(messages)]
    if any(turn.message.role == "system" for turn in turns[1:]):
        raise InvalidRequestError("a system message may only come first")
    check_params(params)
    return Conversation(turns, dict(params)), model


def check_params(params: Mapping[str, Any]) -> None:
    """Reject unknown names and invalid values of sampling options.

    Raises:
        InvalidRequestError: `.param` names the option.
    """
    for name in params:
        check_param_name(name)
    if not isinstance(params.get("stop", ""), (str, list)):
        raise InvalidRequestError("stop must be a string or a list of strings", param="stop")
    SamplingParams(**params)


def check_param_name(name: str) -> None:
    """Reject names that are not in `PARAM_NAMES`.

    Raises:
        InvalidRequestError: `.param` names the option.
    """
    if name not in PARAM_NAMES:
        raise InvalidRequestError(f"unknown parameter {name!r}; known: {', '.join(PARAM_NAMES)}", param=name)


def _turn_to_dict(turn: Turn) -> dict[str, Any]:
    return turn.message.as_dict() | ({"interrupted": True} if turn.interrupted else {})


def _turn_from_dict(raw: object, where: str) -> Turn:
    if not isinstance(raw, dict):
        raise InvalidRequestError("every message must be an object")
    interrupted = raw.pop("interrupted", False)
    if not isinstance(interrupted, bool):
        raise InvalidRequestError('"interrupted" must be true or false')
    message = Message.from_dict(raw, where)
    named = [part if isinstance(part, TextPart) else replace(part, where=part.kind) for part in message.content]
    return Turn(replace(message, content=named), interrupted)

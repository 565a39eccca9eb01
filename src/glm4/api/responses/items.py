"""Items of the Responses API: read strictly, kept in the format the API returns, converted to messages."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glm4.api.files.parts import INPUT_FILE, read_file
from glm4.api.responses.earlier_calls import BUILTIN_CALLS, call_messages, read_call
from glm4.chat.messages import Message, Role, ToolCall
from glm4.chat.parts import ImagePart, Part, TextPart, check_detail, read_audio
from glm4.errors import InvalidRequestError, shown

Item = dict[str, Any]
"""One item as stored and returned: `type`, `id` and the fields of the type."""

REFERENCE = "item_reference"
IMAGE, AUDIO = "input_image", "input_audio"
MAX_ITEMS = 4096
_OF_FILES = ("file_id", "file_data", "filename")
_STATUSES = ("in_progress", "completed", "incomplete")


def item_id(prefix: str) -> str:
    """A new id, such as `msg_…`; the prefixes are OpenAI's."""
    return f"{prefix}_{uuid.uuid4().hex}"


def read_input(name: str, value: Any) -> list[Item]:
    """The `input` of a body: text or a list of items.

    Raises:
        InvalidRequestError: `.param` names the path.
    """
    if isinstance(value, str):
        return [_message({"role": "user", "content": value}, name)]
    if not isinstance(value, list):
        raise InvalidRequestError(f"{name} must be a string or a list of items", param=name)
    if len(value) > MAX_ITEMS:
        raise InvalidRequestError(f"{name} has {len(value)} items; at most {MAX_ITEMS} are taken", param=name)
    items = [_item(raw, f"{name}[{index}]") for index, raw in enumerate(value)]
    seen: set[str] = set()
    for index, item in enumerate(items):
        if item["id"] in seen:
            raise InvalidRequestError(f"{name} has two items with id {shown(item['id'])}", param=f"{name}[{index}].id")
        seen.add(item["id"])
    return items


def _item(raw: Any, where: str) -> Item:
    if not isinstance(raw, Mapping):
        raise InvalidRequestError(f"{where} must be an object", param=where)
    given = {key: value for key, value in raw.items() if value is not None}
    kind = given.get("type", "message" if "role" in given else REFERENCE)
    read = _READERS.get(kind) if isinstance(kind, str) else None
    if read is None:
        raise InvalidRequestError(
            f"{where}.type = {shown(kind)} is not supported; only {', '.join(_READERS)} are", param=f"{where}.type"
        )
    return read(given, where)


def _message(given: Mapping[str, Any], where: str) -> Item:
    _check_keys(given, where, "role", "content", "id", "status", "phase")
    role = given.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise InvalidRequestError(
            f"{where}.role must be user, assistant, system or developer, not {shown(role)}", param=f"{where}.role"
        )
    own, *others = (
        ("output_text", "input_text", "refusal")
        if role == "assistant"
        else ("input_text", "output_text", IMAGE, AUDIO, INPUT_FILE)
    )
    content = given.get("content", "")
    parts = [{"type": own, "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise InvalidRequestError(f"{where}.content must be a string or a list of parts", param=f"{where}.content")
    read = [_part(part, (own, *others), f"{where}.content[{index}]") for index, part in enumerate(parts)]
    item = {"id": _text(given, "id", where, item_id("msg")), "type": "message", "role": role}
    return item | {"status": _status(given, where), "content": read}


def _part(raw: Any, kinds: Sequence[str], where: str) -> dict[str, Any]:
    """A part of one of these kinds; every kind of text is stored as the first kind."""
    kind = raw.get("type") if isinstance(raw, Mapping) else None
    own = kinds[0]
    if not isinstance(raw, Mapping) or kind not in kinds:
        raise InvalidRequestError(
            f"{where}.type must be {' or '.join(kinds)}, not {shown(kind)}", param=f"{where}.type"
        )
    given = {key: value for key, value in raw.items() if value is not None}
    if kind == IMAGE:
        _check_keys(given, where, "image_url", "detail", "prompt_cache_breakpoint")
        check_detail(given.get("detail", "auto"), f"{where}.detail")
        return {
            "type": IMAGE,
            "image_url": _text(given, "image_url", where),
            "detail": given.get("detail", "auto"),
        }
    if kind == INPUT_FILE:
        read_file(given, where)
        return {"type": INPUT_FILE, **{key: given[key] for key in _OF_FILES if key in given}}
    if kind == AUDIO:
        _check_keys(given, where, AUDIO)
        return {"type": AUDIO, AUDIO: given.get(AUDIO)}
    if kind == "refusal":
        _check_keys(given, where, "refusal")
        return {"type": "refusal", "refusal": _text(given, "refusal", where)}
    _check_keys(given, where, "text", "annotations", "logprobs", "parsed", "prompt_cache_breakpoint")
    part: dict[str, Any] = {"type": own, "text": _text(given, "text", where)}
    return part | {"annotations": [], "logprobs": []} if own == "output_text" else part


def _function_call(given: Mapping[str, Any], where: str) -> Item:
    _check_keys(given, where, "id", "call_id", "name", "arguments", "parsed_arguments", "status", "caller")
    _check_caller(given, where)
    name = _text(given, "name", where)
    if not name.strip() or len(name.splitlines()) != 1:
        raise InvalidRequestError(f"{where}.name must be a name of one line", param=f"{where}.name")
    return {
        "id": _text(given, "id", where, item_id("fc")),
        "type": "function_call",
        "call_id": _text(given, "call_id", where),
        "name": name,
        "arguments": _text(given, "arguments", where),
        "status": _status(given, where),
    }


def _function_call_output(given: Mapping[str, Any], where: str) -> Item:
    _check_keys(given, where, "id", "call_id", "output", "status", "caller", "name", "created_by")
    _check_caller(given, where)
    output = given.get("output")
    if not isinstance(output, str):
        if not isinstance(output, list):
            raise InvalidRequestError(f"{where}.output must be a string or a list of parts", param=f"{where}.output")
        at = f"{where}.output"
        kinds = ("input_text", "output_text", IMAGE, INPUT_FILE)
        output = [_part(part, kinds, f"{at}[{index}]") for index, part in enumerate(output)]
    return {
        "id": _text(given, "id", where, item_id("fco")),
        "type": "function_call_output",
        "call_id": _text(given, "call_id", where),
        "output": output,
        "status": _status(given, where),
    }


def _reasoning(given: Mapping[str, Any], where: str) -> Item:
    """Thinking from an earlier turn. Content encrypted by another server cannot be read and is left out."""
    _check_keys(given, where, "id", "summary", "content", "encrypted_content", "status")
    item: Item = {"id": _text(given, "id", where, item_id("rs")), "type": "reasoning", "status": _status(given, where)}
    for key, kind in (("summary", "summary_text"), ("content", "reasoning_text")):
        parts = given.get(key, [])
        if not isinstance(parts, list):
            raise InvalidRequestError(f"{where}.{key} must be a list of parts", param=f"{where}.{key}")
        item[key] = []
        for index, part in enumerate(parts):
            at = f"{where}.{key}[{index}]"
            if not isinstance(part, Mapping) or part.get("type") != kind:
                raise InvalidRequestError(f"{at} must be of type {kind}", param=at)
            item[key].append({"type": kind, "text": _text(part, "text", at)})
    return item


def _builtin_call(given: Mapping[str, Any], where: str) -> Item:
    """A call that a server ran in an earlier turn, as it gave it."""
    return {"id": item_id("call"), **read_call(given, where)}


def _reference(given: Mapping[str, Any], where: str) -> Item:
    _check_keys(given, where, "id")
    return {"type": REFERENCE, "id": _text(given, "id", where)}


_READERS: Mapping[str, Callable[[Mapping[str, Any], str], Item]] = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _function_call_output,
    "reasoning": _reasoning,
    REFERENCE: _reference,
    **dict.fromkeys(BUILTIN_CALLS, _builtin_call),
}


def _check_keys(given: Mapping[str, Any], where: str, *known: str) -> None:
    for key in given:
        if key != "type" and key not in known:
            raise InvalidRequestError(f"unsupported field {shown(key)} in {where}", param=f"{where}.{key}")


def _check_caller(given: Mapping[str, Any], where: str) -> None:
    if given.get("caller", {"type": "direct"}) != {"type": "direct"}:
        raise InvalidRequestError(f"{where}.caller can be direct only", param=f"{where}.caller")


def _text(given: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    value = given.get(key, default)
    if not isinstance(value, str):
        problem = "is missing" if value is None else "must be a string"
        raise InvalidRequestError(f"{where}.{key} {problem}", param=f"{where}.{key}")
    return value


def _status(given: Mapping[str, Any], where: str) -> str:
    status = given.get("status", "completed")
    if status not in _STATUSES:
        raise InvalidRequestError(f"{where}.status must be one of {', '.join(_STATUSES)}", param=f"{where}.status")
    return str(status)


def resolved(items: Iterable[Item], find: Mapping[str, Item]) -> list[Item]:
    """Items with references replaced by what they refer to.

    Raises:
        InvalidRequestError: a reference to an unknown item.
    """
    result = []
    for item in items:
        if item["type"] == REFERENCE and item["id"] not in find:
            raise InvalidRequestError(f"there is no stored item with id {shown(item['id'])}", param="input")
        result.append(find[item["id"]] if item["type"] == REFERENCE else item)
    return result


@dataclass(frozen=True)
class _Turn:
    """An assistant turn being assembled from items."""

    text: str | None = None
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()

    def messages(self) -> list[Message]:
        if self.text is None and not self.calls:
            return []  # thinking without text or calls
        return [Message("assistant", self.text or "", reasoning=self.reasoning or None, tool_calls=self.calls)]


def to_messages(items: Sequence[Item], num_earlier: int = 0, raw: Sequence[str] = ()) -> list[Message]:
    """The conversation that resolved items describe: thinking, text and calls of one turn become one message.

    Files have become text and pictures before; see `server.agent.input_files`.

    Args:
        num_earlier: how many of them are from earlier responses; the rest are the request's `input`.
        raw: tools whose arguments the model writes as they are.

    Raises:
        InvalidRequestError: the output of an unknown call, or a malformed image or audio clip.
    """
    messages: list[Message] = []
    turn, called = _Turn(), set()
    for index, item in enumerate(items, -num_earlier):
        kind = item["type"]
        if kind in BUILTIN_CALLS:
            messages += [*turn.messages(), *call_messages(item, raw)]
            turn = _Turn()
            continue
        speaks = kind == "message" and item["role"] == "assistant"
        if not (kind == "function_call" or (turn.text is None and not turn.calls and (speaks or kind == "reasoning"))):
            messages += turn.messages()
            turn = _Turn()
        if kind == "function_call":
            called.add(item["call_id"])
            call = ToolCall(item["call_id"], item["name"], item["arguments"])
            turn = replace(turn, calls=(*turn.calls, call))
        elif kind == "reasoning":
            thought = _joined(item.get("content") or item["summary"])
            turn = replace(turn, reasoning="\n".join(filter(None, (turn.reasoning, thought))))
        elif speaks:
            turn = replace(turn, text=_joined(item["content"]))
        elif kind == "message":
            role: Role = "user" if item["role"] == "user" else "system"
            messages.append(Message(role, _parts(item["content"], index, "content")))
        else:
            if item["call_id"] not in called:
                raise InvalidRequestError(
                    f"no tool call found for function call output with call_id {shown(item['call_id'])}", param="input"
                )
            output = item["output"]
            content = output if isinstance(output, str) else _parts(output, index, "output")
            messages.append(Message("tool", content, tool_call_id=item["call_id"]))
    return messages + turn.messages()


def _parts(parts: Sequence[Mapping[str, Any]], item: int, key: str) -> list[Part]:
    """Convert the parts of input item `item` (negative: an earlier response) to message parts, checking content."""
    read: list[Part] = []
    for index, part in enumerate(parts):
        place = f"input[{item}].{key}[{index}]" if item >= 0 else "previous_response_id"
        if part["type"] == IMAGE:
            read.append(ImagePart.from_url(part["image_url"], where=place, type=IMAGE))
        elif part["type"] == AUDIO:
            read.append(read_audio(part, place))
        else:
            read.append(TextPart(part["text"]))
    return read


def _joined(parts: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(part["text"] if "text" in part else part["refusal"] for part in parts)

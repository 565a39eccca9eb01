"""Reading conversations: `system`, `messages` and their content blocks → `Message`s."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glm4.api.anthropic.members import check_cache_control, kind, members, one_of, refusal, string
from glm4.api.arguments import arguments_text
from glm4.chat.messages import Message, Role, ToolCall
from glm4.chat.parts import ImagePart, Part, TextPart
from glm4.errors import shown

# Claude Code's first system block: Anthropic billing data that changes with every request. In the prompt it would mean
# nothing to the model and prevent every cache hit.
_BILLING = "x-anthropic-billing-header:"

_OF_ANSWERS = ("id", "type", "model", "stop_reason", "stop_sequence", "stop_details", "usage", "diagnostics")
"""Members of an answer that is sent back whole: they mean nothing in a prompt."""


def read_system(value: Any) -> list[Message]:
    """The system prompt: text or text blocks; no message if it is empty."""
    blocks = [value] if isinstance(value, str) else _texts("system", value)
    text = "\n".join(block for block in blocks if not block.startswith(_BILLING))
    return [Message("system", text)] if text else []


@dataclass
class _Turn:
    """A turn being assembled block by block."""

    role: Role
    content: list[Part] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    tool_call_id: str | None = None

    def takes(self, more: _Turn) -> bool:
        """Whether `more` continues this turn: same speaker, and no text after a call."""
        same = self.role == more.role and self.role in ("user", "assistant")
        return same and not (self.calls and (more.content or more.reasoning))

    def add(self, more: _Turn) -> None:
        """Append `more` to this turn."""
        self.content += more.content
        self.reasoning += more.reasoning
        self.calls += more.calls

    def message(self) -> Message:
        """The turn as glm4's `Message`."""
        return Message(
            self.role,
            [part for part in self.content if self.role == "tool" or part != TextPart("")],
            reasoning="\n".join(filter(None, self.reasoning)) or None,
            tool_calls=tuple(self.calls),
            tool_call_id=self.tool_call_id,
        )


def read_messages(value: Any) -> list[Message]:
    """The turns of a conversation; consecutive turns of one speaker are merged, as Anthropic does.

    Raises:
        InvalidRequestError: `.param` is the path of the invalid value.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise refusal("messages", "must be a list")
    if not value:
        raise refusal("messages", "at least one message is required")
    turns: list[_Turn] = []
    for index, raw in enumerate(value):
        where = f"messages.{index}"
        given = members(where, raw, ("role", "content", *_OF_ANSWERS), ("role", "content"))
        reader = _READERS.get(given["role"]) if isinstance(given["role"], str) else None
        if reader is None:
            raise refusal(f"{where}.role", f"must be user, assistant or system, not {shown(given['role'])}")
        for part in reader(f"{where}.content", given["content"]):
            if turns and turns[-1].takes(part):
                turns[-1].add(part)
            else:
                turns.append(part)
    return [turn.message() for turn in turns]


def _system_turn(where: str, content: Any) -> Iterator[_Turn]:
    texts = [content] if isinstance(content, str) else _texts(where, content)
    yield _Turn("system", [TextPart(text) for text in texts])


def _user_turn(where: str, content: Any) -> Iterator[_Turn]:
    """Text and tool results, in order."""
    if isinstance(content, str):
        yield _Turn("user", [TextPart(content)])
        return
    for place, block in _blocks(where, content):
        if kind(place, block) == "tool_result":
            yield _tool_result(place, block)
        else:
            yield _Turn("user", [_part(place, block)])


def _assistant_turn(where: str, content: Any) -> Iterator[_Turn]:
    """Thinking, text and calls."""
    if isinstance(content, str):
        yield _Turn("assistant", [TextPart(content)])
        return
    for place, block in _blocks(where, content):
        what = kind(place, block)
        if what == "text":
            yield _Turn("assistant", [TextPart(_text_block(place, block))])
        elif what == "thinking":
            given = members(place, block, ("type", "thinking", "signature"), ("thinking",))
            yield _Turn("assistant", reasoning=[string(f"{place}.thinking", given["thinking"])])
        elif what == "tool_use":
            yield _Turn("assistant", calls=[_tool_use(place, block)])
        elif what == "redacted_thinking":
            members(place, block, ("type", "data"), ("data",))  # encrypted by Anthropic: our model cannot read it
        else:
            raise _unknown_block(place, what)


_READERS = {"user": _user_turn, "assistant": _assistant_turn, "system": _system_turn}


def _blocks(where: str, content: Any) -> list[tuple[str, Any]]:
    """Content blocks with their paths."""
    if not isinstance(content, Sequence):
        raise refusal(where, "must be a string or a list of blocks")
    return [(f"{where}.{index}", block) for index, block in enumerate(content)]


def _texts(where: str, content: Any) -> list[str]:
    """Content that may contain only text blocks."""
    texts = []
    for place, block in _blocks(where, content):
        what = kind(place, block)
        if what != "text":
            raise refusal(f"{place}.type", f"must be text, not {shown(what)}")
        texts.append(_text_block(place, block))
    return texts


def _text_block(where: str, block: Mapping[str, Any]) -> str:
    # citations: from an earlier answer, about documents still in the conversation
    given = members(where, block, ("type", "text", "cache_control", "citations", "parsed_output"), ("text",))
    check_cache_control(where, given)
    return string(f"{where}.text", given["text"])


def _part(where: str, block: Mapping[str, Any]) -> Part:
    """The content part of a user or tool block."""
    what = kind(where, block)
    if what == "image":
        return _image(where, block)
    reader = {"text": _text_block, "document": _document, "search_result": _search_result}.get(what)
    if reader is None:
        raise _unknown_block(where, what)
    return TextPart(reader(where, block))


def _unknown_block(where: str, what: str) -> Exception:
    return refusal(f"{where}.type", f"content blocks of type {shown(what)} are not supported here")


def _image(where: str, block: Mapping[str, Any]) -> ImagePart:
    given = members(where, block, ("type", "source", "cache_control"), ("source",))
    check_cache_control(where, given)
    place = f"{where}.source"
    what = kind(place, given["source"])
    if what == "base64":
        source = members(place, given["source"], ("type", "media_type", "data"), ("media_type", "data"))
        media_type, data = (string(f"{place}.{name}", source[name]) for name in ("media_type", "data"))
        return ImagePart.from_base64(data, media_type, where=where, type="image")
    if what == "url":
        source = members(place, given["source"], ("type", "url"), ("url",))
        return ImagePart.from_url(string(f"{place}.url", source["url"]), where=where, type="image")
    raise refusal(f"{place}.type", f"images of type {shown(what)} cannot be read here; send base64 or url")


def _document(where: str, block: Mapping[str, Any]) -> str:
    known = ("type", "source", "title", "context", "citations", "cache_control")
    given = members(where, block, known, ("source",))
    check_cache_control(where, given)
    _no_citations(where, given)
    place = f"{where}.source"
    what = kind(place, given["source"])
    if what == "text":
        source = members(place, given["source"], ("type", "data", "media_type"), ("data",))
        text = string(f"{place}.data", source["data"])
    elif what == "content":
        source = members(place, given["source"], ("type", "content"), ("content",))
        content = source["content"]
        text = content if isinstance(content, str) else "\n".join(_texts(f"{place}.content", content))
    else:
        raise refusal(f"{place}.type", f"documents of type {shown(what)} cannot be read here; send their text")
    return _tagged("document", {name: given[name] for name in ("title", "context") if name in given}, text, where)


def _search_result(where: str, block: Mapping[str, Any]) -> str:
    known = ("type", "source", "title", "content", "citations", "cache_control")
    given = members(where, block, known, ("source", "title", "content"))
    check_cache_control(where, given)
    _no_citations(where, given)
    text = "\n".join(_texts(f"{where}.content", given["content"]))
    return _tagged("search_result", {"source": given["source"], "title": given["title"]}, text, where)


def _tagged(tag: str, about: Mapping[str, Any], text: str, where: str) -> str:
    heads = [f"<{name}>{string(f'{where}.{name}', value)}</{name}>" for name, value in about.items()]
    return "\n".join([f"<{tag}>", *heads, text, f"</{tag}>"])


def _no_citations(where: str, given: Mapping[str, Any]) -> None:
    if "citations" in given:
        wanted = members(f"{where}.citations", given["citations"], ("enabled",))
        one_of(f"{where}.citations.enabled", wanted.get("enabled", False), [False])


def _tool_use(where: str, block: Mapping[str, Any]) -> ToolCall:
    known = ("type", "id", "name", "input", "caller", "cache_control")
    given = members(where, block, known, ("id", "name", "input"))
    check_cache_control(where, given)
    if "caller" in given:
        one_of(f"{where}.caller.type", kind(f"{where}.caller", given["caller"]), ["direct"])
    arguments = given["input"]
    if not isinstance(arguments, Mapping):
        raise refusal(f"{where}.input", "must be an object")
    return ToolCall(
        string(f"{where}.id", given["id"]), string(f"{where}.name", given["name"]), arguments_text(arguments)
    )


def _tool_result(where: str, block: Mapping[str, Any]) -> _Turn:
    known = ("type", "tool_use_id", "content", "is_error", "cache_control")
    given = members(where, block, known, ("tool_use_id",))
    check_cache_control(where, given)
    content = given.get("content") or []
    parts: list[Part]
    if isinstance(content, str):
        parts = [TextPart(content)]
    else:
        parts = [_part(place, block) for place, block in _blocks(f"{where}.content", content)]
    if one_of(f"{where}.is_error", given.get("is_error", False), [False, True]):
        first = parts[0] if parts else None
        said, others = (first.text, parts[1:]) if isinstance(first, TextPart) else ("", parts)
        parts = [TextPart(f"Error: {said}"), *others]  # the prompt has no other field for it
    return _Turn("tool", parts, tool_call_id=string(f"{where}.tool_use_id", given["tool_use_id"]))

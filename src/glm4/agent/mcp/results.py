"""What a server answers, as the model and people get it."""

from __future__ import annotations

import base64
import binascii
import json
import mimetypes
from typing import TYPE_CHECKING

from glm4.agent.mcp.text import one_line, visible
from glm4.agent.tool import SYSTEM_ERROR, Observation, ToolContext, ToolResult
from glm4.errors import InvalidRequestError

if TYPE_CHECKING:
    import mcp_types as types

MAX_TEXT = 200_000
"""Characters of a result; the loop may cut further."""

MAX_BLOCKS = 100
_ENDINGS = {"image/jpeg": ".jpg", "audio/wav": ".wav", "audio/mpeg": ".mp3"}  # systems differ in what they know


def tool_result(result: types.CallToolResult, context: ToolContext) -> ToolResult:
    """Structured content is preferred to texts, which repeat it. Pictures, sound and files go to the conversation."""
    texts: list[str] = []
    nothing = "(no output)"
    if result.structured_content is not None:
        texts.append(json.dumps(result.structured_content, ensure_ascii=False))
    for block in result.content[:MAX_BLOCKS]:
        if block.type == "text" and result.structured_content is not None:
            continue
        text = _Block(block, context).text()
        if _for_people(block):
            context.output(visible(text, MAX_TEXT) + "\n")
            nothing = "(the result was shown to the user)"
        else:
            texts.append(text)
    if len(result.content) > MAX_BLOCKS:
        texts.append(f"[{len(result.content) - MAX_BLOCKS} more parts are left out]")
    whole = "\n".join(filter(None, texts))
    if len(whole) > MAX_TEXT:
        whole = f"{whole[:MAX_TEXT]}\n[cut: the result has {len(whole)} characters]"
    if result.is_error:
        return ToolResult((Observation(whole or "the tool failed and does not say why", SYSTEM_ERROR),), failed=True)
    return ToolResult.of(whole or nothing)


def _for_people(block: types.ContentBlock) -> bool:
    """The server asks to show it to the user, not to the model."""
    audience = block.annotations.audience if block.annotations else None
    return bool(audience) and "assistant" not in (audience or ())


class _Block:
    """One part of a result as text for the model; files are put aside."""

    def __init__(self, block: types.ContentBlock, context: ToolContext) -> None:
        self._block, self._context = block, context

    def text(self) -> str:
        """The text."""
        block = self._block
        if block.type == "text":
            return block.text
        if block.type == "image" or block.type == "audio":  # mypy does not follow `in`
            return self._file(block.type, block.data, block.mime_type, block.type)
        if block.type == "resource_link":
            kind = f", {one_line(block.mime_type, 100)}" if block.mime_type else ""
            about = one_line(block.description or "", 500)
            return f"[resource {one_line(block.name, 200)}{kind}: {one_line(block.uri, 2000)}] {about}".rstrip()
        resource = block.resource
        uri = one_line(resource.uri, 2000)
        if hasattr(resource, "text"):
            return f"[resource {uri}]\n{resource.text}"
        return self._file("resource", resource.blob, resource.mime_type or "", uri.rstrip("/").rpartition("/")[2])

    def _file(self, what: str, data: str, media_type: str, name: str) -> str:
        try:
            content = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            return f"[{what}: not readable, as it is not valid base64]"
        if self._context.files is None:
            return f"[{what} of {len(content)} bytes, which is not kept]"
        kind = media_type.partition(";")[0].strip().lower()
        ending = _ENDINGS.get(kind) or mimetypes.guess_extension(kind) or ""
        name = one_line(name, 100) or what
        try:
            stored = self._context.files.put(name if name.endswith(ending) else name + ending, content)
        except InvalidRequestError as error:
            return f"[{what} of {len(content)} bytes, which is not kept: {error}]"
        self._context.file(stored)
        return f"[{what} {stored.name}, shown to the user]"

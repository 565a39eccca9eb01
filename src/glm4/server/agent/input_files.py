"""`InputFiles`: files in conversations become what a model reads: documents their text, pictures pictures.

The text of a document stands in front of its message, as files of the assistant do. It is data that a stranger may have
written: instructions in it reach the model like the rest of it.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from glm4.agent.attachments import SVG, text_of, told
from glm4.agent.file_store import clean_name, media_type
from glm4.agent.files import StoredFile
from glm4.api.files.parts import CHAT, MOST, RESPONSES, PartForm, SentFile, anthropic_file
from glm4.api.responses.items import Item
from glm4.errors import InvalidRequestError
from glm4.server.agent.state import AgentState, owner_of
from glm4.server.errors import ApiError
from glm4.server.memory import current_body, parse
from glm4.server.state import find_state


class InputFiles:
    """The files of one request.

    Attributes:
        owner: who sent it; only this one's stored files are found.
    """

    def __init__(self, agents: AgentState, owner: str) -> None:
        self._agents = agents
        self.owner = owner
        self._count = 0

    @classmethod
    def of(cls, request: Request) -> InputFiles:
        """For a request."""
        return cls(find_state(request.app, AgentState), owner_of(request))

    async def chat(self, body: dict[str, Any]) -> None:
        """Replace files in the messages of a chat body, which has not been checked yet."""
        messages = body.get("messages")
        for index, message in enumerate(messages if isinstance(messages, list) else ()):
            if isinstance(message, dict) and isinstance(message.get("content"), list):
                message["content"] = await self._content(message["content"], f"messages[{index}].content", CHAT)

    async def items(self, items: Sequence[Item], *, earlier: bool = False) -> list[Item]:
        """Items of a response with text and pictures in place of files; the given ones stay as they are."""
        found = []
        for index, item in enumerate(items):
            key = "output" if item["type"] == "function_call_output" else "content"
            where = "previous_response_id" if earlier else f"input[{index}].{key}"
            parts = item.get(key)
            found.append(
                {**item, key: await self._content(parts, where, RESPONSES)} if isinstance(parts, list) else item
            )
        return found

    async def anthropic(self, body: dict[str, Any]) -> None:
        """Replace documents in base64, and stored ones, in the messages of an Anthropic body by their text."""
        messages = body.get("messages")
        for index, message in enumerate(messages if isinstance(messages, list) else ()):
            if isinstance(message, dict):
                await self._blocks(message.get("content"), f"messages.{index}.content")

    async def _blocks(self, blocks: Any, where: str) -> None:
        for index, block in enumerate(blocks if isinstance(blocks, list) else ()):
            place = f"{where}.{index}"
            if isinstance(block, dict) and block.get("type") == "tool_result":
                await self._blocks(block.get("content"), f"{place}.content")
            elif (file := await parse(lambda: anthropic_file(block, place))) is not None:  # noqa: B023  (called at once)
                name, text = await self._text(file)
                block["source"] = {"type": "text", "media_type": "text/plain", "data": text}
                block.setdefault("title", name)

    async def _content(self, parts: Sequence[Any], where: str, form: PartForm) -> list[Any]:
        """The parts of a message: documents first, as one text."""
        documents: list[tuple[str, str]] = []
        others: list[Any] = []
        for index, part in enumerate(parts):
            place = where if where == "previous_response_id" else f"{where}[{index}]"
            file = await parse(lambda: form.file(part, place))  # noqa: B023  (called at once)
            if file is None:
                others.append(part)
            elif (url := await self._picture(file)) is not None:
                others.append(form.picture(url))
            else:
                documents.append(await self._text(file))
        if not documents:
            return others
        first = others[0] if others and isinstance(others[0], dict) else {}
        if first.get("type") == form.text("")["type"] and isinstance(first.get("text"), str):
            return [{**first, "text": told(documents) + first["text"]}, *others[1:]]
        return [form.text(told(documents)), *others]

    async def _picture(self, file: SentFile) -> str | None:
        """A picture as a data URL; None for other files."""
        if file.id is not None:
            stored = await self._stored(file)
            kind = stored.media_type
            if not kind.startswith("image/") or kind == SVG:
                return None
            data = await asyncio.to_thread(self._agents.files.read, stored.sha256)
            await self._hold(len(data))
        else:
            data = file.data or b""
            kind = media_type(data, file.name or "")
            if not kind.startswith("image/") or kind == SVG:
                return None
        self._another(file)
        return f"data:{kind};base64,{base64.b64encode(data).decode()}"

    async def _text(self, file: SentFile) -> tuple[str, str]:
        """A document's name and text."""
        self._another(file)
        try:
            if file.id is not None:
                document = await self._agents.documents.stored(await self._stored(file))
            else:
                limit = self._agents.config.max_upload_bytes
                if len(file.data or b"") > limit:
                    raise InvalidRequestError(f"the file has more than {limit:,} bytes")
                document = await self._agents.documents.data(file.data or b"", clean_name(file.name or ""))
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{file.where}: {error}", param=file.where) from None
        text = text_of(document)
        await self._hold(len(text.encode()))
        return document.name, text

    async def _stored(self, file: SentFile) -> StoredFile:
        try:
            return await self._agents.file(file.id or "", self.owner)
        except ApiError as error:
            raise InvalidRequestError(f"{file.where}: {error.message}", param=file.where) from None

    async def _hold(self, nbytes: int) -> None:
        """Hold the memory of what is prepared along with the body."""
        body = current_body()
        if body is not None:
            await body.add(nbytes)

    def _another(self, file: SentFile) -> None:
        self._count += 1
        if self._count > MOST:
            raise InvalidRequestError(f"{file.where}: a request has at most {MOST} files", param=file.where)

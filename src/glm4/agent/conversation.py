"""`Conversation`: what an agent and its user have said, and what belongs to it from turn to turn."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from glm4.agent.files import FileStore
from glm4.agent.tool import Sources
from glm4.chat.messages import Message
from glm4.documents.citations import Source
from glm4.errors import InvalidRequestError

VERSION = 1
"""Of what `as_dict` writes."""


def _new_id() -> str:
    return secrets.token_hex(16)


@dataclass
class Conversation:
    """A conversation with an agent. It holds only messages that any model can be shown: no call without its result.

    Attributes:
        id: 128 random bits, in hexadecimal.
        messages: the turns so far; a system message comes first, and takes the place of the agent's own.
        sources: what tools have shown so far, which answers cite by number.
        files: where its files are; None keeps none.
        approved: calls that need no further approval, as `tool/function`.
    """

    id: str = field(default_factory=_new_id)
    messages: list[Message] = field(default_factory=list)
    sources: Sources = field(default_factory=Sources)
    files: FileStore | None = None
    approved: set[str] = field(default_factory=set)

    def ask(self, text: str) -> None:
        """Add a message of the user."""
        self.messages.append(Message("user", text))

    def as_dict(self) -> dict[str, Any]:
        """As JSON, without the contents of files."""
        return {
            "version": VERSION,
            "id": self.id,
            "messages": [message.as_dict() for message in self.messages],
            "sources": [asdict(source) for source in self.sources.all()],
            "approved": sorted(self.approved),
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], files: FileStore | None = None) -> Conversation:
        """Read what `as_dict` has written.

        Raises:
            InvalidRequestError: it is of a later version, or damaged.
        """
        version = raw.get("version")
        if version != VERSION:
            raise InvalidRequestError(
                f"a conversation of version {version!r} cannot be read; this glm4 reads {VERSION}"
            )
        try:
            return cls(
                id=str(raw["id"]),
                messages=[Message.from_dict(one, f"messages[{i}]") for i, one in enumerate(raw["messages"])],
                sources=Sources([Source(**one) for one in raw["sources"]]),
                files=files,
                approved=set(map(str, raw["approved"])),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidRequestError(f"this is not a saved conversation: {error}") from error

"""`Recording`: conversations of `glm4 chat --tools`, saved turn by turn, and one of them to go on with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from glm4.agent.file_store import FolderFileStore
from glm4.agent.sessions import Session, SessionMessage, SessionStore, Status
from glm4.agent.tool import Sources
from glm4.chat.messages import Message
from glm4.chat.parts import TextPart
from glm4.documents.citations import Source
from glm4.errors import StoreError


class Recording:
    """What is said goes into `SessionStore`. A question that is taken back or asked again begins another branch.

    Args:
        session: to go on with; None begins a new one with the first turn.
    """

    def __init__(self, store: SessionStore, files: FolderFileStore, model: str, session: Session | None = None) -> None:
        self._store, self._files, self._model = store, files, model
        self._session = session
        self._said: list[tuple[str, list[Message]]] = []  # of the branch: message → what the model reads of it
        self._sources: list[Source] = []  # the latest of a number counts
        for stored in store.branch(session.id) if session is not None else ():
            self._said.append((stored.id, [Message.from_dict(raw) for raw in stored.messages]))
            self._sources += [Source(**raw) for raw in stored.sources]

    @property
    def messages(self) -> list[Message]:
        """The conversation that is gone on with; the system message first, if it has one."""
        system = [Message("system", self._session.system)] if self._session and self._session.system else []
        return system + [message for _, messages in self._said for message in messages]

    def sources(self) -> Sources:
        """Those of the conversation."""
        return Sources(self._sources)

    def forget(self) -> None:
        """A new conversation begins."""
        self._session, self._said, self._sources = None, [], []

    def turn(
        self,
        before: Sequence[Message],
        added: Sequence[Message],
        told: dict[str, Any],
        sources: Sources,
        read: Callable[[str], bytes],
    ) -> None:
        """Save a question and its answer.

        Args:
            before: the conversation with the question at its end.
            told: `Transcript.as_dict` of the answer.
            read: sha256 → the content of a file of the answer.

        Raises:
            StoreError: it cannot be saved.
        """
        system = before[0].text if before and before[0].role == "system" else ""
        *history, question = [message for message in before if message.role != "system"]
        self._go_back_to(history)
        if self._session is None:
            self._session = self._store.create(system=system, model=self._model)
        elif system != self._session.system:
            self._session = self._store.change(self._session.id, changes={"system": system})
        new = [asdict(source) for source in sources.all() if source not in self._sources]
        self._add("user", [question], [{"kind": "text", "text": question.text}])
        self._add("assistant", added, told["parts"], told["end"]["status"], new, told["usage"])
        self._sources = sources.all()
        for made in [file for part in told["parts"] for file in part.get("files", ())] + told["files"]:
            kept = self._files.put(made["name"], read(made["file"]), alt=made.get("alt"))
            self._store.add_file(self._session.id, kept)

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    def _go_back_to(self, history: Sequence[Message]) -> None:
        """Forget what was said after this; what was never said here is saved first."""
        while self._said and [m for _, messages in self._said for m in messages] != list(history[: self._length]):
            self._said.pop()
        for message in history[self._length :]:
            if self._session is None:
                self._session = self._store.create(model=self._model)
            role = "user" if message.role == "user" else "assistant"
            self._add(role, [message], [{"kind": "text", "text": message.text}])

    @property
    def _length(self) -> int:
        return sum(len(messages) for _, messages in self._said)

    def _add(
        self,
        role: Any,
        messages: Sequence[Message],
        parts: Sequence[dict[str, Any]],
        status: Status = "completed",
        sources: Sequence[dict[str, Any]] = (),
        usage: dict[str, Any] | None = None,
    ) -> None:
        assert self._session is not None  # noqa: S101  (`turn` makes one)
        parent = self._said[-1][0] if self._said else None
        texts = [_as_dict(message) for message in messages]
        made = SessionMessage("", parent, role, status, self._model, texts, list(parts), list(sources), usage or {})
        self._said.append((self._store.add(self._session.id, made).id, list(messages)))


def _as_dict(message: Message) -> dict[str, Any]:
    """As JSON; pictures, which are files of the user, are left out."""
    kept = Message(
        message.role, [part for part in message.content if isinstance(part, TextPart)], message.reasoning,
        message.tool_calls, message.tool_call_id, message.metadata, message.tools, message.name,
    )  # fmt: skip
    return kept.as_dict()


def open_recording(model: str, resume: str | None = None) -> Recording:
    """Where conversations are saved, and the one whose id begins with `resume`.

    Raises:
        StoreError: they cannot be opened.
        UsageError: there is no such conversation.
    """
    from glm4.cli.sessions import find_session, open_sessions

    store, files = open_sessions()
    try:
        session = None if resume is None else find_session(store, resume)
        return Recording(store, files, model, session)
    except BaseException:
        store.close()
        raise


def record_quietly(recording: Recording, *turn: Any) -> None:
    """Save a turn; what cannot be saved is said, and the conversation goes on."""
    from glm4.cli.console import warning

    try:
        recording.turn(*turn)
    except StoreError as error:
        warning(f"the conversation is not saved: {error}")

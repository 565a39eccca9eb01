"""`Assistant`: turns with tools in `glm4 chat`, shown as they happen and stopped by Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from glm4.agent.agent import Agent
from glm4.agent.conversation import Conversation
from glm4.agent.events import AgentEvent, ErrorRaised, TurnEnded, UsageAdded
from glm4.agent.files import StoredFile
from glm4.agent.tool import Sources, Tool
from glm4.agent.transcript import Transcript
from glm4.chat.messages import Message
from glm4.cli import console
from glm4.cli.conversation.agent_view import AgentView, JsonLines, TurnView
from glm4.cli.conversation.approvals import ApproveOption, approver
from glm4.cli.conversation.interrupt import Interrupt, silent_keyboard
from glm4.cli.conversation.recording import Recording, record_quietly
from glm4.cli.conversation.render import View
from glm4.cli.conversation.saved_files import SavedFiles
from glm4.errors import Glm4Error, PromptTooLongError

if TYPE_CHECKING:
    from glm4.llm import LLM
    from glm4.sampling_params import SamplingParams


@dataclass(frozen=True)
class AgentReply:
    """What a turn came to.

    Attributes:
        messages: that it added to the conversation.
        ending: its last event.
        rounds: what each round with the model cost.
    """

    messages: list[Message]
    ending: TurnEnded
    rounds: list[UsageAdded]

    @property
    def interrupted(self) -> bool:
        """The user stopped it."""
        return self.ending.status == "stopped"


class Assistant:
    """The tools of `glm4 chat`, and what belongs to a conversation with them from turn to turn.

    Args:
        tools: closed by `close`.
        approve: whether to ask before calls of tools that need it.

    Attributes:
        given: files of the user that wait for the next message.
    """

    def __init__(self, tools: Sequence[Tool], files: SavedFiles, approve: ApproveOption = "ask") -> None:
        self.tools = tuple(tools)
        self.given: list[StoredFile] = []
        self.recording: Recording | None = None  # None saves nothing
        self._files = files
        self._approve = approve
        self._sources = Sources()
        self._approved: set[str] = set()

    def forget(self) -> None:
        """A new conversation begins: no sources, and nothing approved. Tools keep their state."""
        self._sources = Sources()
        self._approved = set()
        if self.recording is not None:
            self.recording.forget()

    def record(self, recording: Recording) -> list[Message]:
        """Save the turns from now on; returns the conversation that is gone on with."""
        self.recording = recording
        self._sources = recording.sources()
        return recording.messages

    def give(self, path: Path) -> None:
        """A file of the user: for the tools at once, and for the model with the next message.

        Raises:
            OSError: it cannot be read.
            InvalidRequestError: it is too large, or no tool can use it.
        """
        data = path.read_bytes()
        self.given.append(self._files.put(path.name, data))
        for tool in self.tools:
            tool.add_file(path.name, data)

    def attached(self, message: Message, llm: LLM) -> Message:
        """A message with the files that wait: documents as text if they fit, or as names that tools can read.

        Raises:
            InvalidRequestError: the model does not see pictures, or a document is broken or too long.
        """
        if not self.given:
            return message
        from glm4.agent.attachments import attached
        from glm4.documents.loading import load_document
        from glm4.sandbox.launch import unavailable

        load = partial(load_document, sandboxed=unavailable() is None)
        names = [tool.name for tool in self.tools]
        message = attached(message, self.given, self._files, llm, names, load, self._sources)
        self.given = []
        return message

    def answer(
        self,
        llm: LLM,
        messages: Sequence[Message],
        params: SamplingParams,
        make_view: Callable[[], View],
        *,
        adapter: str | None = None,
        as_json: bool = False,
    ) -> AgentReply:
        """Answer the last message; Ctrl-C stops within a step and keeps what has arrived.

        Args:
            make_view: for what the model says.
            as_json: print each event as a line of JSON instead.

        Raises:
            Glm4Error: the model failed before it had said or done anything.
        """
        conversation = Conversation(
            messages=list(messages), sources=self._sources, files=self._files, approved=self._approved
        )
        save = self._files.save
        view: TurnView = JsonLines(save) if as_json else AgentView(make_view, save)
        transcript = Transcript()
        with silent_keyboard(), Interrupt() as interrupt:
            approve = approver(self._approve, lambda: interrupt.requested)
            agent = Agent(llm, self.tools, params=params, adapter=adapter, approve=approve)
            interrupt.wake = agent.stop
            with view, closing(agent.run(conversation)) as events:
                for event in events:
                    for one in (*self._cited(event, transcript), event):
                        view.show(one)
                        transcript.add(one)
                    if interrupt.requested:
                        agent.stop()
        added = conversation.messages[len(messages) :]
        if self.recording is not None and added:
            told = transcript.as_dict()
            record_quietly(self.recording, messages, added, told, self._sources, self._files.read)
        if view.failure is not None:
            self._failed(view.failure, added)
        assert view.ending is not None  # noqa: S101 (for the type checker: every turn has an end)
        return AgentReply(added, view.ending, view.rounds)

    def _cited(self, event: AgentEvent, transcript: Transcript) -> Sequence[AgentEvent]:
        """What belongs before an event: of the last one, what the answer has from files."""
        sources = self._sources.all()
        if not isinstance(event, TurnEnded) or not any(source.file for source in sources):
            return ()
        from glm4.agent.word_citations import cited_by_words

        return cited_by_words(transcript.as_dict()["parts"], sources)

    def _failed(self, failure: ErrorRaised, added: Sequence[Message]) -> None:
        if not added:
            raise (PromptTooLongError if failure.code == "prompt_too_long" else Glm4Error)(failure.message)
        console.error(failure.message)

    def show_tools(self) -> None:
        """A line for each tool, for `/tools`."""
        for tool in self.tools:
            asks = {"always": "", "ask": "  (asks first)", "never": "  (not allowed)"}[tool.approval]
            console.stdout().print(console.printable(f"{tool.name}{asks}"), style="bold")
            for function in tool.functions:
                about = " ".join(function.description.split())
                console.notice(f"  {function.name}  {about[:160]}{'…' if len(about) > 160 else ''}")

    def close(self) -> None:
        """Close the tools. Idempotent."""
        for tool in self.tools:
            tool.close()
        self._files.close()
        if self.recording is not None:
            self.recording.close()


def show_rounds(rounds: Sequence[UsageAdded]) -> None:
    """What a turn cost, for `/stats`: sums over its rounds with the model."""
    if not rounds:
        console.notice("The last answer was stopped; there are no figures for it.")
        return
    last, written = rounds[-1], sum(one.completion for one in rounds)
    decode = sum(one.decode_seconds or 0.0 for one in rounds)
    cached, read = sum(one.cached for one in rounds), sum(one.prompt for one in rounds)
    used = last.prompt + last.completion
    rows = {
        "rounds": f"{len(rounds)}",
        "prompts": f"{read:,} tokens ({cached:,} from the cache)",
        "answers": f"{written:,} tokens",
        "decode": f"{(written - len(rounds)) / decode:.1f} tokens/s" if decode > 0 and written > len(rounds) else "-",
        "context": f"{used:,} of {last.context:,} tokens used ({100 * used / last.context:.1f}%)",
    }
    for label, text in rows.items():
        console.stdout().print(f"{label:<12} {text}")

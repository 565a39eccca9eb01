"""Line editing for `glm4 chat`: history across runs, multi-line messages, command completion."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output

from glm4.cli import console
from glm4.cli.conversation.interrupt import Interrupt
from glm4.hub.store import home


class LineEditor:
    """Reads messages from the terminal.

    Args:
        commands: command names with their slash, for completion.
        param_names: what `/params` can set, for completion.
        history_file: None means `chat_history` in the glm4 home folder.
        input: where keys come from; None means the terminal.
        output: where the line is drawn; None means the terminal.
    """

    def __init__(
        self,
        commands: Sequence[str],
        param_names: Sequence[str],
        *,
        history_file: Path | None = None,
        input: Input | None = None,
        output: Output | None = None,
    ) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=_open_history(history_file or home() / "chat_history"),
            multiline=True,
            key_bindings=_key_bindings(),
            completer=_CommandCompleter(commands, param_names),
            complete_while_typing=False,
            enable_history_search=False,
            input=input,
            output=output,
        )

    @property
    def text(self) -> str:
        """The current text of the line."""
        return self._session.default_buffer.text

    def read(self, interrupt: Interrupt, *, attached: str = "") -> str:
        """One message or command, as typed; lines are separated by newlines.

        Args:
            attached: what the message will have beside its text, shown in front of it.
            interrupt: collects a Ctrl-C that arrives before the prompt reads keys; it must not break the event loop,
                and is passed on once the prompt runs.

        Raises:
            KeyboardInterrupt: Ctrl-C at an empty prompt. If there is text, Ctrl-C discards it and reading continues.
            EOFError: Ctrl-D at an empty prompt.
        """
        prompt = f"{console.printable(attached)} >>> ".lstrip()
        while True:
            try:
                text = self._session.prompt(
                    prompt,
                    prompt_continuation=lambda width, line, is_soft_wrap: ("" if is_soft_wrap else "... ").rjust(width),
                    placeholder=FormattedText([("fg:ansibrightblack", "Message, or /help")]),
                    pre_run=partial(_pass_on, interrupt),
                )
            except (KeyboardInterrupt, asyncio.CancelledError):
                if not self.text:
                    raise KeyboardInterrupt from None
                continue
            # The terminal may deliver a partial character; invalid Unicode cannot be encoded for the model.
            return text.encode("utf-8", "replace").decode("utf-8")


def _pass_on(interrupt: Interrupt) -> None:
    if interrupt.take():
        get_app().exit(exception=KeyboardInterrupt())


def _key_bindings() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _submit(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if _open_block(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _newline(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _open_block(text: str) -> bool:
    '''True inside a `"""` block that is not closed yet.'''
    stripped = text.strip()
    return stripped.startswith('"""') and not (len(stripped) >= 6 and stripped.endswith('"""'))


class _CommandCompleter(Completer):
    """TAB completes commands, the names after /params, and file names after commands that take one."""

    def __init__(self, commands: Sequence[str], param_names: Sequence[str]) -> None:
        self._commands = commands
        self._param_names = param_names
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        text = document.text_before_cursor.lstrip()
        command, space, argument = text.partition(" ")
        if not text.startswith("/"):
            return
        if not space:
            yield from _matching(self._commands, text)
        elif command in ("/save", "/load", "/image"):
            yield from self._paths.get_completions(Document(argument), complete_event)
        elif command == "/params" and " " not in argument:
            yield from _matching(self._param_names, argument)


def _matching(words: Iterable[str], start: str) -> Iterator[Completion]:
    return (Completion(word, start_position=-len(start)) for word in words if word.startswith(start))


def _open_history(path: Path) -> History:
    """The history file, readable only by its owner; without a writable home folder, history for this run only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        path.chmod(0o600)
    except OSError as error:
        console.notice(f"no history is kept: {path}: {error.strerror}")
        return InMemoryHistory()
    return FileHistory(str(path))

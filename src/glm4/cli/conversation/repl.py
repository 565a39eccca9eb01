"""The conversation of `glm4 chat` at a terminal: reads lines, runs commands, shows answers."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from glm4.chat.messages import Message
from glm4.chat.parts import TextPart
from glm4.chat.pictures import images_of
from glm4.cli import console
from glm4.cli.console import printable
from glm4.cli.conversation import conversation
from glm4.cli.conversation.answer import Reply, answer
from glm4.cli.conversation.assistant import AgentReply, Assistant, show_rounds
from glm4.cli.conversation.attachments import Attachments
from glm4.cli.conversation.conversation import PARAM_NAMES, Conversation, Turn
from glm4.cli.conversation.interrupt import Interrupt, silent_keyboard
from glm4.cli.conversation.line_editor import LineEditor
from glm4.cli.conversation.view import make_view
from glm4.cli.options import adapter_name
from glm4.cli.pictures import pasted_picture, plain_path, shown_text, takes_text_only
from glm4.errors import Glm4Error, InvalidRequestError, PromptTooLongError

if TYPE_CHECKING:
    from glm4.chat.parts import ImagePart
    from glm4.llm import LLM
    from glm4.outputs import RequestOutput

# A command is a slash and one word; "/usr/bin has what in it?" is a question.
_COMMAND = re.compile(r"/([a-z?]+)(?:\s+(.*))?", re.DOTALL | re.IGNORECASE)


class CommandHelp(NamedTuple):
    """How /help shows a command."""

    usage: str
    summary: str


class Repl:
    """One conversation.

    Args:
        llm: the loaded model.
        model: the name the user gave; written to saved files.
        system: the first system message.
        params: sampling options given on the command line.
        plain: no Markdown rendering.
        pictures: for the first message.
        assistant: tools that the model may use; None for a plain conversation.
        editor: where lines come from; None creates one for the terminal.
    """

    def __init__(
        self,
        llm: LLM,
        model: str,
        *,
        system: str | None = None,
        params: dict[str, Any] | None = None,
        plain: bool = False,
        pictures: Sequence[ImagePart] = (),
        assistant: Assistant | None = None,
        history: Sequence[Message] = (),
        editor: LineEditor | None = None,
    ) -> None:
        self._llm = llm
        self._model = model
        self._plain = plain
        self._conversation = Conversation(params=dict(params or {}))
        self._conversation.turns += [Turn(message) for message in history]
        if system is not None:
            self._conversation.system = system
        self._attachments = Attachments(llm, model, pictures)
        self._assistant = assistant
        self._last: Reply | AgentReply | None = None
        self._running = True
        self._editor = editor or LineEditor([f"/{name}" for name in COMMANDS], PARAM_NAMES)

    def run(self) -> None:
        """Read and answer until /exit or Ctrl-D."""
        # A Ctrl-C that arrives before an answer or a prompt stops it as soon as it begins.
        with silent_keyboard(), Interrupt() as interrupt:
            self._banner()
            while self._running:
                try:
                    line = self._editor.read(interrupt, attached=self._attachments.names)
                    if line.strip():
                        self._handle(line)
                except KeyboardInterrupt:
                    console.notice("Ctrl-D or /exit leaves; Ctrl-C stops an answer.")
                except EOFError:
                    break

    def _handle(self, line: str) -> None:
        match = _COMMAND.fullmatch(line.strip())
        try:
            if match:
                self._run_command(match[1].lower(), (match[2] or "").strip())
            else:
                self._say(_without_quotes(line))
        except PromptTooLongError as error:
            console.error(str(error))
            console.notice(
                "Your message was not added; the conversation is still there. /save FILE keeps it, /clear starts anew, "
                "/undo drops the last exchange."
            )
        except (Glm4Error, OSError, MemoryError) as error:
            console.failure(error)

    def _banner(self) -> None:
        info, checkpoint = self._llm.info, self._llm.checkpoint
        name = checkpoint.variant.title if checkpoint is not None else self._model
        dtype = info.name if info.execution is None else info.execution.dtype
        text = f"{name} · {dtype} · context {info.max_model_len:,} tokens"
        console.stdout().print(text, style="bold")
        if self._llm.dialect.name == "chatml":  # used only by the small models that stand in for GLM-4
            console.notice(
                "A small model that shows the installation works; it is not GLM-4. The real thing: "
                "glm4 chat -m glm-4-9b-chat"
            )
        if self._attachments.model_sees:
            console.notice("This model sees: /image FILE attaches a picture, and so does a file dropped here.")
        console.notice(
            '/help shows the commands. Alt-Enter makes a new line, """ begins and ends a block, Ctrl-D leaves.'
        )

    # Answers

    def _say(self, text: str) -> None:
        """Send a message with the pictures that wait for it, one whose path is in the text among them."""
        found = pasted_picture(text)
        if found is not None and not self._attachments.model_sees:
            console.notice("This model takes text only: the path is sent, not the picture.")
        elif found is not None:
            self._attachments.add(found[0], self._conversation.messages)
            text = found[1]
            if not text:
                return
        waiting, self._attachments.waiting = self._attachments.waiting, []
        message = Message("user", [*waiting, TextPart(text)])
        given = [] if self._assistant is None else self._assistant.given
        try:
            if self._assistant is not None:
                message = self._assistant.attached(message, self._llm)
            self._ask(message)
        finally:
            if all(turn.message is not message for turn in self._conversation.turns):
                self._attachments.waiting = waiting  # the message was taken back
                if self._assistant is not None:
                    self._assistant.given = given

    def _ask(self, message: Message, otherwise: list[Turn] | None = None) -> None:
        """Answer `message`; on failure, the conversation is reset to `otherwise` (default: its previous state)."""
        turns = self._conversation.turns
        before = list(turns) if otherwise is None else otherwise
        turns.append(Turn(message))
        try:
            self._answer()
        except BaseException as error:
            turns[:] = before  # a question without an answer would interfere with the next one
            if not isinstance(error, KeyboardInterrupt):
                raise
            console.notice("[stopped at once; your message was taken back]")

    def _answer(self) -> None:
        turns, messages = self._conversation.turns, self._conversation.messages
        params = self._llm.default_sampling_params().replace(**self._conversation.params)
        adapter = adapter_name(self._llm)
        if self._assistant is not None:
            views = partial(make_view, plain=self._plain)
            self._last = reply = self._assistant.answer(self._llm, messages, params, views, adapter=adapter)
            self._keep(reply)
            return
        result = answer(self._llm, messages, params, make_view(plain=self._plain), adapter=adapter)
        self._last = result
        if result.interrupted and not (result.message.text or result.message.reasoning):
            turns.pop()
            console.notice("[stopped before the answer began; your message was taken back]")
            return
        turns.append(Turn(result.message, result.interrupted))
        if result.interrupted:
            console.notice("[stopped; the answer so far stays in the conversation, /retry asks again]")
        elif result.output is not None and result.output.outputs[0].finish_reason == "length":
            self._say_cut_off(self._context_used(result.output)[0])

    def _keep(self, reply: AgentReply) -> None:
        """Add a turn with tools to the conversation, and say how it ended if that is unusual."""
        turns = self._conversation.turns
        if not reply.messages:
            turns.pop()
            what = "stopped before the answer began" if reply.interrupted else "nothing came of it"
            console.notice(f"[{what}; your message was taken back]")
            return
        turns += [Turn(message) for message in reply.messages]
        if reply.interrupted:
            if turns[-1].message.role == "assistant":
                turns[-1] = Turn(turns[-1].message, interrupted=True)
            console.notice("[stopped; what was done so far stays in the conversation, /retry asks again]")
        elif reply.ending.status == "limit":
            console.notice(f"[the turn reached its limit: {reply.ending.reason.replace('_', ' ')}]")
        elif reply.ending.reason == "length" and reply.rounds:
            self._say_cut_off(reply.rounds[-1].prompt + reply.rounds[-1].completion)

    def _say_cut_off(self, used: int) -> None:
        size = self._llm.info.max_model_len
        if used >= size:
            console.warning(
                f"the conversation fills the context ({used:,} of {size:,} tokens), so the answer was cut off"
            )
            console.notice("/save FILE keeps the conversation, /clear starts anew, /undo drops the last exchange.")
        else:
            console.notice("[cut off at max_tokens; `/params max_tokens default` lifts the limit]")

    def _context_used(self, output: RequestOutput) -> tuple[int, int]:
        metrics = output.metrics
        return metrics.num_prompt_tokens + metrics.num_generated_tokens, self._llm.info.max_model_len

    # Commands: one method each, `_command_NAME(argument)`; listed in COMMANDS.

    def _run_command(self, name: str, argument: str) -> None:
        name = ALIASES.get(name, name)
        if name in COMMANDS:
            method: Callable[[str], None] = getattr(self, f"_command_{name}")
            method(argument)
            return
        close = difflib.get_close_matches(name, [*COMMANDS, *ALIASES], n=1)
        console.error(
            f"unknown command /{name}",
            f"did you mean /{close[0]}?"
            if close
            else "/help lists the commands; a space in front sends it as a message",
        )

    def _command_help(self, argument: str) -> None:
        from rich.table import Table

        table = Table.grid(padding=(0, 3))
        for row in COMMANDS.values():
            table.add_row(row.usage, row.summary)
        table.add_row("", "")
        table.add_row("Alt-Enter, Ctrl-J", "New line in a message; pasted lines stay together.")
        table.add_row('""" … """', "A message of several lines.")
        table.add_row("path of a picture", "Pasted or dropped, before or after a message: attaches the picture.")
        table.add_row("Ctrl-C", "Stop the answer; it stays in the conversation as far as it got.")
        table.add_row("Up, Ctrl-R", "Earlier messages, also from earlier runs.")
        console.stdout().print(table)

    def _command_clear(self, argument: str) -> None:
        self._conversation.clear()
        if self._assistant is not None:
            self._assistant.forget()
        self._attachments.waiting = []
        self._last = None
        console.notice(
            "The conversation is empty" + (", the system message stays." if self._conversation.system else ".")
        )

    def _command_save(self, argument: str) -> None:
        path = _path(argument, "save")
        conversation.save(self._conversation, self._model, path)
        console.notice(f"Saved {len(self._conversation.turns)} messages to {path}.")

    def _command_load(self, argument: str) -> None:
        path = _path(argument, "load")
        loaded, model = conversation.load(path)
        if images_of(loaded.messages) and not self._attachments.model_sees:
            raise InvalidRequestError(f"{path} has a picture: {takes_text_only(self._model)}")
        self._conversation, self._last = loaded, None
        self._attachments.waiting = []
        console.notice(f"Loaded {len(loaded.turns)} messages from {path}.")
        if model != self._model:
            console.notice(f"It was held with {model}; {self._model} goes on with it.")

    def _command_image(self, argument: str) -> None:
        if not argument:
            self._attachments.show()
        elif argument == "none":
            self._attachments.remove()
        else:
            self._attachments.add(plain_path(argument), self._conversation.messages)

    def _command_system(self, argument: str) -> None:
        if argument:
            self._conversation.system = _without_quotes(argument)
            console.notice("System message set." if self._conversation.system else "System message removed.")
        else:
            console.notice(self._conversation.system or "No system message. /system TEXT sets one.")

    def _command_params(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        if name and not value:
            raise InvalidRequestError(f"give a value too: /params {name} VALUE, or /params {name} default", param=name)
        params = dict(self._conversation.params)
        if name:
            conversation.check_param_name(name)
            params.pop(name, None)
        if name and value.strip() != "default":
            params[name] = _parse_value(name, value.strip())
            conversation.check_params(params)
        self._conversation.params = params
        self._show_params()

    def _show_params(self) -> None:
        from rich.table import Table

        effective = self._llm.default_sampling_params().replace(**self._conversation.params)
        table = Table.grid(padding=(0, 3))
        for name in PARAM_NAMES:
            value = getattr(effective, name)
            shown = "none" if value is None or value == () else printable(json.dumps(value, ensure_ascii=False))
            table.add_row(name, shown, "set here" if name in self._conversation.params else "")
        console.stdout().print(table)

    def _command_stats(self, argument: str) -> None:
        if self._last is None:
            console.notice("No answer yet.")
            return
        if isinstance(self._last, AgentReply):
            show_rounds(self._last.rounds)
            return
        if self._last.output is None:
            console.notice("The last answer was stopped; there are no figures for it.")
            return
        metrics = self._last.output.metrics
        used, size = self._context_used(self._last.output)
        ttft, decode, looked = metrics.ttft, metrics.decode_tokens_per_second, self._last.looked
        included = ", looking at the picture included" if looked else ""
        fresh = metrics.num_prompt_tokens - metrics.num_cached_tokens
        rows = {
            "prompt": f"{metrics.num_prompt_tokens:,} tokens ({metrics.num_cached_tokens:,} from the cache)",
            "first token": f"after {ttft:.2f} s{included}" if ttft is not None else "-",
            "prefill": f"{fresh / ttft:.1f} tokens/s" if ttft and not looked else "-",
            "answer": f"{metrics.num_generated_tokens:,} tokens",
            "decode": f"{decode:.1f} tokens/s" if decode is not None else "-",
            "context": f"{used:,} of {size:,} tokens used ({100 * used / size:.1f}%)",
        }
        for label, text in rows.items():
            console.stdout().print(f"{label:<12} {text}")

    def _command_tools(self, argument: str) -> None:
        if self._assistant is None:
            console.notice("No tools. `glm4 chat --tools python,browser` begins with some.")
        else:
            self._assistant.show_tools()

    def _command_retry(self, argument: str) -> None:
        before = list(self._conversation.turns)
        message = self._conversation.drop_last_exchange()
        if message is None:
            console.notice("Nothing to ask again.")
            return
        self._ask(message, otherwise=before)

    def _command_undo(self, argument: str) -> None:
        message = self._conversation.drop_last_exchange()
        self._last = None
        console.notice(f"Removed: {shown_text(message)[:60]}" if message is not None else "Nothing to remove.")

    def _command_exit(self, argument: str) -> None:
        self._running = False


def _without_quotes(text: str) -> str:
    '''The contents of a `"""` block; any other text unchanged.'''
    stripped = text.strip()
    if stripped.startswith('"""') and len(stripped) >= 6 and stripped.endswith('"""'):
        return stripped[3:-3].strip("\n")
    return text


def _path(argument: str, command: str) -> Path:
    if argument in ("", "-"):
        raise InvalidRequestError(f"give a file name: /{command} FILE")
    return Path(argument).expanduser()


_NONE_VALUES: dict[str, Any] = {"seed": None, "max_tokens": None, "stop": []}


def _parse_value(name: str, text: str) -> Any:
    if text == "none" and name in _NONE_VALUES:
        return _NONE_VALUES[name]
    try:
        return json.loads(text)
    except ValueError:
        return text  # a bare stop string; for numbers, SamplingParams reports what it expects


COMMANDS: dict[str, CommandHelp] = {
    "help": CommandHelp("/help", "Show this."),
    "clear": CommandHelp("/clear", "Forget the conversation; the system message stays."),
    "save": CommandHelp("/save FILE", "Save the conversation as JSON."),
    "load": CommandHelp("/load FILE", "Go on with a saved conversation."),
    "image": CommandHelp("/image [FILE]", "Attach a picture to the next message, or show what is; `none` removes it."),
    "system": CommandHelp("/system [TEXT]", "Show or set the system message."),
    "params": CommandHelp("/params [NAME VALUE]", "Show or set sampling options; the value `default` resets one."),
    "tools": CommandHelp("/tools", "Show the tools that the model may use."),
    "stats": CommandHelp("/stats", "Speed and size of the last answer."),
    "retry": CommandHelp("/retry", "Answer the last message again."),
    "undo": CommandHelp("/undo", "Drop the last message and its answer."),
    "exit": CommandHelp("/exit", "Leave; Ctrl-D does too."),
}
ALIASES = {"quit": "exit", "bye": "exit", "?": "help"}

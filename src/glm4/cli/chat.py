"""`glm4 chat`: one question and its answer, or a conversation at the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from glm4.cli import options
from glm4.cli.parameters import Argument, Exit, Option, UsageError

if TYPE_CHECKING:
    from glm4.chat.messages import Message
    from glm4.chat.parts import ImagePart, Part
    from glm4.cli.conversation.assistant import Assistant
    from glm4.llm import LLM

TOOLS = "Tools"

EXAMPLES = """
glm4 chat
glm4 chat "Why is the sky blue?"
glm4 chat "Summarize this:" < report.txt
glm4 chat -m glm-4-9b-chat --dtype int4 --system "Answer in Chinese."
glm4 chat -m glm-4v-9b --image cat.png "What is this?"
glm4 chat -m glm-4-9b-chat --tools python,browser --file sales.csv
glm4 chat -m glm-4-9b-chat --lora ./poems-adapter "A poem about rain."
"""


def chat(
    prompt: Annotated[
        str | None,
        Argument(metavar="PROMPT", help="A question. Piped input is added to it, and - is piped input alone."),
    ] = None,
    *,
    model: options.Model = "starter",
    system: Annotated[str | None, Option(metavar="TEXT", help="Instructions the model follows throughout.")] = None,
    image: Annotated[
        list[str] | None, Option(metavar="FILE", help="A picture to ask about: a file, or an http(s) address.")
    ] = None,
    plain: Annotated[bool, Option("--plain", help="Print the answer as it is, without rendering Markdown.")] = False,
    engine: options.EngineOptions,
    allow_many_images: options.AllowManyImages = False,
    lora: options.Lora = None,
    tools: Annotated[
        list[str] | None,
        Option(
            metavar="NAMES",
            panel=TOOLS,
            help="Tools to use: python, browser, files, image, mcp:NAME, a .py file of functions; several with commas.",
        ),
    ] = None,
    file: Annotated[
        list[Path] | None,
        Option(metavar="FILE", panel=TOOLS, help="A document or data for the model, and for its tools."),
    ] = None,
    mcp: Annotated[
        Path | None,
        Option(
            metavar="FILE", panel=TOOLS, help="The file that lists MCP servers; all of them, unless --tools names one."
        ),
    ] = None,
    search: Annotated[
        str | None, Option(metavar="ENGINE", panel=TOOLS, help="The browser's search engine: a name, or an address.")
    ] = None,
    approve: Annotated[
        str,
        Option(metavar="WHEN", panel=TOOLS, help="Calls that need your approval: ask, always (run them) or never."),
    ] = "ask",
    resume: Annotated[
        str | None, Option(metavar="ID", panel=TOOLS, help="Go on with a saved conversation; see `glm4 sessions`.")
    ] = None,
    save: Annotated[
        bool, Option("--save", "--no-save", panel=TOOLS, help="Save a conversation with tools; questions are not.")
    ] = True,
    as_json: Annotated[
        bool, Option("--json", panel=TOOLS, help="With a prompt: print each event as a line of JSON.")
    ] = False,
    max_tokens: options.MaxTokens = None,
    sampling: options.SamplingOptions,
) -> None:
    """Talk to a model, or ask it one question.

    With a prompt or piped input it answers once and exits; otherwise a conversation starts, with history, multi-line
    input and commands (see /help there). With --tools the model may use tools; their steps are shown on standard
    error. The starter is a small model that shows the installation works; it is not GLM-4.
    """
    from glm4.chat.parts import TextPart
    from glm4.cli.console import clean_text

    question = _question(prompt)
    params = sampling.given(max_tokens=max_tokens)
    system = clean_text(system) if system else None
    from glm4.cli.conversation.interrupt import silent_keyboard

    if as_json and question is None:
        raise UsageError("--json is for one question; give a PROMPT or pipe one in")
    if question is None and not sys.stdout.isatty():
        raise UsageError("a conversation needs a terminal; give a PROMPT or pipe one in")
    with ExitStack() as stack:
        with silent_keyboard():  # an Enter typed ahead must still be an Enter at the first prompt
            more = engine.for_llm() | {"allow_many_images": allow_many_images}
            pictures = _pictures(image or [], model, more)
            needed = as_json or resume is not None
            assistant = _assistant(tools, mcp, search, approve, files=file or [], needed=needed)
            history: list[Message] = []
            if assistant is not None:
                stack.callback(assistant.close)
                if resume is not None or (question is None and save):
                    from glm4.cli.conversation.recording import open_recording

                    history = assistant.record(open_recording(model, resume))
            llm = stack.enter_context(options.load_llm(model, lora=lora, **{"max_num_seqs": 1, **more}))
        if question is None:
            from glm4.cli.conversation.repl import Repl

            Repl(
                llm, model, system=system, params=params, plain=plain, pictures=pictures, assistant=assistant,
                history=history,
            ).run()  # fmt: skip
            return
        messages = _messages([*pictures, TextPart(question)], system, history)
        if assistant is None:
            _answer_once(llm, messages, params, plain=plain)
        else:
            _answer_with_tools(llm, assistant, messages, params, plain=plain, as_json=as_json)


def _assistant(
    tools: Sequence[str] | None,
    mcp: Path | None,
    search: str | None,
    approve: str,
    *,
    files: Sequence[Path],
    needed: bool,
) -> Assistant | None:
    """The tools that were asked for; None for none. What is wrong with them is said before a model is loaded."""
    if not tools and mcp is None and not files and not needed:
        return None
    from glm4.agent.toolbox import MCP, ToolServices, open_tools
    from glm4.cli.conversation.approvals import APPROVE_OPTIONS
    from glm4.cli.conversation.assistant import Assistant
    from glm4.cli.conversation.saved_files import SavedFiles

    chosen = next((option for option in APPROVE_OPTIONS if option == approve), None)
    if chosen is None:
        raise UsageError(f"--approve is {', '.join(APPROVE_OPTIONS[:-1])} or {APPROVE_OPTIONS[-1]}, not {approve}")
    names = [name for given in tools or () for name in given.split(",") if name]
    if mcp is not None and not any(name.startswith(MCP) for name in names):
        names.append(MCP)
    with ExitStack() as stack:
        saved = stack.enter_context(closing(SavedFiles()))
        opened = open_tools(names, ToolServices(saved, search=search, mcp_config=mcp))
        assistant = stack.enter_context(closing(Assistant(opened, saved, chosen)))
        for path in files:
            assistant.give(path)
        stack.pop_all()
    return assistant


def _question(prompt: str | None) -> str | None:
    """The prompt and piped input together; None starts a conversation."""
    from glm4.cli.console import STREAM, clean_text, piped_stdin, read_stdin

    piped = read_stdin() if prompt == STREAM else piped_stdin()
    parts = [clean_text(prompt) if prompt not in (None, STREAM) else "", piped or ""]
    text = "\n\n".join(part for part in parts if part.strip())
    if not text and (prompt is not None or piped is not None):
        raise UsageError("the prompt is empty; nothing was asked")
    return text or None


def _pictures(names: Sequence[str], model: str, settings: dict[str, Any]) -> list[ImagePart]:
    """The pictures of `--image`; whatever is wrong with them is said before a model is fetched and loaded."""
    if not names:
        return []
    if len(names) > 1 and not settings["allow_many_images"]:
        raise UsageError(
            "there can be one picture per conversation, as in training; --allow-many-images goes beyond it"
        )
    options.import_engine(**settings)
    from glm4.cli.pictures import check_sees, read_picture

    check_sees(model)
    return [read_picture(name) for name in names]


def _messages(question: Sequence[Part], system: str | None, history: Sequence[Message]) -> list[Message]:
    from glm4.chat.messages import Message

    if system:
        history = [Message("system", system), *(message for message in history if message.role != "system")]
    return [*history, Message("user", question)]


def _answer_once(llm: LLM, messages: Sequence[Message], params: dict[str, Any], *, plain: bool) -> None:
    from glm4.cli.console import notice
    from glm4.cli.conversation.answer import answer
    from glm4.cli.conversation.view import make_view

    view, adapter = make_view(plain=plain), options.adapter_name(llm)
    result = answer(llm, messages, llm.default_sampling_params().replace(**params), view, adapter=adapter)
    if result.interrupted:
        _stopped()
    if result.output is not None and result.output.outputs[0].finish_reason == "length":
        notice(_CUT_OFF)


_CUT_OFF = "the answer was cut off at its token limit (--max-tokens, --context)"


def _answer_with_tools(
    llm: LLM, assistant: Assistant, messages: Sequence[Message], params: dict[str, Any], *, plain: bool, as_json: bool
) -> None:
    from glm4.cli.console import EXIT_FAILURE, notice
    from glm4.cli.conversation.view import make_view

    *earlier, question = messages
    messages = [*earlier, assistant.attached(question, llm)]
    reply = assistant.answer(
        llm, messages, llm.default_sampling_params().replace(**params), partial(make_view, plain=plain),
        adapter=options.adapter_name(llm), as_json=as_json,
    )  # fmt: skip
    ending = reply.ending
    if reply.interrupted:
        _stopped()
    if ending.status == "error":
        raise Exit(EXIT_FAILURE)
    if ending.status == "limit":
        notice(f"the turn reached its limit: {ending.reason.replace('_', ' ')}")
    elif ending.reason == "length":
        notice(_CUT_OFF)


def _stopped() -> NoReturn:
    from glm4.cli.console import EXIT_INTERRUPTED, notice

    notice("stopped")
    raise Exit(EXIT_INTERRUPTED)

"""`glm4 chat`: one question and its answer, or a conversation at the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from glm4.cli import options
from glm4.cli.parameters import Argument, Exit, Option, UsageError

if TYPE_CHECKING:
    from glm4.chat.parts import ImagePart, Part
    from glm4.llm import LLM

EXAMPLES = """
glm4 chat
glm4 chat "Why is the sky blue?"
glm4 chat "Summarize this:" < report.txt
glm4 chat -m glm-4-9b-chat --dtype int4 --system "Answer in Chinese."
glm4 chat -m glm-4v-9b --image cat.png "What is this?"
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
    max_tokens: options.MaxTokens = None,
    sampling: options.SamplingOptions,
) -> None:
    """Talk to a model, or ask it one question.

    With a prompt or piped input it answers once and exits; otherwise a conversation starts, with history, multi-line
    input and commands (see /help there). The starter is a small model that shows the installation works; it is not
    GLM-4.
    """
    from glm4.chat.parts import TextPart
    from glm4.cli.console import clean_text

    question = _question(prompt)
    params = sampling.given(max_tokens=max_tokens)
    system = clean_text(system) if system else None
    from glm4.cli.conversation.interrupt import silent_keyboard

    if question is None and not sys.stdout.isatty():
        raise UsageError("a conversation needs a terminal; give a PROMPT or pipe one in")
    with silent_keyboard():  # an Enter typed ahead must still be an Enter at the first prompt
        more = engine.for_llm() | {"allow_many_images": allow_many_images}
        pictures = _pictures(image or [], model, more)
        llm = options.load_llm(model, lora=lora, **{"max_num_seqs": 1, **more})
    with llm:
        if question is not None:
            _answer_once(llm, [*pictures, TextPart(question)], system, params, plain=plain)
        else:
            from glm4.cli.conversation.repl import Repl

            Repl(llm, model, system=system, params=params, plain=plain, pictures=pictures).run()


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


def _answer_once(
    llm: LLM, question: Sequence[Part], system: str | None, params: dict[str, Any], *, plain: bool
) -> None:
    from glm4.chat.messages import Message
    from glm4.cli.console import EXIT_INTERRUPTED, notice
    from glm4.cli.conversation.answer import answer
    from glm4.cli.conversation.view import make_view

    messages = ([Message("system", system)] if system else []) + [Message("user", question)]
    view, adapter = make_view(plain=plain), options.adapter_name(llm)
    result = answer(llm, messages, llm.default_sampling_params().replace(**params), view, adapter=adapter)
    if result.interrupted:
        notice("stopped")
        raise Exit(EXIT_INTERRUPTED)
    if result.output is not None and result.output.outputs[0].finish_reason == "length":
        notice("the answer was cut off at its token limit (--max-tokens, --context)")

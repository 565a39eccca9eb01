"""`glm4 read`: ask about files; the answer cites their pages."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from glm4.cli import options
from glm4.cli.parameters import Argument, AsJson, Exit, Option, UsageError

if TYPE_CHECKING:
    from glm4.documents.document import Document
    from glm4.documents.reader import ReadAnswer, Reader
    from glm4.documents.reading import Strategy

EXAMPLES = """
glm4 read report.pdf "What was the profit in 2023?"
glm4 read -m glm-4-9b-chat-1m book.epub "Who is the narrator?"
glm4 read notes.md minutes.docx --strategy summary "What was decided?"
glm4 read -m longcite thesis.pdf
"""


def read(
    words: Annotated[
        list[str],
        Argument(metavar="FILE... [QUESTION]", help="Files, then a question; without one, a conversation starts."),
    ],
    *,
    model: options.Model = "starter",
    strategy: Annotated[
        str,
        Option(
            metavar="NAME",
            help="auto; whole: all of the text; sections: what has the question's words; summary: notes on every part.",
        ),
    ] = "auto",
    json_output: AsJson = False,
    engine: options.EngineOptions,
    lora: options.Lora = None,
    max_tokens: options.MaxTokens = 1024,
    sampling: options.SamplingOptions,
) -> None:
    """Ask about files, with citations of their pages.

    PDF, Word, PowerPoint, Excel, CSV, HTML, EPUB, Markdown, text and code. What does not fit the model's context is
    read in part, and the answer says which.
    """
    from glm4.documents.reading import STRATEGIES

    if strategy not in ("auto", *STRATEGIES):
        raise UsageError(f"--strategy is auto, {', '.join(STRATEGIES)}, not {strategy!r}")
    files, question = _files_and_question(words)
    if question is None and (json_output or not sys.stdin.isatty() or not sys.stdout.isatty()):
        raise UsageError("a conversation needs a terminal; give a question behind the files")
    params = sampling.given(max_tokens=max_tokens)
    documents = [_load(path) for path in files]
    chosen: Strategy | None = next((name for name in STRATEGIES if name == strategy), None)
    with options.load_llm(model, lora=lora, **{"max_num_seqs": 4, **engine.for_llm()}) as llm:
        from glm4.cli.console import progress
        from glm4.documents.reader import open_reader

        with progress() as report:
            report("finding sentences", 0, 0)
            adapter = options.adapter_name(llm)
            reader = open_reader(
                llm, documents, params=llm.default_sampling_params().replace(**params), adapter=adapter
            )
        if question is None:
            _converse(reader, chosen)
        else:
            answer = _ask(reader, question, chosen, quiet=json_output)
            if answer is None:
                from glm4.cli.console import EXIT_INTERRUPTED

                raise Exit(EXIT_INTERRUPTED)
            if json_output:
                from glm4.cli.console import print_json

                print_json(as_json(answer))


def as_json(answer: ReadAnswer) -> dict[str, Any]:
    """An answer for programs."""
    return {
        "answer": answer.text,
        "raw": answer.raw,
        "citations": [{"n": c.source.n, "start": c.start, "end": c.end} for c in answer.citations],
        "sources": [asdict(source) for source in answer.sources],
        "strategy": answer.plan.strategy,
        "left_out": list(answer.left_out),
        "finish_reason": answer.finish_reason,
        "usage": {"prompt_tokens": answer.prompt_tokens, "cached_tokens": answer.cached_tokens},
    }


def _files_and_question(words: Sequence[str]) -> tuple[list[Path], str | None]:
    from glm4.cli.console import clean_text

    *files, last = words
    if Path(last).is_file() or not files:
        files, question = list(words), None
    else:
        question = clean_text(last)
        if not question.strip():
            raise UsageError("the question is empty")
    for name in files:
        if not Path(name).is_file():
            raise UsageError(f"there is no file {name!r}; put the question in quotes, behind the files")
    return [Path(name) for name in files], question


def _load(path: Path) -> Document:
    from glm4.cli.console import notice, progress, warning
    from glm4.documents.loading import load_document
    from glm4.sandbox.launch import unavailable

    missing = unavailable()
    if missing is not None:
        warning(f"{path.name} is read in a limited process instead of a sandbox: {missing}")
    with progress() as report:
        report(f"reading {path.name}", 0, 0)
        document = load_document(path.read_bytes(), path.name, sandboxed=missing is None)
    for said in document.warnings:
        notice(f"{path.name}: {said}")
    return document


def _converse(reader: Reader, strategy: Strategy | None) -> None:
    """Questions at the terminal, until Ctrl-D."""
    from glm4.cli.console import notice
    from glm4.cli.conversation.interrupt import Interrupt
    from glm4.cli.conversation.line_editor import LineEditor
    from glm4.hub.store import home

    editor = LineEditor((), (), history_file=home() / "read_history")
    names = ", ".join(document.name for document in reader.documents)
    notice(f"{names}: {reader.num_tokens:,} tokens. Ask; Ctrl-D ends.")
    while True:
        with Interrupt() as interrupt:
            try:
                question = editor.read(interrupt).strip()
            except (EOFError, KeyboardInterrupt):
                return
        if question in ("/exit", "/quit"):
            return
        if question:
            _ask(reader, question, strategy, quiet=False)


def _ask(reader: Reader, question: str, strategy: Strategy | None, *, quiet: bool) -> ReadAnswer | None:
    """Ask, and show the answer as it arrives; None if Ctrl-C stopped it."""
    from contextlib import ExitStack, closing

    from glm4.cli.console import notice, printable, progress
    from glm4.cli.conversation.interrupt import Interrupt, silent_keyboard
    from glm4.documents.citations import Citation
    from glm4.documents.reader import ReadAnswer, Stage

    answer: ReadAnswer | None = None
    marks: list[int] = []
    space = ""  # behind what was written: marks stand before it
    with (
        Interrupt() as interrupt,
        silent_keyboard(),
        closing(reader.ask(question, strategy)) as events,
        ExitStack() as bar,
    ):
        report = bar.enter_context(progress())
        report("reading", 0, 0)
        for event in events:
            if interrupt.requested:
                break
            if isinstance(event, Stage):
                report("taking notes" if event.name == "notes" else "reading", event.done, event.total)
                continue
            bar.close()
            if isinstance(event, ReadAnswer):
                answer = event
            elif quiet:
                continue
            elif isinstance(event, Citation):
                marks.append(event.source.n)
            else:
                text = printable(event)
                said = text.rstrip()
                _write("".join(f"[{n}]" for n in marks) + (space + said if said else ""))
                space = text[len(said) :] if said else space + text
                marks.clear()
    if answer is None or quiet:
        if answer is None and not quiet:
            notice("\nstopped")
        return answer
    _write("".join(f"[{n}]" for n in marks) + "\n")
    _show_sources(answer)
    return answer


def _show_sources(answer: ReadAnswer) -> None:
    from glm4.cli.console import notice, printable

    if answer.sources:
        _write("\n")
    for source in answer.sources:
        page = f", page {source.page}" if source.page is not None else ""
        section = f", {source.section}" if source.section else ""
        _write(f"[{source.n}] {printable(f'{source.title}{page}{section}: “{source.text}”')}\n")
    for said in answer.left_out:
        notice(said)
    if not answer.plan.matched:
        notice("no passage has the question's words; the beginning was read")
    if answer.finish_reason == "length":
        notice("the answer was cut off at its token limit (--max-tokens)")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()

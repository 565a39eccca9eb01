"""`glm4 read`: ask about files; the answer cites their pages."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from glm4.cli import options
from glm4.cli.parameters import Argument, AsJson, Exit, Option, UsageError

if TYPE_CHECKING:
    from glm4.documents.document import Document
    from glm4.documents.reader import ReadAnswer, Reader
    from glm4.documents.reading import Strategy
    from glm4.llm import LLM

EXAMPLES = """
glm4 read report.pdf "What was the profit in 2023?"
glm4 read -m glm-4-9b-chat-1m book.epub "Who is the narrator?"
glm4 read notes.md minutes.docx --strategy summary "What was decided?"
glm4 read -m glm-4v-9b scan.pdf "Who signed it?"
glm4 read -m longcite thesis.pdf
"""
_KEPT_GB = 4.0
_HELP = "Ask about the files. /help shows this, /exit or Ctrl-D ends, Ctrl-C stops an answer."


class _File(NamedTuple):
    document: Document
    data: bytes


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
    longcite: Annotated[
        bool,
        Option("--longcite", help="The model's folder holds LongCite weights; known by itself of -m longcite."),
    ] = False,
    json_output: AsJson = False,
    keep: Annotated[
        bool,
        Option(
            "--no-kv-store",
            panel=options.ENGINE,
            help="Keep nothing for the next question. Otherwise --kv-store is a folder of glm4's own, of 4 GB.",
        ),
    ] = True,
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
    paths, question = _files_and_question(words)
    if question is None and (json_output or not sys.stdin.isatty() or not sys.stdout.isatty()):
        raise UsageError("a conversation needs a terminal; give a question behind the files")
    params = sampling.given(max_tokens=max_tokens)
    settings = {"max_num_seqs": 4, **_kept(engine, keep=keep).for_llm()}
    sandboxed = _has_sandbox()
    files = [_load(path, sandboxed=sandboxed) for path in paths]
    chosen: Strategy | None = next((name for name in STRATEGIES if name == strategy), None)
    with options.load_llm(model, lora=lora, **settings) as llm:
        from glm4.cli.console import progress
        from glm4.documents.reader import open_reader

        adapter = options.adapter_name(llm)
        documents = [_seen(llm, file, adapter, sandboxed=sandboxed) for file in files]
        with progress() as report:
            report("finding sentences", 0, 0)
            reader = open_reader(
                llm, documents, params=llm.default_sampling_params().replace(**params), adapter=adapter,
                longcite=longcite or None,
            )  # fmt: skip
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
    if not files or os.path.isfile(last):  # noqa: PTH113  (a question may be longer than a name can be)
        files, question = list(words), None
    else:
        question = clean_text(last)
        if not question.strip():
            raise UsageError("the question is empty")
    for name in files:
        if os.path.isdir(name):  # noqa: PTH112
            raise UsageError(f"{name!r} is a folder; name the files in it")
        if not os.path.exists(name):  # noqa: PTH110
            raise UsageError(f"there is no file {name[:200]!r}; put the question in quotes, behind the files")
    return [Path(name) for name in dict.fromkeys(files)], question


def _kept(engine: options.EngineOptions, *, keep: bool) -> options.EngineOptions:
    """The options with a KV store, unless there is to be none, or only another backend could have one."""
    from glm4.cli.console import warning
    from glm4.hub.store import home

    if not keep and engine.kv_store:
        raise UsageError("--kv-store and --no-kv-store contradict each other")
    if not keep or engine.kv_store or engine.backend != "local":
        return engine
    folder = home() / "kv"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(0, "it cannot be written", str(folder))
    except OSError as error:
        warning(f"what is read is not kept for the next question: {folder}: {error.strerror}")
        return engine
    return replace(engine, kv_store=str(folder), kv_store_gb=engine.kv_store_gb or _KEPT_GB)


def _has_sandbox() -> bool:
    from glm4.cli.console import warning
    from glm4.sandbox.launch import unavailable

    missing = unavailable()
    if missing is not None:
        warning(f"files are read in a limited process instead of a sandbox: {missing}")
    return missing is None


def _load(path: Path, *, sandboxed: bool) -> _File:
    from glm4.cli.console import progress
    from glm4.documents.limits import MAX_NBYTES
    from glm4.documents.loading import load_document

    with progress() as report:
        report(f"reading {path.name}", 0, 0)
        with path.open("rb") as file:
            data = file.read(MAX_NBYTES + 1)  # more is refused
        return _File(load_document(data, path.name, sandboxed=sandboxed), data)


def _seen(llm: LLM, file: _File, adapter: str | None, *, sandboxed: bool) -> Document:
    """The document, with the text of its scanned pages if the model sees."""
    from glm4.cli.console import notice, progress
    from glm4.documents.scanned import sees, transcribe

    document = file.document
    if document.scanned and sees(llm):
        with progress() as report:
            document = transcribe(
                llm, document, file.data, adapter=adapter, sandboxed=sandboxed,
                report=lambda done, total: report(f"looking at pages of {document.name}", done, total),
            )  # fmt: skip
    for said in document.warnings:
        notice(f"{document.name}: {said}")
    return document


def _converse(reader: Reader, strategy: Strategy | None) -> None:
    """Questions at the terminal, until Ctrl-D."""
    from glm4.cli.console import failure, notice
    from glm4.cli.conversation.interrupt import Interrupt
    from glm4.cli.conversation.line_editor import LineEditor
    from glm4.errors import InvalidRequestError
    from glm4.hub.store import home

    editor = LineEditor(("/help", "/exit"), (), history_file=home() / "read_history")
    names = ", ".join(document.name for document in reader.documents)
    notice(f"{names}: {reader.num_tokens:,} tokens. Ask; /help helps, Ctrl-D ends.")
    while True:
        with Interrupt() as interrupt:
            try:
                question = editor.read(interrupt).strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                notice(_HELP)
                continue
        if question in ("/exit", "/quit"):
            return
        if question == "/help":
            notice(_HELP)
        elif question:
            try:
                _ask(reader, question, strategy, quiet=False)
            except InvalidRequestError as error:  # this question does not fit; another may
                failure(error)


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

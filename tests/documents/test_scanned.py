"""Scanned pages, read by models that see: a tiny random GLM-4V, and one whose answers are written here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from reading import SANDBOXED, read, texts

from glm4 import LLM
from glm4.backends.scripted import ScriptedBackend
from glm4.documents.document import UNSEEN, Document
from glm4.documents.scanned import sees, transcribe
from glm4.errors import InvalidRequestError
from glm4.requests.processor import Processor
from pdf_files import PdfFile, lines
from scripted_llm import scripted_llm
from tiny import VOCAB_SIZE, special_id
from vision_folder import BEGIN, write_vision_folder

FILE = bytes(PdfFile([lines(["Some text on the first page."]), None, lines(["The third page has text."]), None]))
SCANNED = "2 pages (2, 4) without text: "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vision_folder(tmp_path_factory.mktemp("sees") / "m")


@pytest.fixture(scope="module")
def document() -> Document:
    return read(FILE, "a.pdf")


class Script:
    """A model that sees, and says what is written for it; `prompts` are the ids that it got."""

    def __init__(self, folder: Path, answer: Callable[[int], str]) -> None:
        self.prompts: list[Sequence[int]] = []
        text = Processor.open(folder)

        def script(ids: Sequence[int]) -> list[int]:
            self.prompts.append(ids)
            return [*text.tokenizer.encode("\n" + answer(len(self.prompts))), special_id("<|user|>")]

        self.llm = LLM.from_backend(ScriptedBackend(script, vocab_size=VOCAB_SIZE, max_num_seqs=2), text)

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *error: object) -> None:
        self.llm.close()


def test_a_model_that_sees_reads_the_pages(folder: Path, document: Document) -> None:
    reports: list[tuple[int, int]] = []
    with LLM(str(folder), dtype="fp32", max_model_len=1024) as llm:
        assert sees(llm)
        made = transcribe(
            llm, document, FILE, sandboxed=SANDBOXED, report=lambda done, total: reports.append((done, total))
        )
    assert (reports[0], reports[-1]) == ((0, 2), (2, 2))
    assert len(reports) > 4  # one per step
    assert made.scanned == ()
    assert made.warnings[0] == f"{SCANNED}the model has read the pictures, and may err"
    assert not any(UNSEEN in warning for warning in made.warnings)
    assert [block for block in made.blocks if block.page in (1, 3)] == list(document.blocks)
    assert [block.page for block in made.blocks] == sorted(block.page or 0 for block in made.blocks)


def test_what_the_model_writes_stands_in_its_place(folder: Path, document: Document) -> None:
    def say(number: int) -> str:
        letter = "# Letter\n\nDear all,\nit is late.\x1b\n\n| a | b |\n|---|---|\n| 1 | 2 |"
        return letter if number == 1 else "(no text)"

    with Script(folder, say) as script:
        made = transcribe(script.llm, document, FILE, sandboxed=SANDBOXED)
    assert [list(ids).count(BEGIN) for ids in script.prompts] == [1, 1]  # a picture per conversation
    assert texts(made) == [
        "Some text on the first page.", "Letter", "Dear all,\nit is late.", "| a | b |\n|---|---|\n| 1 | 2 |",
        "The third page has text.",
    ]  # fmt: skip
    assert [(block.kind, block.page) for block in made.blocks[1:4]] == [("heading", 2), ("paragraph", 2), ("table", 2)]
    assert made.place(made.text.index("it is late")).section == "Letter"
    assert made.place(made.text.index("it is late")).page == 2


def test_a_page_that_is_cut_off_or_cannot_be_drawn_is_named(folder: Path, document: Document) -> None:
    with Script(folder, lambda number: "word " * 2000) as script:
        made = transcribe(script.llm, replace(document, scanned=(2, 9)), FILE, sandboxed=SANDBOXED)
    assert made.scanned == (9,)
    assert made.warnings[:2] == (
        "page 2 without text: the model has read the pictures, and may err",
        "page 2: the model did not get to the end",
    )
    assert made.warnings[2].startswith("page 9 ")


def test_who_is_told_may_stop_it(folder: Path, document: Document) -> None:
    def stop(done: int, total: int) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(done)

    stopped: list[int] = []
    with Script(folder, lambda number: "word " * 500) as script:
        with pytest.raises(KeyboardInterrupt):
            transcribe(script.llm, document, FILE, sandboxed=SANDBOXED, report=stop)
        assert not script.llm.has_unfinished_requests()


def test_a_model_that_does_not_see_is_refused(tmp_path: Path, document: Document) -> None:
    with scripted_llm(tmp_path, lambda prompt: "") as llm, pytest.raises(InvalidRequestError, match="does not see"):
        transcribe(llm, document, FILE, sandboxed=SANDBOXED)

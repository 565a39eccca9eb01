"""Reading with a LongCite model, end to end: its name, its sentences, its prompt to the letter, its citations."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from itertools import pairwise
from pathlib import Path

import pytest

from glm4 import LLM
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.documents.document import Block, Document
from glm4.documents.longcite_sentences import longcite_starts
from glm4.documents.reader import ReadAnswer, open_reader
from glm4.errors import MissingExtraError
from glm4.variants import VARIANTS
from scripted_llm import scripted_llm

pytest.importorskip("nltk")

# Written out once more, as the model was trained on it.
PROTOCOL = (
    "\nPlease answer the user's question based on the following document. When a sentence S in your response uses "
    "information from some chunks in the document (i.e., <C{s1}>-<C_{e1}>, <C{s2}>-<C{e2}>, ...), please append these "
    'chunk numbers to S in the format "<statement>{S}<cite>[{s1}-{e1}][{s2}-{e2}]...</cite></statement>". You must '
    "answer in the same language as the user's question.\n\n[Document Start]\n%s\n[Document End]\n\n%s"
)
PAGES = ("Whales breathe air. The Nile is long.", "银行九点开门！！真的吗？")
MARKED = "<C0>Whales breathe air. <C1>The Nile is long.\n\n<C2>银行九点开门！<C3>！<C4>真的吗？"


def document(*pages: str) -> Document:
    blocks = tuple(Block(text, page=page) for page, text in enumerate(pages, 1))
    return Document("a.pdf", "application/pdf", "0" * 64, blocks, num_pages=len(pages))


def opened(folder: Path, answer: Callable[[str], str], *, max_model_len: int = 4096) -> LLM:
    """A LongCite model by its name, of which only the weights' size and the answers are not real."""
    llm = scripted_llm(folder, answer, max_model_len=max_model_len)
    llm.checkpoint = open_checkpoint(folder, variant=VARIANTS["longcite-glm4-9b"])
    return llm


def asked(llm: LLM, *pages: str, question: str = "What?", max_tokens: int = 200) -> ReadAnswer:
    params = llm.default_sampling_params().replace(max_tokens=max_tokens)
    answer = list(open_reader(llm, [document(*pages)], params=params).ask(question))[-1]
    assert isinstance(answer, ReadAnswer)
    return answer


def test_the_prompt_is_the_one_of_the_training(tmp_path: Path) -> None:
    prompts: list[str] = []

    def say(prompt: str) -> str:
        prompts.append(prompt)
        first = "\n<statement>They breathe.<cite>[0-0]</cite></statement>"
        return f"{first}\n<statement>九点。<cite>[2-3]</cite></statement>"

    with opened(tmp_path, say) as llm:
        answer = asked(llm, *PAGES, question="What do whales do?")
    assert prompts == [PROTOCOL % (MARKED, "What do whales do?")]
    assert answer.text == "They breathe.\n九点。"
    assert [(c.source.page, c.source.text, answer.text[c.start : c.end].strip()) for c in answer.citations] == [
        (1, "Whales breathe air.", "They breathe."),
        (2, "银行九点开门！", "九点。"),
    ]


@pytest.mark.parametrize(
    ("cited", "spans"),
    [
        ("[0-0][2-3]", ((0, 0), (2, 3))),
        ("[0-0][1-2]", ((0, 2),)),
        ("[2-2][1-1]", ((2, 2), (1, 1))),
        ("[2-99]", ((2, 4),)),
        ("[9-12]", ()),
        ("[3-1]", ()),
        ("[0-1][1-2]", ((0, 1), (1, 2))),
        ("[0-0][2-2][0-0][4-4]", ((0, 0), (2, 2), (4, 4))),  # the original counts the duplicate
        ("[2]", ((2, 2),)),  # the original reads no number that is alone
    ],
)
def test_citations_are_read_as_the_original_reads_them(
    cited: str, spans: tuple[tuple[int, int], ...], tmp_path: Path
) -> None:
    with opened(tmp_path, lambda prompt: f"\n<statement>X.<cite>{cited}</cite></statement>") as llm:
        answer = asked(llm, *PAGES)
    (statement,) = answer.statements
    assert statement.spans == spans
    pages = {1 if at < 2 else 2 for first, last in spans for at in range(first, last + 1)}
    assert {source.page for source in answer.sources} == pages


def test_an_answer_that_is_cut_off_keeps_its_statement(tmp_path: Path) -> None:
    with opened(tmp_path, lambda prompt: "\n<statement>X is cut <cite>[0-0]" + "</cite>" * 50) as llm:
        answer = asked(llm, *PAGES, max_tokens=34)
    assert (answer.text, answer.finish_reason) == ("X is cut ", "length")
    (statement,) = answer.statements
    assert (statement.spans, statement.truncated) == (((0, 0),), True)
    assert [source.page for source in answer.sources] == [1]


def test_what_does_not_fit_is_chosen_and_never_cut_within_a_sentence(tmp_path: Path) -> None:
    prompts: list[str] = []
    pages = [f"Tower number {page} is {50 + page} meters high. It stands near the river." for page in range(1, 60)]

    def say(prompt: str) -> str:
        prompts.append(prompt)
        (number,) = re.findall(r"<C(\d+)>Tower number 47 ", prompt)
        return f"\n<statement>97 meters.<cite>[{number}-{number}]</cite></statement>"

    with opened(tmp_path, say, max_model_len=2000) as llm:
        answer = asked(llm, *pages, question="How high is tower number 47?")
    assert answer.plan.strategy == "sections"
    shown = prompts[0].split("[Document Start]\n")[1].split("\n[Document End]")[0]
    chunks = re.split(r"<C\d+>", shown.replace("[…]", ""))[1:]
    text = document(*pages).text
    known = {text[start:end].strip() for start, end in pairwise([*longcite_starts(text), len(text)])}
    assert {chunk.strip() for chunk in chunks} <= known
    assert [int(n) for n in re.findall(r"<C(\d+)>", shown)] == list(range(len(chunks)))
    assert [source.page for source in answer.sources] == [47]
    assert answer.left_out[0].startswith("a.pdf: ")


def test_other_names_are_asked_otherwise_unless_they_are_said_to_be_longcite(tmp_path: Path) -> None:
    prompts: list[str] = []

    def say(prompt: str) -> str:
        prompts.append(prompt)
        return "\nYes."

    with scripted_llm(tmp_path, say) as llm:
        for longcite in (None, True):
            list(open_reader(llm, [document(*PAGES)], longcite=longcite).ask("What?"))
    assert "<C0>" not in prompts[0]
    assert prompts[1] == PROTOCOL % (MARKED, "What?")


def test_without_nltk_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "nltk":
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with opened(tmp_path, lambda prompt: "") as llm, pytest.raises(MissingExtraError, match=r"glm4\[longcite\]"):
        asked(llm, *PAGES)

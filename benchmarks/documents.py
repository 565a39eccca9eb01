"""Reading documents: a long PDF from file to plan, and the second question about a document against the first.

    python benchmarks/documents.py
    python benchmarks/documents.py --pages 50 --model smoke --tokens 2000 --rounds 5

The PDF is written here: pages of 40 lines of random words, a heading every ten pages. It is loaded in the sandbox
(without bubblewrap in a limited process; the facts say which), split into numbered sentences, and planned for a
question by sections, twice: the second question finds the index.

The questions are those of `glm4 read` as a program. The second comes in the same process (a `Reader`), and in one that
is started after the first had ended, with the KV store that the first has filled. Time to first token; for a process,
from when the model is loaded. Goal: the second takes at most 15 % of the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
from prefix import QUESTIONS
from prefix import document as words

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from glm4 import LLM
from glm4.documents.document import Block, Document
from glm4.documents.loading import load_document
from glm4.documents.reader import Reader, open_reader
from glm4.sandbox.launch import unavailable
from pdf_files import PdfFile, lines

LINES, LINE_WORDS = 40, 12
Row = dict[str, object]


def pdf(num_pages: int) -> bytes:
    """A file of so many pages."""
    pages = []
    for page in range(num_pages):
        said = words(LINES * LINE_WORDS, page).split()
        shown = [" ".join(said[at : at + LINE_WORDS]).capitalize() + "." for at in range(0, len(said), LINE_WORDS)]
        pages.append(lines([f"Chapter {page // 10}", *shown] if page % 10 == 0 else shown, top=740))
    return bytes(PdfFile(pages))


def reading(llm: LLM, data: bytes, rounds: int) -> list[Row]:
    """Seconds of each step from file to plan."""
    steps: dict[str, list[float]] = {}

    def timed(name: str, since: float) -> None:
        steps.setdefault(name, []).append(time.perf_counter() - since)

    for _ in range(rounds):
        start = time.perf_counter()
        document = load_document(data, "long.pdf", sandboxed=unavailable() is None)
        timed("loading", start)
        start = time.perf_counter()
        reader = open_reader(llm, [document])
        timed("splitting into sentences, counting tokens", start)
        for name in ("planning the first question", "planning the second question"):
            start = time.perf_counter()
            reader.plan("Which chapter is about rivers?", "sections")
            timed(name, start)
    size = f"{document.num_pages} pages, {reader.num_tokens:,} tokens"
    return [{"step": name, "of": size, "seconds": statistics.median(times)} for name, times in steps.items()]


def first_token(reader: Reader, question: str) -> float:
    """Seconds until the answer begins."""
    start = time.perf_counter()
    asked = reader.ask(question, "whole")
    for event in asked:
        if isinstance(event, str):
            break
    asked.close()
    return time.perf_counter() - start


def child(model: str, folder: str, tokens: int, seed: int, questions: list[str]) -> None:
    """Ask questions one after the other; prints the seconds of each."""
    text = words(tokens, seed)
    document = Document("words.txt", "text/plain", "0" * 64, (Block(text),))
    with LLM(model, max_model_len=tokens + 2500, kv_store=folder) as llm:
        other = Document("other.txt", "text/plain", "1" * 64, (Block(words(100, -1)),))
        first_token(open_reader(llm, [other]), "Warm?")
        reader = open_reader(llm, [document])
        print(json.dumps([first_token(reader, question) for question in questions]))


def asked(arguments: argparse.Namespace, folder: str, seed: int, questions: list[str]) -> list[float]:
    """The same in a process of its own."""
    task = json.dumps([arguments.model, folder, arguments.tokens, seed, questions])
    done = subprocess.run([sys.executable, __file__, "--child", task], stdout=subprocess.PIPE, check=True)
    found: list[float] = json.loads(done.stdout)
    return found


def questions(arguments: argparse.Namespace) -> list[Row]:
    """The second question against the first."""
    times: dict[str, list[tuple[float, float]]] = {"same process": [], "after a restart": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            harness.progress(f"round {number + 1}/{arguments.rounds}")
            first, second = asked(arguments, folder, number, list(QUESTIONS))
            times["same process"].append((first, second))
            (later,) = asked(arguments, folder, number, [QUESTIONS[1]])
            times["after a restart"].append((first, later))
    harness.progress("")
    return [
        {
            "second question": name,
            "words": arguments.tokens,
            "TTFT of the first, s": statistics.median(one for one, _ in pairs),
            "of the second, s": statistics.median(two for _, two in pairs),
            "second / first": statistics.median(two / one for one, two in pairs),
        }
        for name, pairs in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--pages", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=4000, help="length of the document that is asked about, about")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*json.loads(arguments.child))
        return
    facts = harness.facts(arguments.rounds)
    facts["sandbox"] = unavailable() or "bubblewrap"
    with LLM(arguments.model, max_model_len=4096) as llm:
        steps = reading(llm, pdf(arguments.pages), arguments.rounds)
    found = questions(arguments)
    if arguments.json:
        print(json.dumps({"facts": facts, "steps": steps, "questions": found}, indent=2))
        return
    tables = (harness.table(list(rows[0]), [list(row.values()) for row in rows]) for rows in (steps, found))
    print("\n\n".join((harness.bullets(facts), *tables)))


if __name__ == "__main__":
    main()

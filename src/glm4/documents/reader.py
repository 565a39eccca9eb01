"""`Reader`: questions about documents, answered with citations of their pages."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count, pairwise
from typing import TYPE_CHECKING, Literal

from glm4.chat.chat_request import ChatRequest
from glm4.chat.messages import Message
from glm4.documents.attribution import Attribution
from glm4.documents.citations import Citation, Source
from glm4.documents.cited_answer import AnswerStream, Cited, Statement, prompt, read_answer
from glm4.documents.document import Document
from glm4.documents.passages import Passage, Split, ranges, sentences_of
from glm4.documents.reading import Embed, ReadingPlan, Sections, Strategy, left_out, plan_reading, shown_text
from glm4.errors import InvalidRequestError
from glm4.sampling_params import SamplingParams

if TYPE_CHECKING:
    from glm4.llm import LLM
    from glm4.outputs import RequestOutput

MAX_TOKENS = 1024
LONGCITE = "longcite"
"""How the names of such models begin in `variants.py`; nothing in their files tells them apart."""
_QUOTED = 300  # characters of a source that are shown beside its link
_NOTES_TOKENS = 256
_NOTES = (
    "Below is part {part} of {parts} of a document. Write down, in at most eight plain sentences and in the language of"
    " the request, what in it matters for this request: {question}\n\n[Part Start]\n{text}\n[Part End]"
)


@dataclass(frozen=True)
class Stage:
    """What is being done, before the answer begins: `done` of `total` parts are read; 0 of 0 is unknown.

    One comes with every step of the engine, so that who takes the events can stop it within a step.
    """

    name: Literal["planned", "notes", "reading"]
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class ReadAnswer:
    """An answer about documents.

    Attributes:
        text: without tags; `citations` are places in it.
        raw: as the model wrote it.
        statements: of a LongCite model; nothing of others, whose citations are found by words (`attribution`).
        left_out: what was not read, in words for people; empty if everything was.
        finish_reason: "length" if it was cut off.
    """

    text: str
    raw: str
    statements: tuple[Statement, ...]
    citations: tuple[Citation, ...]
    plan: ReadingPlan
    left_out: tuple[str, ...]
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int

    @property
    def sources(self) -> list[Source]:
        """What the answer cites, by number."""
        known = {citation.source.n: citation.source for citation in self.citations}
        return [known[n] for n in sorted(known)]


ReadEvent = Stage | str | Citation | ReadAnswer
"""Stages, then visible text and citations as they arrive, and the answer at the end."""


@dataclass
class _Shown:
    """The numbered sentences of a prompt: of the documents, or of notes about parts of them."""

    text: str
    places: list[tuple[int, int, int]]
    """Of each: document, first character and the one behind the last."""
    sentences: list[str]


def open_reader(
    llm: LLM,
    documents: Sequence[Document],
    *,
    params: SamplingParams | None = None,
    adapter: str | None = None,
    embed: Embed | None = None,
    longcite: bool | None = None,
) -> Reader:
    """A `Reader` with the prompt and the sentences that the model was trained with, if it is a LongCite model.

    Args:
        longcite: None goes by the model's name; files on disk do not tell LongCite from GLM-4-9B-Chat.

    Raises:
        InvalidRequestError: the documents have no text.
        MissingExtraError: a LongCite model needs nltk.
    """
    from glm4.documents.longcite_sentences import longcite_starts
    from glm4.documents.sentences import sentence_starts

    if longcite is None:
        longcite = llm.checkpoint is not None and llm.checkpoint.variant.name.startswith(LONGCITE)
    return Reader(
        llm, documents, split=longcite_starts if longcite else sentence_starts, longcite=longcite, params=params,
        max_tokens=MAX_TOKENS if params is None or params.max_tokens is None else params.max_tokens, adapter=adapter,
        embed=embed,
    )  # fmt: skip


class Reader:
    """Documents that are asked about, one question after the other.

    Args:
        split: finds sentences; LongCite models need the one they were trained with.
        longcite: the model was trained to cite; what others say is cited by its words, see `attribution`.
        max_tokens: of an answer.
        embed: see `plan_reading`.

    Raises:
        InvalidRequestError: the documents have no text.
    """

    def __init__(
        self,
        llm: LLM,
        documents: Sequence[Document],
        *,
        split: Split,
        longcite: bool = False,
        params: SamplingParams | None = None,
        max_tokens: int = MAX_TOKENS,
        adapter: str | None = None,
        embed: Embed | None = None,
    ) -> None:
        self.documents = tuple(documents)
        self._llm = llm
        self._longcite = longcite
        self._params = (params or llm.default_sampling_params()).replace(max_tokens=max_tokens, n=1)
        self._max_tokens = max_tokens
        self._adapter = adapter
        self._embed = embed
        self._split = split
        self._sentences = sentences_of(self.documents, split, self._counts, numbered=longcite)
        if not self._sentences:
            raise InvalidRequestError("the documents have no text that could be read", param="documents")
        self._sections = Sections(self.documents, self._sentences)
        self._asked: list[tuple[str, str]] = []
        self._whole: list[Message] = []

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents, with the numbers of their sentences for LongCite; at most."""
        return sum(sentence.tokens for sentence in self._sentences)

    def plan(self, question: str, strategy: Strategy | None = None) -> ReadingPlan:
        """What would be read for a question; see `plan_reading`."""
        earlier = self._asked[-1][0] + "\n" if self._asked else ""
        return plan_reading(
            self.documents, self._sentences, earlier + question, budget=self._budget(question), strategy=strategy,
            embed=self._embed, sections=self._sections,
        )  # fmt: skip

    def ask(self, question: str, strategy: Strategy | None = None) -> Generator[ReadEvent, None, None]:
        """Answer a question; closing the generator stops it. Questions and answers before it are known to the model.

        Raises:
            InvalidRequestError: see `plan_reading`.
            Glm4Error: the request failed.
        """
        plan = self.plan(question, strategy)
        yield Stage("planned")
        if plan.strategy == "summary":
            shown = yield from self._read_parts(plan, question)
        else:
            shown = self._shown(plan)
        last = len(shown.places) - 1
        messages = self._messages(plan, shown, question)
        yield from self._answer(plan, shown, last, messages, question)

    def _messages(self, plan: ReadingPlan, shown: _Shown, question: str) -> list[Message]:
        if plan.strategy == "whole" and self._whole:
            return [*self._whole, Message("user", question)]
        if plan.strategy != "whole" and self._asked:
            before = "\n".join(f"Question: {asked}\nAnswer: {answer}" for asked, answer in self._asked[-3:])
            question = f"{before}\n\nQuestion: {question}"
        return [Message("user", prompt(shown.text, question, longcite=self._longcite))]

    def _answer(
        self, plan: ReadingPlan, shown: _Shown, last: int, messages: list[Message], question: str
    ) -> Generator[ReadEvent, None, None]:
        numbers, text = count(1), ""
        stream = AnswerStream(last) if self._longcite else _Attributed(shown, self._split)
        sources: dict[tuple[int, int | None, str | None], Source] = {}
        citations: list[Citation] = []
        output: RequestOutput | None = None
        request = ChatRequest.of(messages, self._params, adapter=self._adapter)
        with closing(self._llm.run_steps([("read", request)])) as steps:
            for chunks in steps:
                if not text:
                    yield Stage("reading")
                events: list[str | Cited] = []
                for chunk in chunks:
                    if chunk.output is not None and chunk.output.error is not None:
                        raise chunk.output.error
                    events += stream.push(chunk.text)
                    if chunk.output is not None:
                        output = chunk.output
                        events += stream.finish()
                for event in events:
                    if isinstance(event, str):
                        text += event
                        yield event
                    else:
                        cited = list(self._cited(event, shown, sources, numbers))
                        citations += cited
                        yield from cited
        assert output is not None  # noqa: S101  (the last chunk has it)
        self._remember(plan, messages, question, text, stream.raw)
        yield ReadAnswer(
            text,
            stream.raw,
            tuple(read_answer(stream.raw, last)) if self._longcite else (),
            tuple(citations),
            plan,
            tuple(left_out(self.documents, self._sentences, plan.shown)),
            output.outputs[0].finish_reason,
            len(output.prompt_token_ids),
            output.num_cached_tokens,
        )

    def _remember(self, plan: ReadingPlan, messages: list[Message], question: str, text: str, raw: str) -> None:
        self._asked.append((question, text))
        if plan.strategy == "whole":
            self._whole = [*messages, Message("assistant", raw)]

    def _cited(
        self,
        cited: Cited,
        shown: _Shown,
        sources: dict[tuple[int, int | None, str | None], Source],
        numbers: Iterator[int],
    ) -> Iterator[Citation]:
        """The places that a statement cites, one per page and section."""
        seen: set[int] = set()
        for first, last in cited.spans:
            for at in range(first, last + 1):
                index, start, end = shown.places[at]
                document = self.documents[index]
                place = document.place(start)
                key = (index, place.page, place.section)
                source = sources.get(key)
                if source is None:
                    quoted = " ".join(document.text[start : min(end, start + _QUOTED)].split())
                    source = Source(
                        next(numbers), document.name, file=document.digest, page=place.page, section=place.section,
                        text=quoted,
                    )  # fmt: skip
                    sources[key] = source
                if source.n not in seen:
                    seen.add(source.n)
                    yield Citation(source, cited.start, cited.end)

    def _shown(self, plan: ReadingPlan) -> _Shown:
        sentences = [self._sentences[at] for at in plan.shown]
        places = [(s.document, s.start, s.end) for s in sentences]
        texts = [self.documents[index].text[start:end] for index, start, end in places]
        text = shown_text(self.documents, self._sentences, plan.shown, numbered=self._longcite)
        return _Shown(text, places, texts)

    # Summaries

    def _read_parts(self, plan: ReadingPlan, question: str) -> Generator[ReadEvent, None, _Shown]:
        """Notes on every part; notes on notes, until they fit one prompt."""
        places = [self._range(part) for part in plan.parts]
        texts = [self.documents[index].text[start:end] for index, start, end in places]
        while True:
            notes = yield from self._notes(texts, question)
            shown, tokens = self._noted(notes, places)
            if tokens <= self._budget(question) or len(texts) == 1:
                return shown
            half = [(at, min(at + 2, len(notes))) for at in range(0, len(notes), 2)]
            texts = ["\n".join(notes[first:end]) for first, end in half]
            places = [
                (places[first][0], places[first][1], places[end - 1][2])
                if places[first][0] == places[end - 1][0]
                else places[first]
                for first, end in half
            ]

    def _notes(self, texts: Sequence[str], question: str) -> Generator[ReadEvent, None, list[str]]:
        params = self._params.replace(max_tokens=_NOTES_TOKENS)
        asked = [
            _NOTES.format(part=at + 1, parts=len(texts), question=question, text=text) for at, text in enumerate(texts)
        ]
        requests = (
            (str(at), ChatRequest.of([Message("user", one)], params, adapter=self._adapter))
            for at, one in enumerate(asked)
        )
        notes = [""] * len(texts)
        yield Stage("notes", 0, len(texts))
        done = 0
        with closing(self._llm.run_steps(requests)) as steps:
            for chunks in steps:
                for output in (chunk.output for chunk in chunks if chunk.output is not None):
                    if output.error is not None:
                        raise output.error
                    notes[int(output.request_id)] = output.outputs[0].text.strip()
                    done += 1
                yield Stage("notes", done, len(texts))
        return notes

    def _noted(self, notes: Sequence[str], places: Sequence[tuple[int, int, int]]) -> tuple[_Shown, int]:
        """Notes as numbered sentences that cite the parts they are about."""
        pieces: list[str] = []
        texts: list[str] = []
        cited: list[tuple[int, int, int]] = []
        for note, place in zip(notes, places, strict=True):
            starts = [at for at in self._split(note) if at < len(note)]
            for start, end in pairwise([*starts, len(note)]):
                texts.append(note[start:end].rstrip())
                pieces.append(f"<C{len(pieces)}>{texts[-1]} " if self._longcite else f"{texts[-1]} ")
                cited.append(place)
        return _Shown("".join(pieces), cited, texts), sum(self._counts(pieces))

    def _range(self, part: Passage) -> tuple[int, int, int]:
        first, last = self._sentences[part.first], self._sentences[part.end - 1]
        return first.document, first.start, last.end

    # Sizes

    def _budget(self, question: str) -> int:
        """Tokens that sentences may take: what the context leaves beside the prompt, earlier turns and the answer."""
        around = [Message("user", prompt("", question, longcite=self._longcite))]
        for asked, answer in self._asked:
            around += [Message("assistant", answer), Message("user", asked)]
        used = len(self._llm.render(ChatRequest.of(around)).ids)
        answers = len(self._asked) * 64  # tags and numbers, which `answer` is without
        names = sum(self._counts([f"[{document.name}] {ranges((1,))}" for document in self.documents]))
        return self._llm.context(self._adapter) - used - answers - names - self._max_tokens - 16

    def _counts(self, texts: Sequence[str]) -> list[int]:
        return [len(self._llm.tokenizer.encode(text)) for text in texts]


class _Attributed:
    """An answer without tags as it arrives: each finished sentence with what it rests on."""

    def __init__(self, shown: _Shown, split: Split) -> None:
        self.raw = ""
        self._attribution = Attribution(shown.sentences)
        self._split = split
        self._done = 0  # characters of sentences that were looked at

    def push(self, text: str) -> list[str | Cited]:
        """See `AnswerStream.push`."""
        events: list[str | Cited] = [text] if text else []
        before, self.raw = self.raw, self.raw + text
        starts = [at for at in self._split(self.raw[self._done :]) if at > 0]
        if not starts:  # no further sentence has begun
            return events
        end = self._done + starts[-1]
        cited = list(self._cited(end))
        # The sentence's marks stand behind it, before what has begun.
        head = text[: max(0, end - len(before))]
        rest = text[len(head) :]
        return [*([head] if head else []), *cited, *([rest] if rest else [])]

    def finish(self) -> list[str | Cited]:
        """See `AnswerStream.finish`."""
        return list(self._cited(len(self.raw)))

    def _cited(self, end: int) -> Iterator[Cited]:
        ended = self.raw[self._done : end]
        starts = [at for at in self._split(ended) if at < len(ended)]
        for start, stop in pairwise([*starts, len(ended)]):
            spans = tuple((at, at) for at in self._attribution.cited(ended[start:stop]))
            if spans:
                text = ended[start:stop].rstrip()
                yield Cited(self._done + start, self._done + start + len(text), spans)
        self._done = end

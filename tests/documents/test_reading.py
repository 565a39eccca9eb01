"""What is read for a question, and what is said about the rest."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from glm4.documents.attribution import Attribution
from glm4.documents.bm25 import BM25, fused, terms
from glm4.documents.citations import Citation
from glm4.documents.document import Block, Document
from glm4.documents.passages import passages_of, ranges, sentences_of
from glm4.documents.reader import ReadAnswer, Reader, ReadEvent, Stage
from glm4.documents.reading import left_out, plan_reading, shown_text
from glm4.documents.sentences import sentence_starts
from glm4.errors import InvalidRequestError
from scripted_llm import scripted_llm


def split(text: str) -> list[int]:
    return [0] + [match.end() for match in re.finditer(r"[.?!。]\s*|\n\n", text)]


def counts(texts: Sequence[str]) -> list[int]:
    return [len(text) for text in texts]


TOPICS = {
    "Whales": "Whales are mammals. They breathe air.",
    "Rivers": "The Amazon is long. The Nile is longer, some say.",
    "银行": "银行在街角。它九点开门。",
    "Stars": "The sun is a star. Sirius is bright.",
}


SHORT = 1600  # a context in which the document does not fit beside an answer of 900 tokens


def document(name: str = "facts.pdf") -> Document:
    blocks = []
    for page, (heading, text) in enumerate(TOPICS.items(), 1):
        blocks += [Block(heading, "heading", page, 1), Block(text, page=page)]
    return Document(name, "application/pdf", "0" * 64, tuple(blocks), num_pages=len(TOPICS))


def test_words_of_any_language() -> None:
    assert terms("The Rivers are flooding, 2024!") == ["river", "flood", "2024"]
    assert terms("银行在街角") == ["银行", "行在", "在街", "街角"]
    assert terms("класс Straße") == ["класс", "straß"]
    assert terms("whale price house box city") == terms("Whales priced houses boxes cities")


def test_bm25_finds_what_has_the_words() -> None:
    index = BM25([f"{heading} {text}" for heading, text in TOPICS.items()])
    assert index.best("When does the bank open? 银行几点开门？")[0] == 2
    assert index.best("Which river is the longest?")[0] == 1
    assert index.best("which star is bright")[0] == 3
    assert index.best("quantum") == []
    # Rare words count more than frequent ones, and length does not help.
    index = BM25(["cat dog", "cat bird", "cat " * 50 + "fish " * 50])
    assert index.best("cat bird")[0] == 1
    assert index.scores("cat")[2] < 2 * index.scores("cat")[0]
    assert fused([[0, 1, 2], [1, 2, 0]])[0] == 1


def test_sentences_cover_the_whole_text() -> None:
    made = [document("a"), document("b")]
    sentences = sentences_of(made, split, counts)
    for index in range(2):
        own = [s for s in sentences if s.document == index]
        assert "".join(made[index].text[s.start : s.end] for s in own) == made[index].text
    assert sentences_of([Document("empty", "text/plain", "", ())], split, counts) == []


def test_only_what_is_shown_counts(tmp_path: Path) -> None:
    """A text fits as far as it does; numbers that other models are not shown take no room."""
    sizes: list[int] = []
    with scripted_llm(tmp_path, lambda prompt: sizes.append(len(prompt.encode())) or "\nYes.") as llm:  # type: ignore[func-returns-value]
        for longcite in (False, True):
            reader = Reader(llm, [document()], split=split, longcite=longcite)
            _, answer = finished(reader, "?")
            assert answer.left_out == ()
            shown = document().text.encode()
            assert (reader.num_tokens == len(shown)) is not longcite  # a byte is a token
            assert reader.num_tokens <= len(shown) + 5 * len(answer.plan.shown)


def test_passages_stay_within_sections() -> None:
    made = [document()]
    sentences = sentences_of(made, split, counts)
    passages = passages_of(made, sentences, 10_000)
    assert [made[0].text[sentences[p.first].start :][:8] for p in passages] == [
        "# Whales", "# Rivers", "# 银行\n\n银行", "# Stars\n"
    ]  # fmt: skip
    small = passages_of(made, sentences, 60)
    assert [p.first for p in small[1:]] == [p.end for p in small[:-1]]
    assert all(p.tokens <= 60 or p.end - p.first == 1 for p in small)


def test_the_strategy_follows_the_room() -> None:
    made = [document()]
    sentences = sentences_of(made, split, counts)
    total = sum(s.tokens for s in sentences)
    assert plan_reading(made, sentences, "Summarize it", budget=total).strategy == "whole"
    assert plan_reading(made, sentences, "How long is the Nile?", budget=total - 1).strategy == "sections"
    for question in ("Please summarise this", "give me an overview", "请总结全文", "这本书的要点是什么"):
        assert plan_reading(made, sentences, question, budget=total - 1).strategy == "summary"
    with pytest.raises(InvalidRequestError, match="room for"):
        plan_reading(made, sentences, "x", budget=total - 1, strategy="whole")
    with pytest.raises(InvalidRequestError, match="tokens left"):
        plan_reading(made, sentences, "x", budget=3)


def test_sections_shows_the_best_in_order_and_says_what_it_left_out() -> None:
    made = [document()]
    sentences = sentences_of(made, split, counts)
    plan = plan_reading(made, sentences, "Is the sun a star? Are whales mammals?", budget=150, strategy="sections")
    text = shown_text(made, sentences, plan.shown, numbered=True)
    assert re.findall(r"<C(\d+)>", text) == [str(n) for n in range(len(plan.shown))]
    assert text.index("Whales") < text.index("[…]") < text.index("The sun is a star")
    assert "Amazon" not in text
    assert left_out(made, sentences, plan.shown) == ["facts.pdf: 6 of 12 sentences were read, from pages 1, 4 of 4"]
    unknown = plan_reading(made, sentences, "quantum", budget=100, strategy="sections")
    assert not unknown.matched
    assert unknown.shown[0] == 0


def test_embeddings_help_where_words_do_not() -> None:
    made = [document()]
    sentences = sentences_of(made, split, counts)

    def embed(texts: Sequence[str]) -> list[list[float]]:
        return [[1.0, 0.0] if "Sirius" in text or "astronomy" in text else [0.0, 1.0] for text in texts]

    plan = plan_reading(made, sentences, "astronomy", budget=70, strategy="sections", embed=embed)
    assert "Sirius" in shown_text(made, sentences, plan.shown, numbered=True)


def test_ranges() -> None:
    assert ranges([4, 1, 3, 5, 9, 3]) == "1, 3-5, 9"


def finished(reader: Reader, question: str, **options: object) -> tuple[list[ReadEvent], ReadAnswer]:
    events = list(reader.ask(question, **options))  # type: ignore[arg-type]
    answer = events[-1]
    assert isinstance(answer, ReadAnswer)
    return events, answer


def test_a_whole_document_and_a_second_question(tmp_path: Path) -> None:
    prompts: list[str] = []

    def say(prompt: str) -> str:
        prompts.append(prompt)
        number = re.findall(r"<C(\d+)>The sun", prompt)[0]
        cited = f"[{number}-{int(number) + 1}]"
        return f"\n<statement>It is.<cite>{cited}</cite></statement>\n<statement>So.<cite></cite></statement>"

    with scripted_llm(tmp_path, say) as llm:
        reader = Reader(llm, [document()], split=split, longcite=True)
        events, answer = finished(reader, "Is the sun a star?")
        assert answer.text == "It is.\nSo."
        assert [(c.source.page, c.source.section, answer.text[c.start : c.end]) for c in answer.citations] == [
            (4, "Stars", "It is.")
        ]
        (source,) = answer.sources
        assert (source.n, source.title, source.text) == (1, "facts.pdf", "The sun is a star.")
        assert answer.left_out == ()
        assert "".join(e for e in events if isinstance(e, str)) == answer.text
        assert [e for e in events if isinstance(e, Citation)] == list(answer.citations)
        _, second = finished(reader, "And Sirius?")
        assert prompts[1].startswith(prompts[0])
        assert prompts[1].endswith("And Sirius?")
        assert prompts[1].count("The sun is a star") == 1
        assert second.text == "It is.\nSo."


PLAIN = "The sun is a star indeed. Nobody knows how deep the sea is. 银行九点开门。 The Nile has 17 arms."


def test_what_other_models_say_is_cited_by_its_words(tmp_path: Path) -> None:
    def say(prompt: str) -> str:
        assert "<C0>" not in prompt
        assert "# Stars\n\nThe sun is a star. Sirius is bright.\n[Document End]" in prompt
        return "\n" + PLAIN

    with scripted_llm(tmp_path, say) as llm:
        events, answer = finished(Reader(llm, [document()], split=sentence_starts), "Tell")
        assert answer.text == answer.raw == PLAIN
        assert "".join(e for e in events if isinstance(e, str)) == PLAIN
        cited = [(c.source.section, PLAIN[c.start : c.end]) for c in answer.citations]
        assert cited == [("Stars", "The sun is a star indeed."), ("银行", "银行九点开门。")]
        assert [e for e in events if isinstance(e, Citation)] == list(answer.citations)
        # A mark comes behind its sentence, not at the end.
        at = events.index(answer.citations[0])
        said = "".join(e for e in events[:at] if isinstance(e, str))
        assert said.startswith("The sun is a star indeed.")
        assert len(said) < len(PLAIN) - 40


def test_attribution() -> None:
    known = Attribution(
        ["The profit was 4.2 million euros in 2023.", "In 2022 it was 3.1 million.", "We are 312 people."]
    )
    assert known.cited("In 2023 the profit came to 4.2 million euros.") == (0,)
    assert known.cited("The profit rose from 3.1 million in 2022 to 4.2 million euros in 2023.") == (0, 1)
    assert known.cited("The profit was 9.9 million euros in 2023.") == ()
    assert known.cited("Elephants are grey.") == ()
    assert known.cited("") == ()
    assert Attribution([]).cited("The profit") == ()


def test_several_documents_are_named(tmp_path: Path) -> None:
    def say(prompt: str) -> str:
        assert "[a.pdf]\n<C0># Whales" in prompt
        assert "\n\n[b.pdf]\n<C12># Whales" in prompt
        return "<statement>Both.<cite>[1-1][13-13][99-99]</cite></statement>"

    with scripted_llm(tmp_path, say) as llm:
        _, answer = finished(
            Reader(llm, [document("a.pdf"), document("b.pdf")], split=split, longcite=True), "Where are whales?"
        )
        assert [source.title for source in answer.sources] == ["a.pdf", "b.pdf"]


def test_sections_when_it_does_not_fit(tmp_path: Path) -> None:
    seen: list[str] = []

    def say(prompt: str) -> str:
        seen.append(prompt)
        return "<statement>Yes.<cite>[0-0]</cite></statement>"

    with scripted_llm(tmp_path, say, max_model_len=SHORT) as llm:
        reader = Reader(llm, [document()], split=split, longcite=True, max_tokens=900)
        _, answer = finished(reader, "Is the sun a star?")
        assert answer.plan.strategy == "sections"
        assert "The sun is a star" in seen[0]
        assert answer.left_out
        assert answer.sources[0].section is not None
        _, later = finished(reader, "And whales?")
        assert "Question: Is the sun a star?\nAnswer: Yes." in seen[1]
        assert later.text == "Yes."


def test_a_summary_reads_every_part(tmp_path: Path) -> None:
    parts: list[str] = []

    def say(prompt: str) -> str:
        if "[Part Start]" in prompt:
            parts.append(prompt.split("[Part Start]\n")[1])
            return "\nA note. Another note."
        assert "<C0>A note. <C1>Another note. <C2>A note." in prompt
        return "<statement>All of it.<cite>[0-1][2-2]</cite></statement>"

    with scripted_llm(tmp_path, say, max_model_len=SHORT) as llm:
        reader = Reader(llm, [document()], split=split, longcite=True, max_tokens=900)
        events, answer = finished(reader, "Summarize it", strategy="summary")
        assert len(parts) > 1
        text = "".join(part.split("\n[Part End]")[0] for part in parts)
        assert sorted(text.split()) == sorted(document().text.split())
        stages = [e for e in events if isinstance(e, Stage) and e.name == "notes"]
        assert (stages[-1].done, stages[-1].total) == (len(parts), len(parts))
        assert answer.sources[0].page == 1
        assert answer.left_out == ()


def test_closing_the_generator_stops_the_answer(tmp_path: Path) -> None:
    with scripted_llm(tmp_path, lambda prompt: "\n" + "word " * 200) as llm:
        asked = Reader(llm, [document()], split=split, longcite=True).ask("?")
        for _ in range(5):
            next(asked)
        asked.close()
        assert not llm.has_unfinished_requests()


def test_a_document_without_text_is_refused(tmp_path: Path) -> None:
    with scripted_llm(tmp_path, lambda prompt: "") as llm, pytest.raises(InvalidRequestError, match="no text"):
        Reader(llm, [Document("scan.pdf", "application/pdf", "", (), scanned=(1,))], split=split, longcite=True)

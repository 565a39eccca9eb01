"""Files as models cite them: parts of documents behind `【n†…】`, and which sentence of such a part an answer means.

What a model cites is a page, or a section of a file without pages. People are shown the sentence in it that says the
same; without one, the passage, or only the page.

Not covered: what is said in other words, or in another language, than the file's; a part of which only the beginning is
kept (`Source.text`) is searched as far as that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import groupby

from glm4.agent.tool import Sources
from glm4.documents.bm25 import BM25
from glm4.documents.citations import Source
from glm4.documents.document import Document, Place

MOST_SECTIONS = 64
"""Of a file whose sections are numbered one by one; one with more is a single source."""
MOST_QUOTED = 600
"""Characters."""
CITE = "Cite a source as 【number†source】."
_SPOOFED = re.compile(r"【(?=\s*\d{1,6}\s*†)")


def quoted(document: Document, place: Place, text: str, sources: Sources) -> str:
    """A part of a document behind its number, for a model.

    Args:
        place: where it begins.
    """
    page = place.page
    # A page is one source, however it is found.
    source = sources.add(
        document.name, file=document.digest, page=page, section=place.section if page is None else None, text=text
    )
    where = f", page {page}" if page is not None else ""
    where += f", {' '.join(place.section.split())[:80]}" if place.section else ""
    return f"【{source.n}†{_SPOOFED.sub('〖', document.name + where)}】\n{_SPOOFED.sub('〖', text)}"


def numbered(document: Document, sources: Sources) -> str:
    """The whole text of a document, each page or section behind its number."""
    return "\n\n".join(quoted(document, place, text, sources) for place, text in _parts(document))


def _parts(document: Document) -> Iterator[tuple[Place, str]]:
    sections, starts = document.sections, (*document.starts, len(document.text))
    paged = document.num_pages is not None
    keys: list[object] = [block.page for block in document.blocks] if paged else list(sections)
    if not paged and len(list(groupby(keys))) > MOST_SECTIONS:
        keys = [None] * len(keys)
    for key, group in groupby(range(len(keys)), key=keys.__getitem__):
        blocks = list(group)
        text = document.text[starts[blocks[0]] : starts[blocks[-1] + 1]].strip()
        page = document.blocks[blocks[0]].page
        if text:
            yield Place(blocks[0], page, None if paged or key is None else sections[blocks[0]]), text


def last_number(texts: Iterable[str]) -> int:
    """The largest number that texts cite; 0 if none. Sources of a conversation that are gone keep their numbers."""
    return max((int(number) for text in texts for number in _NUMBERS.findall(text)), default=0)


def quotation(source: Source, said: str) -> Source:
    """A source with the sentence in it that an answer means, white space as single spaces, in place of its whole text.

    Args:
        said: the answer up to the citation.
    """
    from glm4.documents.sentences import split_sentences

    if source.file is None:
        return source
    claims = split_sentences(_CITED.sub("", said).rstrip())
    claim = said[-MOST_QUOTED:] if not claims else _CITED.sub("", said)[claims[-1].start :]
    sentences, index = _sentences(source.text)
    best = index.best(claim)
    passage = source.text if len(source.text) <= 2 * MOST_QUOTED else ""
    text = sentences[best[0]] if best else passage
    return replace(source, text=" ".join(text.split())[:MOST_QUOTED])


_NUMBERS = re.compile(r"【\s*(\d{1,5})\s*†")
_CITED = re.compile(r"【[^【】]{0,320}】")


@lru_cache(maxsize=32)  # an answer cites a page again and again
def _sentences(text: str) -> tuple[list[str], BM25]:
    from glm4.documents.sentences import split_sentences

    sentences = [text[one.start : one.end] for one in split_sentences(text)]
    return sentences, BM25(sentences)

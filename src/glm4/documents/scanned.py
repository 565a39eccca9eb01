"""`transcribe`: pages that are pictures, read by a model that sees.

What it writes is the model's reading, not the file's text: a warning of the document names the pages.

Not covered: tables come as the model writes them; a page that does not say what the model says it does is not noticed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from glm4.chat.chat_request import ChatRequest
from glm4.chat.messages import Message
from glm4.chat.parts import ImagePart, TextPart
from glm4.documents.cleaning import clean
from glm4.documents.document import UNSEEN, Block, Document, listed_pages
from glm4.documents.loading import render_page
from glm4.errors import InvalidRequestError

if TYPE_CHECKING:
    from glm4.llm import LLM

MOST_TOKENS = 2048
"""Of one page; at most half of the model's context."""
SIDE = 1536
"""Longer side of a page's picture, in pixels."""
_NOTHING = "(no text)"
_ASKED = (
    "Copy all text on this page, from top to bottom, in its own language: headings behind #, tables as Markdown, a"
    f" blank line between paragraphs. Add nothing. If there is no text, answer {_NOTHING}"
)
_HEADING = re.compile(r"(#{1,6})\s+(.+)")

Report = Callable[[int, int], None]
"""`report(done, total)`: pages; called often, so that it may also raise to stop."""


def sees(llm: LLM) -> bool:
    """Whether a model can read pictures."""
    return llm.processor.image is not None


def transcribe(
    llm: LLM,
    document: Document,
    data: bytes,
    *,
    adapter: str | None = None,
    sandboxed: bool = True,
    report: Report | None = None,
) -> Document:
    """The document with the text of its scanned pages, each in blocks with its number.

    Args:
        data: the file that `document` was read from.
        sandboxed: draw the pages in the sandbox; see `documents.loading.load_document`.

    Returns:
        The document; pages that could not be drawn are still `scanned`, with a warning that says why.

    Raises:
        InvalidRequestError: the model does not see.
        MissingExtraError, SandboxUnavailableError: as `load_document`.
        Glm4Error: the request failed.
    """
    if not sees(llm):
        raise InvalidRequestError("this model does not see, so that it cannot read scanned pages", param="model")
    report = report or (lambda done, total: None)
    total = len(document.scanned)
    undrawn: dict[int, str] = {}
    texts: dict[int, str] = {}
    cut: list[int] = []
    params = llm.default_sampling_params().replace(
        temperature=0, n=1, max_tokens=min(MOST_TOKENS, llm.info.max_model_len // 2)
    )

    def requests() -> Iterator[tuple[str, ChatRequest]]:
        for page in document.scanned:
            try:
                picture = render_page(data, page, document.name, max_side=SIDE, sandboxed=sandboxed)
            except InvalidRequestError as error:
                undrawn[page] = str(error).removeprefix(f"{document.name} ")
                continue
            asked = Message("user", (ImagePart(data=picture), TextPart(_ASKED)))
            yield str(page), ChatRequest.of([asked], params, adapter=adapter)

    report(0, total)
    with closing(llm.run_steps(requests(), in_flight=llm.info.max_num_seqs)) as steps:
        for chunks in steps:
            for output in (chunk.output for chunk in chunks if chunk.output is not None):
                if output.error is not None:
                    raise output.error
                texts[int(output.request_id)] = output.outputs[0].text
                if output.outputs[0].finish_reason == "length":
                    cut.append(int(output.request_id))
            report(len(texts) + len(undrawn), total)
    return _with_pages(document, texts, undrawn, sorted(cut))


def _with_pages(document: Document, texts: dict[int, str], undrawn: dict[int, str], cut: list[int]) -> Document:
    blocks = [*document.blocks, *(block for page, text in texts.items() for block in _blocks(text, page))]
    blocks.sort(key=lambda block: block.page or 0)  # stable: the file's own blocks of a page precede the model's
    warnings = [warning for warning in document.warnings if not warning.endswith(UNSEEN)]
    if texts:
        warnings.append(f"{listed_pages(sorted(texts))} without text: the model has read the pictures, and may err")
    if cut:
        warnings.append(f"{listed_pages(cut)}: the model did not get to the end")
    warnings += [f"page {page} {why}" for page, why in undrawn.items()]
    return replace(document, blocks=tuple(blocks), warnings=tuple(warnings), scanned=tuple(undrawn))


def _blocks(text: str, page: int) -> Iterator[Block]:
    for piece in re.split(r"\n\s*\n", clean(text).strip()):
        if heading := _HEADING.fullmatch(piece.strip()):
            yield Block(heading[2], "heading", page, len(heading[1]))
        elif piece.strip() not in ("", _NOTHING):
            yield Block(piece.strip("\n"), "table" if piece.lstrip().startswith("|") else "paragraph", page)

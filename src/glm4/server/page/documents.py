"""Endpoint of documents: the text of a page that an answer cites."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from glm4.documents.document import SEPARATOR, Document
from glm4.server.agent.state import AgentState, owner_of
from glm4.server.errors import ApiError
from glm4.server.page.state import NO_STORE, page_state
from glm4.server.state import find_state

PIECE_CHARACTERS = 20_000
"""Of a document whose format has no pages; it is shown in pieces of about this length."""
MAX_CHARACTERS = 200_000
"""Of one page, such as the sheet of a workbook; the rest is left out."""
MAX_FOUND = 2000


async def document_page(request: Request) -> Response:
    """A page of a file of this key, as text; `?find=` chooses the page with these words if `?page=` is missing."""
    query = request.query_params
    asked, words = query.get("page"), query.get("find", "")
    if asked is not None and not re.fullmatch("[1-9][0-9]{0,6}", asked):
        raise ApiError(400, "page is a number from 1 on", "page", "invalid_value")
    if len(words) > MAX_FOUND:
        raise ApiError(400, f"find has at most {MAX_FOUND} characters", "find", "invalid_value")
    state = find_state(request.app, AgentState)
    file = await state.file(request.path_params["sha256"], owner_of(request))
    document = await state.documents.stored(file)
    number = None if asked is None else int(asked)
    shown = await page_state(request).rendering.of(owner_of(request)).run(partial(_page, document, number, words))
    return JSONResponse(shown, headers=NO_STORE)


def _page(document: Document, asked: int | None, words: str) -> dict[str, Any]:
    pages = pages_of(document)
    texts = [SEPARATOR.join(_block(document, index) for index in page) for page in pages] or [""]
    number = asked or _found(texts, words) or 1
    if number > len(texts):
        raise ApiError(404, f"{document.name} has {len(texts)} pages", "page", "not_found")
    text, blocks = texts[number - 1], pages[number - 1] if pages else []
    return {
        "name": document.name,
        "media_type": document.media_type,
        "pages": len(texts),
        "page": number,
        "section": document.sections[blocks[0]] if blocks else None,
        "text": text[:MAX_CHARACTERS],
        "truncated": len(text) > MAX_CHARACTERS,
        "numbered": document.num_pages is not None,
    }


def pages_of(document: Document) -> list[list[int]]:
    """The blocks of each page, some of which may have none; pieces of the text where the format has no pages."""
    if document.num_pages is not None:
        pages: list[list[int]] = [[] for _ in range(document.num_pages)]
        for index, block in enumerate(document.blocks):
            pages[max(1, min(block.page or 1, len(pages))) - 1].append(index)
        return pages
    pieces: list[list[int]] = []
    length = PIECE_CHARACTERS
    for index, block in enumerate(document.blocks):
        if length >= PIECE_CHARACTERS:
            pieces.append([])
            length = 0
        pieces[-1].append(index)
        length += len(block.text)
    return pieces


def _block(document: Document, index: int) -> str:
    """As it is in the document's text."""
    starts = document.starts
    end = starts[index + 1] - len(SEPARATOR) if index + 1 < len(starts) else len(document.text)
    return document.text[starts[index] : end]


def _found(texts: list[str], words: str) -> int | None:
    """The first page that has these words, however they are broken into lines."""
    sought = "".join(words.split())
    return next((at for at, text in enumerate(texts, 1) if sought and sought in "".join(text.split())), None)

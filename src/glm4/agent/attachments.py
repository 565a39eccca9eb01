"""Files of a user as a model gets them: pictures as pictures, documents as text, or as names that tools can read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from glm4.agent.cited_files import CITE, numbered
from glm4.agent.files import FileStore, StoredFile
from glm4.agent.tool import Sources
from glm4.chat.messages import Message
from glm4.chat.parts import ImagePart, Part, TextPart
from glm4.documents.document import Document
from glm4.errors import InvalidRequestError
from glm4.llm import LLM

READERS = ("files", "python")
"""Tools that can read a file which is too long for the prompt."""

SVG = "image/svg+xml"
"""A text, which no model sees as a picture."""

Load = Callable[[bytes, str], Document]


def attached(
    message: Message, files: Sequence[StoredFile], store: FileStore, llm: LLM, tools: Sequence[str], load: Load,
    sources: Sources,
) -> Message:  # fmt: skip
    """A user's message with its files.

    Documents stand in front of the text, each as `[File Name]` and `[File Content]`, as GLM-4's own demo has them, if
    they all fit half of the model's context. Otherwise their names do, if a tool can read them.

    Their pages or sections are sources. Models whose dialect was trained to cite by number are shown the numbers; those
    of others, whose answers get worse of them, are not. See `word_citations`.

    Args:
        load: reads a document; see `documents.loading.load_document`.
        sources: of the conversation; the parts of the documents become some.

    Raises:
        InvalidRequestError: the model does not see a picture, or the documents do not fit and no tool can read them.
    """
    pictures = [file for file in files if file.media_type.startswith("image/") and file.media_type != SVG]
    others = [file for file in files if file not in pictures]
    parts: list[Part] = []
    readers = [name for name in READERS if name in tools]
    for file in pictures:
        if llm.processor.image is not None:
            parts.append(ImagePart(data=store.read(file.sha256)))
        elif "python" not in tools:
            raise InvalidRequestError(f"this model does not see pictures such as {file.name}", param="files")
    text = _documents(others, store, llm, readers, load, sources)
    if names := [file.name for file in pictures if llm.processor.image is None]:
        text += f"The user has sent pictures, which are in /mnt/data: {', '.join(names)}\n\n"
    said = list(message.content)
    if text and said and isinstance(said[0], TextPart):
        said[0] = TextPart(text + said[0].text)
    elif text:
        said.insert(0, TextPart(text))
    return replace(message, content=[*parts, *said])


def told(files: Sequence[tuple[str, str]]) -> str:
    """What stands in front of a message with these files: their names and texts, as GLM-4's own demo has them."""
    texts = [f"[File Name]\n{name}\n[File Content]\n{text}" for name, text in files]
    return "\n\n".join(texts) + f"\n\n\n{len(files)} files uploaded.\n"


def _documents(
    files: Sequence[StoredFile], store: FileStore, llm: LLM, readers: Sequence[str], load: Load, sources: Sources
) -> str:
    if not files:
        return ""
    whole, tried = "", sources.copy()
    try:
        documents = [(file.name, load(store.read(file.sha256), file.name)) for file in files]
        marked = [(name, text_of(document, numbered(document, tried))) for name, document in documents]
        if llm.dialect.builtin_tools:
            whole = told(marked) + f"{CITE}\n"
        else:
            whole = told([(name, text_of(document)) for name, document in documents])
    except InvalidRequestError:
        if "python" not in readers:  # which reads any file
            raise
    if whole and len(llm.tokenizer.encode(whole)) <= llm.info.max_model_len // 2:
        sources.take(tried)
        if "python" in readers:  # a model that does not know copies the content into its code
            is_at = "it is at" if len(files) == 1 else "they are at"
            whole += f"For Python, {is_at} {', '.join(f'/mnt/data/{file.name}' for file in files)}.\n"
        return whole
    names = ", ".join(file.name for file in files)
    if not readers:
        raise InvalidRequestError(
            f"{names}: too long for this model's context; give the assistant the tool files, or a longer context",
            param="files",
        )
    places = {"files": "search_files and read_file read them", "python": "they are in /mnt/data"}
    return f"The user has sent files: {names} ({'; '.join(places[name] for name in readers)}).\n\n"


def text_of(document: Document, text: str | None = None) -> str:
    """A document's text, and what is missing from it, so that the model does not take a part for the whole.

    Args:
        text: in place of the document's own.
    """
    text, missing = document.text if text is None else text, "; ".join(document.warnings)
    return f"{text}\n\n(Not all of it could be read: {missing})".lstrip() if missing else text

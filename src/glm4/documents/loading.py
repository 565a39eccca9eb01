"""`load_document` and `render_page`: files that strangers sent, read in a sandbox.

The libraries that read documents are large, many are native code, and what they read may have been written to take
them over. They run in the sandbox, without network, files or the memory of this process, within limits of time and
memory. What comes back is checked as if the stranger had sent it, so that the worst a file can do is to lie about its
own text. Files are told by their content; their names are shown, and never used as paths.

Not covered: with `sandboxed=False` the process that reads has the rights of this one: it only protects from crashes,
endless work and memory. Instructions hidden in a document's text reach the model like the rest of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from glm4.documents.cleaning import clean
from glm4.documents.document import Document
from glm4.documents.limits import (
    MAX_NAME_CHARACTERS,
    MAX_NBYTES,
    MAX_RESULT_NBYTES,
    MEMORY_NBYTES,
    SECONDS,
)
from glm4.documents.stored_document import document_from_dict
from glm4.errors import InvalidRequestError, MissingExtraError, SandboxError, SandboxUnavailableError
from glm4.system.helper import Helper, HelperError
from glm4.system.helper import Limits as HelperLimits
from glm4.system.strict_json import NotJsonError, finite_float, refuse_constant

MAX_SIDE = 4096
"""Of a drawn page, in pixels."""
_PARSE = "glm4.documents.formats.parse:parse"
_RENDER = "glm4.documents.formats.parse:render"
_PNG = b"\x89PNG\r\n\x1a\n"
_MESSAGE_CHARACTERS = 600
_STACK_NBYTES = 16 << 20
_CAUSES = {
    "time": f"takes more than {SECONDS} seconds to read; split it, or save it in another format",
    "memory": f"needs more than {MEMORY_NBYTES >> 20:,} MB of memory to read; split it, or save it in another format",
    "failure": "crashes the program that reads it, perhaps for lack of memory: it is damaged, too large inside, or "
    "made to do so; save it again",
}


def load_document(data: bytes, name: str, *, sandboxed: bool = True) -> Document:
    """Read a document of any format in `formats/table.py`.

    Args:
        data: the whole file.
        name: the file's name, for people, and to tell text formats apart.
        sandboxed: False for a local user's own file on a machine without bubblewrap.

    Raises:
        InvalidRequestError: empty, too large, broken, encrypted, hostile, or of another format; says which.
        MissingExtraError: a package that reads this format is not installed.
        SandboxUnavailableError: there is no sandbox on this machine.
    """
    name = _shown_name(name)
    return checked_document(_run(_PARSE, {"name": name}, data, name, sandboxed=sandboxed), data, name)


def checked_document(result: bytes, data: bytes, name: str) -> Document:
    """The document that another process says to have read, or the error that it has found.

    Raises:
        InvalidRequestError, MissingExtraError: as `load_document`; also if what it says cannot be.
    """
    try:
        fields = json.loads(result, parse_float=finite_float, parse_constant=refuse_constant)
        if not isinstance(fields, dict):
            raise ValueError("not an object")
        if "refused" in fields or "missing" in fields:
            _raise_answer(fields, name)
        digest = hashlib.sha256(data).hexdigest()
        document = document_from_dict({**fields, "name": name, "digest": digest})
    except (ValueError, NotJsonError, RecursionError):
        _refuse(name, _CAUSES["failure"])
    if not document.blocks and not document.scanned:
        _refuse(name, "has no text" + "".join(f"; {warning}" for warning in document.warnings[:1]))
    return document


def render_page(
    data: bytes, page: int, name: str = "document", *, max_side: int = 1536, sandboxed: bool = True
) -> bytes:
    """A page of a PDF document as a PNG file, for a model that sees.

    Args:
        data: the whole file.
        page: counted from 1.
        name: the file's name, for errors.
        max_side: the longer side of the picture, in pixels; at most `MAX_SIDE`.
        sandboxed: as for `load_document`.

    Raises:
        InvalidRequestError: not a PDF document, no such page, or it cannot be drawn.
        MissingExtraError, SandboxUnavailableError: as for `load_document`.
    """
    if not 1 <= max_side <= MAX_SIDE:
        raise InvalidRequestError(f"max_side is 1 to {MAX_SIDE} pixels, not {max_side}")
    name = _shown_name(name)
    result = _run(_RENDER, {"page": page, "max_side": max_side}, data, name, sandboxed=sandboxed)
    kind, rest = result[:1], result[1:]
    if kind in (b"-", b"?"):
        text = rest.decode("utf-8", "replace")
        _raise_answer({"refused" if kind == b"-" else "missing": text}, name)
    if kind != b"+" or not rest.startswith(_PNG):
        _refuse(name, _CAUSES["failure"])
    return rest


def _run(function: str, options: Mapping[str, Any], data: bytes, name: str, *, sandboxed: bool) -> bytes:
    if len(data) > MAX_NBYTES:
        _refuse(name, f"has {len(data) >> 20:,} MB; at most {MAX_NBYTES >> 20} MB are read")
    argument = json.dumps(options).encode() + b"\n" + data
    if not sandboxed:
        return _run_in_helper(function, argument, name)
    from glm4.sandbox.function import run_function
    from glm4.sandbox.limits import Limits

    limits = Limits(memory_nbytes=MEMORY_NBYTES, cpu_seconds=SECONDS)
    try:
        return run_function(function, argument, limits=limits, seconds=3 * SECONDS, max_nbytes=MAX_RESULT_NBYTES)
    except SandboxUnavailableError:
        raise
    except SandboxError as error:
        _refuse(name, _CAUSES[error.cause])


def _run_in_helper(function: str, argument: bytes, name: str) -> bytes:
    helper = Helper(HelperLimits(cpu_seconds=SECONDS, memory_bytes=MEMORY_NBYTES, stack_bytes=_STACK_NBYTES))
    try:
        return helper.call(function, argument)
    except HelperError as error:
        _refuse(name, _CAUSES.get(error.cause, _CAUSES["failure"]))
    finally:
        helper.close()


def _shown_name(name: str) -> str:
    """Without folders and anything that a terminal would act on; its end, which says what it is, stays."""
    name = " ".join(clean(re.split(r"[/\\]", name)[-1]).split())
    return name[-MAX_NAME_CHARACTERS:] or "document"


def _raise_answer(fields: Mapping[str, Any], name: str) -> NoReturn:
    """Raise the error that the other process has found, whose text may be a stranger's."""
    kind, text = next(iter(fields.items()))
    if len(fields) != 1 or not isinstance(text, str):
        raise ValueError("not an answer")
    text = " ".join(clean(text).split())[:_MESSAGE_CHARACTERS]
    if kind == "missing":
        raise MissingExtraError(text)
    _refuse(name, text)


def _refuse(name: str, why: str) -> NoReturn:
    raise InvalidRequestError(f"{name} {why}") from None

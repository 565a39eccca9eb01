"""What runs in the sandbox: functions of bytes that read a document, or draw a page of it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

from glm4.documents.formats.detection import PDF, detect
from glm4.documents.formats.parsed import FullError, Parsed, RefusedError
from glm4.documents.formats.table import FORMATS
from glm4.errors import MissingExtraError

_DAMAGED = "is damaged or not what it seems to be"


def parse(argument: bytes) -> bytes:
    """Read a document.

    Args:
        argument: a line of JSON {"name"}, then the file.

    Returns:
        JSON: the fields of a `Document` that come from its content; or {"refused": why}, or {"missing": packages}.
    """
    options, data = _split(argument)
    parsed = Parsed()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = detect(data, options["name"], parsed)
            try:
                FORMATS[content.media_type].load(content, parsed)
            except FullError as error:
                parsed.warn(str(error))
    except MissingExtraError as error:
        return _json({"missing": str(error)})
    except (RefusedError, MemoryError) as error:
        return _json({"refused": "needs more memory than is allowed" if isinstance(error, MemoryError) else str(error)})
    except RecursionError:
        return _json({"refused": "is nested too deeply"})
    except BaseException as error:  # a library's own errors, panics of native code: none of them says more to a user
        return _json({"refused": f"{_DAMAGED} ({_named(error)})"})
    return _json(_fields(content.media_type, parsed))


def render(argument: bytes) -> bytes:
    """Draw a page of a PDF file.

    Args:
        argument: a line of JSON {"page", "max_side"}, then the file.

    Returns:
        "+" and a PNG file; or "-" and why there is none, "?" and which package is missing.
    """
    options, data = _split(argument)
    try:
        if detect(data, "", Parsed()).media_type != PDF:
            return b"-is not a PDF document; only pages of these can be drawn"
        FORMATS[PDF].require()
        from glm4.documents.formats.pdf_render import draw_page

        return b"+" + draw_page(data, options["page"], options["max_side"])
    except MissingExtraError as error:
        return b"?" + str(error).encode()
    except RefusedError as error:
        return b"-" + str(error).encode()
    except BaseException as error:  # as above
        return f"-{_DAMAGED} ({_named(error)})".encode()


def _split(argument: bytes) -> tuple[dict[str, Any], bytes]:
    line, _, data = argument.partition(b"\n")
    return json.loads(line), data


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def _named(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:150]


def _fields(media_type: str, parsed: Parsed) -> Mapping[str, object]:
    return {
        "media_type": media_type,
        "blocks": [block.as_list() for block in parsed.blocks],
        "title": parsed.title,
        "num_pages": parsed.num_pages,
        "warnings": parsed.warnings,
        "scanned": parsed.scanned,
    }

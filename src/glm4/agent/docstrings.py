"""What a docstring says about a function and its parameters, in the styles of Google, NumPy and Sphinx."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

_PARAMETERS = frozenset(("args", "arguments", "parameters", "params", "other parameters", "keyword args"))
_OTHERS = frozenset(
    (
        "attributes", "example", "examples", "note", "notes", "raises", "references", "return", "returns", "see also",
        "todo", "warning", "warnings", "warns", "yield", "yields",
    )
)  # fmt: skip
_GOOGLE_ITEM = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")
_NUMPY_ITEM = re.compile(r"(\*{0,2}\w+(?:\s*,\s*\*{0,2}\w+)*)\s*(?::.*)?")
_FIELD = re.compile(r":(\w+)(?:\s+([^:]*))?:\s*(.*)")
_SPHINX_PARAMETER = frozenset(("param", "parameter", "arg", "argument", "key", "keyword"))


@dataclass(frozen=True)
class Docstring:
    """A docstring, read.

    Attributes:
        text: everything before the first section.
        parameters: name → description.
    """

    text: str
    parameters: dict[str, str]


def read_docstring(docstring: str | None) -> Docstring:
    """Read a docstring; whatever is in no known style is left out or belongs to the text."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    text: list[str] = []
    found: dict[str, str] = {}
    at = 0
    while at < len(lines):
        heading = _heading(lines, at)
        field = _FIELD.fullmatch(lines[at])
        if heading is not None:
            name, at = heading
            body = list(_body(lines, at))
            at += len(body)
            if name in _PARAMETERS:
                found |= _items(body)
        elif field is not None and (field[1] in _SPHINX_PARAMETER or found or not _is_text_after(lines, at)):
            body = list(_body(lines, at + 1, deeper=True))
            at += 1 + len(body)
            if field[1] in _SPHINX_PARAMETER and field[2]:
                found[field[2].split()[-1].lstrip("*")] = _joined([field[3], *body])
        else:
            text.append(lines[at])
            at += 1
    return Docstring("\n".join(text).strip(), {name: said for name, said in found.items() if said})


def _heading(lines: list[str], at: int) -> tuple[str, int] | None:
    """The section that begins here: its name in lower case, and where its body begins."""
    line = lines[at]
    name = line.strip().rstrip(":").lower()
    if line.startswith((" ", "\t")) or name not in _PARAMETERS | _OTHERS:
        return None
    if at + 1 < len(lines) and re.fullmatch(r"-{3,}|={3,}", lines[at + 1].strip()):
        return name, at + 2
    return (name, at + 1) if line.rstrip().endswith(":") else None


def _body(lines: list[str], at: int, *, deeper: bool = False) -> Iterator[str]:
    """The lines of a section: up to the next one, or to text that is not indented.

    Args:
        deeper: the body is indented for certain, so a blank line does not end it but text does.
    """
    numpy = not deeper and at > 1 and set(lines[at - 1].strip()) <= {"-", "="} and bool(lines[at - 1].strip())
    for index in range(at, len(lines)):
        line = lines[index]
        if not numpy and line.strip() and not line.startswith((" ", "\t")):
            return
        if numpy and _heading(lines, index) is not None:
            return
        yield line


def _items(body: list[str]) -> dict[str, str]:
    """Parameters of a section: a line with a name, and lines that are indented deeper."""
    written = [line for line in body if line.strip()]
    if not written:
        return {}
    indent = min(len(line) - len(line.lstrip()) for line in written)
    google = indent > 0
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in body:
        if line.strip() and len(line) - len(line.lstrip()) == indent:
            item = (_GOOGLE_ITEM if google else _NUMPY_ITEM).fullmatch(line.strip())
            names = [] if item is None else [name.strip().lstrip("*") for name in item[1].split(",")]
            for name in names:
                assert item is not None  # noqa: S101 (there are names)
                found[name] = [item[2]] if google else []
        else:
            for name in names:
                found[name].append(line)
    return {name: _joined(said) for name, said in found.items()}


def _joined(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def _is_text_after(lines: list[str], at: int) -> bool:
    """Whether text that is no field follows: then this one is part of the text."""
    return any(line.strip() and not line.startswith((" ", "\t", ":")) for line in lines[at + 1 :])

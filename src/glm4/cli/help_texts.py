"""Help texts: for `glm4`, from the table of commands, and for each command, from its function's declarations."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import sys
import textwrap

from glm4.cli.commands import COMMANDS
from glm4.cli.parameters import Declared, declared

_WIDEST, _COLUMN = 100, 31
_ABOUT = """Run the GLM-4 family of open language models on this machine.

`glm4 chat` starts a conversation with a small starter model; `-m glm-4-9b-chat` is the real thing."""
_HELP = ("-h, --help", "Show this message and exit.")


def program_help() -> str:
    """What `glm4 --help` prints."""
    panels: dict[str, list[tuple[str, str]]] = {}
    for name, row in COMMANDS.items():
        panels.setdefault(row.panel, []).append((name, row.summary))
    panels["Options"] = [
        ("--version", "Show the version and exit."),
        ("--debug", "Show tracebacks. Works after any command too."),
        _HELP,
    ]
    return _page("glm4 [OPTIONS] COMMAND [ARGS]...", _ABOUT, panels, "See also: glm4 COMMAND --help")


def command_help(name: str) -> str:
    """What `glm4 COMMAND --help` prints.

    Args:
        name: a key of `COMMANDS`.
    """
    module, function = COMMANDS[name].load(name)
    usage = ["glm4", name, "[OPTIONS]"]
    panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for parameter in declared(function):
        names, shown = parameter.spellings, parameter.usage
        panel = parameter.declaration.panel if names else "Arguments"
        panels.setdefault(panel, []).append((shown, parameter.declaration.help + _default(parameter)))
        if parameter.required:
            usage.append(f"{parameter.title} {parameter.metavar}" if names else shown)
        elif not names:
            usage.append(f"[{shown}]")
    panels["Options"].append(_HELP)
    examples = "\n".join(["Examples:", *(f"  {line}" for line in module.EXAMPLES.strip().splitlines())])
    return _page(" ".join(usage), inspect.getdoc(function) or "", panels, examples)


def _default(parameter: Declared) -> str:
    values = parameter.default if isinstance(parameter.default, list) else [parameter.default]
    hidden = parameter.required or parameter.default is None or parameter.default is False
    shown = "" if hidden else ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
    sources = [text for text in (parameter.declaration.envvar, shown) if text]
    return f" (default: {', else '.join(sources)})" if sources else ""


def _page(usage: str, about: str, panels: dict[str, list[tuple[str, str]]], end: str) -> str:
    """Format a page as wide as the terminal, up to a readable width."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    column = min(_COLUMN, width // 2, 4 + max(len(left) for rows in panels.values() for left, _ in rows))
    parts = [f"Usage: {usage}", *(_fill(" ".join(part.split()), width) for part in about.split("\n\n"))]
    for title, rows in panels.items():
        if rows:
            parts.append("\n".join([f"{title}:", *(_row(left, right, width, column) for left, right in rows)]))
    return _styled("\n\n".join([*parts, end]) + "\n")


def _row(left: str, right: str, width: int, column: int) -> str:
    fits = len(left) + 4 <= column
    text = _fill(right, width, f"  {left}".ljust(column) if fits else " " * column, " " * column)
    return text if fits else f"  {left}\n{text}"


def _fill(text: str, width: int, first: str = "", later: str = "") -> str:
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)


def _styled(text: str) -> str:
    """Bold headings, and colored text for what can be typed, if the terminal supports it."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    text = re.sub(r"(?m)^(Usage:|\S.*:$)", "\x1b[1m\\1\x1b[0m", text)
    return re.sub(r"(?m)^  ([a-z]+\b(?=  )|--?[a-z][\w-]*(?:, --?[\w-]+)*)", "  \x1b[36m\\1\x1b[0m", text)

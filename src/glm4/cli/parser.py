"""Parses the command line of a command with argparse, using its function's declarations (`glm4.cli.parameters`)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from glm4.cli.commands import before_separator
from glm4.cli.parameters import Declared, UsageError, declared

# vLLM's option for several copies of a model: accepted if there is one.
_COPIES = ("--data-parallel-size", "-dp")


def read(function: Callable[..., None], args: list[str]) -> dict[str, Any]:
    """Keyword arguments for a command's function; parameters that were not given are omitted.

    Args:
        function: the command.
        args: the command line after the command's name.

    Raises:
        UsageError: the command does not accept this line.
    """
    parameters = declared(function)
    options = [spelling for parameter in parameters for spelling in parameter.spellings]
    for word in before_separator(args):
        if word.startswith("-") and word.partition("=")[0] not in options:
            from glm4.cli.mistakes import advice, unknown

            if advice(word.partition("=")[0], options):
                raise unknown(word, options)
    bare = {spelling: p.declaration.bare for p in parameters for spelling in p.spellings if p.declaration.bare}
    ours = before_separator(args)
    words = [f"{word}={bare[word]}" if word in bare else word for word in ours] + args[len(ours) :]
    try:
        parser = _parser(parameters, options)
        # A list of arguments may be interrupted by options.
        several = any(parameter.is_list and not parameter.spellings for parameter in parameters)
        found, rest = (parser.parse_known_intermixed_args if several else parser.parse_known_args)(words)
    except argparse.ArgumentError as error:  # too many or too few values; invalid ones are reported by `Declared.read`
        title = str(error.argument_name).split("/")[0]
        is_flag = any(title in parameter.spellings and parameter.kind is bool for parameter in parameters)
        raise UsageError(f"option '{title}' {'does not take' if is_flag else 'needs'} a value") from None
    if rest:
        from glm4.cli.mistakes import unknown

        raise unknown(rest[0], options)
    arguments: dict[str, Any] = {}
    groups: dict[tuple[str, type], dict[str, Any]] = {p.group: {} for p in parameters if p.group}
    for parameter in parameters:
        value = getattr(found, parameter.name)
        value = parameter.from_environment() if value in (None, []) else value
        if value is not None:
            (groups[parameter.group] if parameter.group else arguments)[parameter.name] = value
        elif parameter.required:
            raise UsageError(f"missing {'option' if parameter.spellings else 'argument'} {parameter.title}")
    return arguments | {name: make(**fields) for (name, make), fields in groups.items()}


def _parser(parameters: Iterable[Declared], options: Sequence[str]) -> argparse.ArgumentParser:
    """An argparse parser without required parameters: missing ones are reported last, once the rest is valid."""
    # argparse checks metavars with a formatter; one that asks for the terminal width would import zlib, bz2 and lzma.
    formatter = partial(argparse.HelpFormatter, width=80)
    parser = argparse.ArgumentParser(formatter_class=formatter, add_help=False, allow_abbrev=False, exit_on_error=False)
    for parameter in parameters:
        if parameter.kind is bool:
            parser.add_argument(*parameter.spellings, dest=parameter.name, action=_Flag, nargs=0)
        elif parameter.spellings:
            action = "append" if parameter.is_list else "store"
            parser.add_argument(*parameter.spellings, dest=parameter.name, action=action, type=parameter.read)
        else:
            nargs = "*" if parameter.is_list else None if parameter.required else "?"
            parser.add_argument(parameter.name, nargs=nargs, type=parameter.read).required = False
    if "--threads" in options:
        parser.add_argument(*_COPIES, type=_one)
    return parser


def _one(text: str) -> None:
    if text != "1":
        raise UsageError("copies of a model are servers of their own; start `glm4 serve` once for each")


class _Flag(argparse.Action):
    """An option without a value: true, or false in its `--no-` spelling."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, not str(option_string).startswith("--no-"))

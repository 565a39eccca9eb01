"""Reads the command line of a command with argparse, by what its function declares (`glm4.cli.parameters`)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from glm4.cli.commands import before_separator
from glm4.cli.foreign_options import SPLITTING, advice, not_split
from glm4.cli.parameters import Declared, UsageError, declared


def read(function: Callable[..., None], args: list[str]) -> dict[str, Any]:
    """What to call a command's function with; parameters that were not given are left out.

    Args:
        function: the command.
        args: the command line behind the command's name.

    Raises:
        UsageError: the command takes no such line.
    """
    parameters = declared(function)
    options = [spelling for parameter in parameters for spelling in parameter.spellings]
    for word in before_separator(args):
        if word.startswith("-") and advice(word.partition("=")[0], options):
            raise unknown(word, options)
    try:
        found, rest = _parser(parameters, options).parse_known_args(args)
    except argparse.ArgumentError as error:  # a value too many or too few; wrong ones are told by `Declared.read`
        title = str(error.argument_name).split("/")[0]
        is_flag = any(title in parameter.spellings and parameter.kind is bool for parameter in parameters)
        raise UsageError(f"option '{title}' {'does not take' if is_flag else 'needs'} a value") from None
    if rest:
        raise unknown(rest[0], options)
    arguments: dict[str, Any] = {}
    groups: dict[tuple[str, type], dict[str, Any]] = {p.group: {} for p in parameters if p.group}
    for parameter in parameters:
        value = getattr(found, parameter.name)
        value = parameter.from_environment() if value is None else value
        if value is not None:
            (groups[parameter.group] if parameter.group else arguments)[parameter.name] = value
        elif parameter.required:
            raise UsageError(f"missing {'option' if parameter.spellings else 'argument'} {parameter.title}")
    return arguments | {name: make(**fields) for (name, make), fields in groups.items()}


def _parser(parameters: Iterable[Declared], options: Sequence[str]) -> argparse.ArgumentParser:
    """It requires nothing: what is missing is told last, when the rest is known to be right."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for parameter in parameters:
        if parameter.kind is bool:
            parser.add_argument(*parameter.spellings, dest=parameter.name, action=_Flag, nargs=0)
        elif parameter.spellings:
            action = "append" if parameter.is_list else "store"
            parser.add_argument(*parameter.spellings, dest=parameter.name, action=action, type=parameter.read)
        else:
            nargs = None if parameter.required else "?"
            parser.add_argument(parameter.name, nargs=nargs, type=parameter.read).required = False
    if "--threads" in options:
        parser.add_argument(*SPLITTING, type=not_split)
    return parser


class _Flag(argparse.Action):
    """An option without a value: true, or false in its spelling with `--no-`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, not str(option_string).startswith("--no-"))


def unknown(word: str, options: Iterable[str], commands: Iterable[str] = ()) -> UsageError:
    """The error for a word that nothing takes, with what may have been meant.

    Args:
        options: what would have been taken.
        commands: what would have been taken in place of an argument.
    """
    import difflib  # for mistakes only

    if word.startswith("-"):
        word, known = word.partition("=")[0], [*options, "--help", "--debug"]
        wrong = f"no such option: {word}"
    elif commands:
        known, wrong = list(commands), f"no such command {word!r}"
    else:
        return UsageError(f"unexpected argument {word!r}; a text with spaces needs quotes")
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    meant = advice(word, known) or (f"did you mean {close[0]}?" if close else "")
    return UsageError(f"{wrong}; {meant}" if meant else wrong)

"""How a command declares its parameters, and the reading of plain command lines without Typer.

Importing Typer and building its validators takes longer than loading a model of a gigabyte. It is needed for help,
completion and telling people what is wrong with a command line, so it stays the authority; but a line that consists of
known options with well-formed values means the same to everybody, and `plain_arguments` reads it. Whatever is not
plain is left to Typer (`glm4.cli.typer_app`). `tests/cli/test_parameters.py` holds the two against each other.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints


class Parameter:
    """What `Annotated` tells about a parameter of a command: an `Option` or an `Argument`.

    Args:
        names: spellings of an option; without any, `--` and the parameter's name.
        envvar: environment variable that gives a value when the command line does not.
        min, max: bounds of a number.
        shown: what only help texts need, under Typer's names: help, metavar, rich_help_panel, show_default.
    """

    def __init__(
        self,
        *names: str,
        envvar: str | None = None,
        min: float | None = None,
        max: float | None = None,
        **shown: str | bool,
    ) -> None:
        self.names = names
        self.envvar = envvar
        self.min = min
        self.max = max
        self.shown: Mapping[str, str | bool] = shown


class Option(Parameter):
    """A parameter given by name."""


class Argument(Parameter):
    """A parameter given by its place."""


class Exit(Exception):  # noqa: N818 - no error
    """Ends the program with an exit code; whatever was to be said has been said."""

    def __init__(self, code: int = 0) -> None:
        super().__init__(code)
        self.code = code


class UsageError(Exception):
    """Values that are well-formed but make no sense together; ends the program like any wrong usage."""


# Spellings that every parser of numbers reads alike; others are left to Typer.
_NUMBERS = {int: re.compile(r"-?[0-9]{1,15}"), float: re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?")}


class _NotPlainError(Exception):
    """This command line is for Typer."""


class _Spec(NamedTuple):
    """A declared parameter: its name in the function, and its type without None and list."""

    name: str
    kind: Any
    is_list: bool
    declared: Parameter
    required: bool

    def read(self, text: str) -> Any:
        """The value a text stands for."""
        if self.kind is str:
            return text
        if self.kind is Path:
            return Path(text)
        if not _NUMBERS[self.kind].fullmatch(text):
            raise _NotPlainError
        value = self.kind(text)
        low, high = self.declared.min, self.declared.max
        if (low is not None and value < low) or (high is not None and value > high):
            raise _NotPlainError
        return value


def plain_arguments(function: Callable[..., None], args: Sequence[str]) -> dict[str, Any] | None:
    """What to call a command's function with; parameters that were not given are left out.

    Args:
        function: the command; each of its parameters must be annotated with an `Option` or `Argument`.
        args: the command line behind the command's name.

    Returns:
        None for anything but a plain command line: help, a mistake, an unusual spelling.
    """
    try:
        return _plain_arguments(list(_specs(function)), args)
    except _NotPlainError:
        return None


def _specs(function: Callable[..., None]) -> Iterator[_Spec]:
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        annotation = hints.get(name)
        declared = get_args(annotation)[1] if get_origin(annotation) is Annotated else None
        if not isinstance(declared, Parameter):
            raise _NotPlainError
        kind = get_args(annotation)[0]
        kinds = [part for part in get_args(kind) if part is not NoneType] if NoneType in get_args(kind) else [kind]
        is_list = get_origin(kinds[0]) is list
        inner = get_args(kinds[0])[0] if is_list else kinds[0]
        if len(kinds) != 1 or inner not in (str, Path, bool, *_NUMBERS):
            raise _NotPlainError
        yield _Spec(name, inner, is_list, declared, parameter.default is parameter.empty)


def _plain_arguments(specs: Sequence[_Spec], args: Sequence[str]) -> dict[str, Any]:
    options = {
        spelling: spec
        for spec in specs
        if isinstance(spec.declared, Option)
        for spelling in spec.declared.names or ("--" + spec.name.replace("_", "-"),)
        if "/" not in spelling  # "--on/--off" is two spellings, and Typer's to read
    }
    places = iter([spec for spec in specs if isinstance(spec.declared, Argument)])
    given: dict[str, Any] = {}
    rest = iter(args)
    for arg in rest:
        if arg.startswith("-"):
            spelling, has_value, text = arg.partition("=")
            spec = options.get(spelling)
            if spec is None or (has_value and not spelling.startswith("--")):
                raise _NotPlainError
            if spec.kind is bool:
                if has_value:
                    raise _NotPlainError
                given[spec.name] = True
                continue
            text = text if has_value else next(rest, "-")
        else:
            spec, text = next(places, None), arg
        if spec is None or text.startswith("-") or (spec.name in given and not spec.is_list):
            raise _NotPlainError
        value = spec.read(text)
        given[spec.name] = [*given.get(spec.name, ()), value] if spec.is_list else value
    return _completed(specs, given)


def _completed(specs: Sequence[_Spec], given: dict[str, Any]) -> dict[str, Any]:
    """With what the environment gives."""
    for spec in specs:
        text = os.environ.get(spec.declared.envvar, "") if spec.declared.envvar else ""
        if spec.name not in given and text:
            if spec.kind is not str or spec.is_list:
                raise _NotPlainError
            given[spec.name] = text
        elif spec.name not in given and spec.required:
            raise _NotPlainError
    return given

"""How a command declares its parameters: each one of its function is annotated with an `Option` or an `Argument`.

`glm4.cli.parser` reads command lines by these declarations, writes help from them, and completes with them.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints


class Parameter:
    """What `Annotated` tells about a parameter of a command.

    Args:
        names: spellings of an option, the usual one first; without any, `--` and the parameter's name.
        help: one sentence or two.
        metavar: what stands for the value in help texts; without one, the parameter's name.
        panel: heading to list it under.
        envvar: environment variable that gives a value when the command line does not; several are separated by spaces.
        min, max: bounds of a number.
    """

    def __init__(
        self,
        *names: str,
        help: str,
        metavar: str | None = None,
        panel: str = "Options",
        envvar: str | None = None,
        min: float | None = None,
        max: float | None = None,
    ) -> None:
        self.names = names
        self.help = help
        self.metavar = metavar
        self.panel = panel
        self.envvar = envvar
        self.min = min
        self.max = max


class Option(Parameter):
    """A parameter given by name. One that is `bool` takes no value; `bool | None` may be negated (`--no-…`)."""


class Argument(Parameter):
    """A parameter given by its place."""


class Exit(Exception):  # noqa: N818 - no error
    """Ends the program with an exit code; whatever was to be said has been said."""

    def __init__(self, code: int = 0) -> None:
        super().__init__(code)
        self.code = code


class UsageError(Exception):
    """A mistake on the command line; its text says which one."""


class Declared(NamedTuple):
    """A parameter of a command's function: its name and default there, its type without None and list.

    `group` is set if it is a field of a dataclass that the function takes: the function's parameter, and that class.
    """

    name: str
    default: Any
    kind: type
    is_list: bool
    declaration: Parameter
    group: tuple[str, type] | None = None

    @property
    def spellings(self) -> tuple[str, ...]:
        """What an option is called on the command line; nothing for an argument."""
        if isinstance(self.declaration, Argument):
            return ()
        return self.declaration.names or ("--" + self.name.replace("_", "-"),)

    @property
    def metavar(self) -> str:
        """What stands for the value in help texts."""
        return self.declaration.metavar or self.name.upper()

    @property
    def title(self) -> str:
        """What messages call it."""
        return next(iter(self.spellings), self.metavar)

    @property
    def required(self) -> bool:
        """Whether the command line must give it."""
        return self.default is inspect.Parameter.empty

    def read(self, text: str) -> Any:
        """The value that a text stands for.

        Raises:
            UsageError: it is not a number, or out of bounds.
        """
        if self.kind in (str, Path):
            return self.kind(text)
        wrong = f"invalid value for '{self.title}'"
        try:
            value = self.kind(text)
        except ValueError:
            raise UsageError(f"{wrong}: {text!r} is not a {'whole ' if self.kind is int else ''}number") from None
        low, high = self.declaration.min, self.declaration.max
        if (low is not None and not value >= low) or (high is not None and not value <= high):  # so that NaN is wrong
            bounds = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
            raise UsageError(f"{wrong}: it must be {bounds}, not {text}")
        return value

    def from_environment(self) -> Any:
        """The value that its variable gives, or None."""
        text = os.environ.get(self.declaration.envvar, "") if self.declaration.envvar else ""
        if not text:
            return None
        return [self.read(part) for part in text.split()] if self.is_list else self.read(text)


def declared(owner: Callable[..., Any]) -> list[Declared]:
    """The parameters of a command, in order; of a parameter that is a dataclass, its fields."""
    hints = get_type_hints(owner, include_extras=True)
    found: list[Declared] = []
    for name, parameter in inspect.signature(owner).parameters.items():
        if get_origin(hints[name]) is not Annotated:
            found += [field._replace(group=(name, hints[name])) for field in declared(hints[name])]
            continue
        kind, declaration = get_args(hints[name])
        if NoneType in get_args(kind):
            (kind,) = (part for part in get_args(kind) if part is not NoneType)
        is_list = get_origin(kind) is list
        found.append(Declared(name, parameter.default, get_args(kind)[0] if is_list else kind, is_list, declaration))
    return found

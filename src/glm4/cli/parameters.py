"""How a command declares its parameters: each function parameter is annotated with an `Option` or an `Argument`.

`glm4.cli.parser` parses command lines with these declarations; help and completion are generated from them.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from types import NoneType
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints


class Parameter:
    """What `Annotated` says about a parameter of a command.

    Args:
        names: spellings of an option, the usual one first; if empty, `--` and the parameter's name.
        help: a sentence or two.
        metavar: placeholder for the value in help texts; by default the parameter's name.
        panel: heading under which to list it.
        envvar: environment variable that provides a value if the command line does not.
        min, max: bounds of a number.
        bare: what an option without a value means. Its value is then part of the same word: --option=VALUE.
    """

    def __init__(
        self,
        *names: str,
        help: str,
        metavar: str | None = None,
        panel: str = "Options",
        envvar: str = "",
        min: float | None = None,
        max: float | None = None,
        bare: str | None = None,
    ) -> None:
        self.names, self.help, self.metavar, self.panel = names, help, metavar, panel
        self.envvar, self.min, self.max, self.bare = envvar, min, max, bare


class Option(Parameter):
    """A parameter given by name; a bool takes no value, and is false in its `--no-` spelling."""


class Argument(Parameter):
    """A positional parameter."""


AsJson = Annotated[bool, Option("--json", help="One JSON document, for programs.")]


class Exit(Exception):  # noqa: N818 - no error
    """Ends the program with an exit code; any message has already been printed."""

    def __init__(self, code: int = 0) -> None:
        super().__init__(code)
        self.code = code


class UsageError(Exception):
    """A mistake on the command line; its text describes it."""


class Declared(NamedTuple):
    """A parameter of a command's function.

    Attributes:
        name, default: as in the function; the default of a required parameter is `inspect.Parameter.empty`.
        kind: its type (str, Path, int, float or bool) without None and list.
        spellings: what an option is called on the command line; empty for an argument.
        group: if it is a field of a dataclass that the function takes: the function's parameter, and that class.
    """

    name: str
    default: Any
    kind: type
    is_list: bool
    declaration: Parameter
    spellings: tuple[str, ...]
    metavar: str
    group: tuple[str, type] | None = None

    @property
    def title(self) -> str:
        """Its name in messages."""
        return self.spellings[0] if self.spellings else self.metavar

    @property
    def usage(self) -> str:
        """Its spellings and its value, in help texts."""
        names = ", ".join(sorted(self.spellings, key=len))
        if self.declaration.bare is not None:
            return f"{names}[={self.metavar}]"
        return names if self.kind is bool else f"{names} {self.metavar}".lstrip()

    @property
    def required(self) -> bool:
        """Whether the command line must provide it."""
        return self.default is inspect.Parameter.empty

    def read(self, text: str) -> Any:
        """The value that a text represents.

        Raises:
            UsageError: it is not a number, or out of bounds.
        """
        if self.kind not in (int, float):
            return self.kind(text)
        wrong, (low, high) = f"invalid value for '{self.title}'", (self.declaration.min, self.declaration.max)
        try:
            value = self.kind(text)
        except ValueError:
            raise UsageError(f"{wrong}: {text!r} is not a {'whole ' if self.kind is int else ''}number") from None
        if (low is not None and not value >= low) or (high is not None and not value <= high):  # NaN fails both
            bounds = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
            raise UsageError(f"{wrong}: it must be {bounds}, not {text}")
        return value

    def from_environment(self) -> Any:
        """The value of its environment variable (for a list: values separated by spaces), or None."""
        text = os.environ.get(self.declaration.envvar, "")
        if self.is_list:
            return [self.read(part) for part in text.split()] or None
        return self.read(text) if text else None


def declared(owner: Callable[..., Any]) -> list[Declared]:
    """The parameters of a command, in order; a dataclass parameter is replaced by its fields."""
    hints = get_type_hints(owner, include_extras=True)
    found: list[Declared] = []
    for name, parameter in inspect.signature(owner).parameters.items():
        hint = _without_none(hints[name])  # Python 3.10 wraps `Annotated` in Optional if the default is None
        if get_origin(hint) is not Annotated:
            found += [field._replace(group=(name, hint)) for field in declared(hint)]
            continue
        kind, declaration = get_args(hint)
        kind = _without_none(kind)
        is_list = get_origin(kind) is list
        kind = get_args(kind)[0] if is_list else kind
        names = declaration.names or ("--" + name.replace("_", "-"),)
        spellings = names if isinstance(declaration, Option) else ()
        metavar = declaration.metavar or name.upper()
        found.append(Declared(name, parameter.default, kind, is_list, declaration, spellings, metavar))
    return found


def _without_none(hint: Any) -> Any:
    return next((part for part in get_args(hint) if part is not NoneType), hint) if NoneType in get_args(hint) else hint

"""How a command declares its parameters: each one of its function is annotated with an `Option` or an `Argument`.

`glm4.cli.parser` reads command lines by these declarations; help and completion are made from them.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from types import NoneType
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

NEEDS_VLLM = "for the vLLM backend (--backend vllm), which is not in this version"


class Parameter:
    """What `Annotated` tells about a parameter of a command.

    Args:
        names: spellings of an option, the usual one first; without any, `--` and the parameter's name.
        help: a sentence or two.
        metavar: what stands for the value in help texts; without one, the parameter's name.
        panel: heading to list it under.
        envvar: environment variable that gives a value when the command line does not.
        min, max: bounds of a number.
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
    ) -> None:
        self.names, self.help, self.metavar, self.panel = names, help, metavar, panel
        self.envvar, self.min, self.max = envvar, min, max


class Option(Parameter):
    """A parameter given by name; one of type bool takes no value, and is false in a spelling with `--no-`."""


class Argument(Parameter):
    """A parameter given by its place."""


AsJson = Annotated[bool, Option("--json", help="One JSON document, for programs.")]


class Exit(Exception):  # noqa: N818 - no error
    """Ends the program with an exit code; whatever was to be said has been said."""

    def __init__(self, code: int = 0) -> None:
        super().__init__(code)
        self.code = code


class UsageError(Exception):
    """A mistake on the command line; its text says which one."""


class Declared(NamedTuple):
    """A parameter of a command's function.

    Attributes:
        name, default: in the function; the default of a required one is `inspect.Parameter.empty`.
        kind: its type (str, Path, int, float or bool) without None and list.
        spellings: what an option is called on the command line; nothing for an argument.
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
        """What messages call it."""
        return self.spellings[0] if self.spellings else self.metavar

    @property
    def required(self) -> bool:
        """Whether the command line must give it."""
        return self.default is inspect.Parameter.empty

    def read(self, text: str) -> Any:
        """The value that a text stands for.

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
        if (low is not None and not value >= low) or (high is not None and not value <= high):  # NaN is neither
            bounds = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
            raise UsageError(f"{wrong}: it must be {bounds}, not {text}")
        return value

    def from_environment(self) -> Any:
        """The value that its variable gives (of a list: values, separated by spaces), or None."""
        text = os.environ.get(self.declaration.envvar, "")
        if self.is_list:
            return [self.read(part) for part in text.split()] or None
        return self.read(text) if text else None


def declared(owner: Callable[..., Any]) -> list[Declared]:
    """The parameters of a command, in order; in place of one that is a dataclass, its fields."""
    hints = get_type_hints(owner, include_extras=True)
    found: list[Declared] = []
    for name, parameter in inspect.signature(owner).parameters.items():
        hint = _without_none(hints[name])  # Python 3.10 puts None around `Annotated` if it is the default
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

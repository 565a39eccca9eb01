"""The commands as a Typer application: help, completion, and what is wrong with a command line.

Imported only for these; see `glm4.cli.parameters`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from glm4.cli import console
from glm4.cli.commands import COMMANDS, print_version
from glm4.cli.parameters import Argument, Option, Parameter

# Typer brings its own copy of click in newer releases and the real one in older ones; this finds either.
_ClickException: type[Exception] = typer.BadParameter.__mro__[2]


class _Command(TyperCommand):
    """A command whose help ends with its module's examples, line breaks kept."""

    examples = ""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        if self.examples:
            console.stdout().print(" Examples:", highlight=False)
            for line in self.examples.strip().splitlines():
                console.stdout().print(f"   {line}", markup=False, highlight=False, soft_wrap=True)


class _LazyGroup(TyperGroup):
    """Lists commands from the table; imports the one that runs."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name in COMMANDS else command, rest


def load_command(name: str) -> Any:
    """Import the module of one command and build its parser.

    Args:
        name: a key of `COMMANDS`.
    """
    module, function = COMMANDS[name].load(name)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    app.command(name, cls=_Command, help=_paragraphs(function))(_for_typer(function))
    command: Any = typer.main.get_command(app)
    command.examples = getattr(module, "EXAMPLES", "")
    return command


def _for_typer(function: Callable[..., None]) -> Callable[..., None]:
    """The same function with its parameters declared as Typer wants them."""
    hints = get_type_hints(function, include_extras=True)
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=_annotation(hints.get(name, parameter.annotation)))
        for name, parameter in signature.parameters.items()
    ]

    def command(**arguments: Any) -> None:
        function(**arguments)

    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {
        parameter.name: parameter.annotation for parameter in parameters if parameter.annotation is not parameter.empty
    }
    return command


def _annotation(hint: Any) -> Any:
    declared = get_args(hint)[1] if get_origin(hint) is Annotated else None
    if not isinstance(declared, Parameter):
        return hint
    make: Any = {Option: typer.Option, Argument: typer.Argument}[type(declared)]
    settings = {"envvar": declared.envvar, "min": declared.min, "max": declared.max, **declared.shown}
    return Annotated[get_args(hint)[0], make(*declared.names, **settings)]


def _paragraphs(function: Callable[..., object]) -> str:
    """A docstring with its paragraphs each on one line, for help texts that fit any width."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_version()
        raise typer.Exit


def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks. Works after any command too.")] = False,
) -> None:
    """Run the GLM-4 family of open language models on this machine.

    [bold]glm4 chat[/bold] starts a conversation with a small starter model;
    [bold]-m glm-4-9b-chat[/bold] is the real thing.
    """
    if ctx.invoked_subcommand is None:
        ctx.get_help()  # with Rich, this prints
        raise typer.Exit


def build_app() -> typer.Typer:
    """The Typer application: the root options and one placeholder per table row."""
    app = typer.Typer(
        name="glm4",
        cls=_LazyGroup,
        invoke_without_command=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback(help=_paragraphs(_root))(_root)
    for name, row in COMMANDS.items():
        app.command(name, help=row.summary, rich_help_panel=row.panel)(_placeholder)
    return app


def _placeholder() -> None:
    """Stands in the group's listing; `_LazyGroup` replaces it before anything runs."""


def run(args: Sequence[str]) -> None:
    """Run a command line that is more than plain."""
    command: Any = typer.main.get_command(build_app())
    with command.make_context("glm4", list(args)) as ctx:
        command.invoke(ctx)


def complete(args: Sequence[str]) -> None:
    """Answer a shell that asks for completions."""
    command: Any = typer.main.get_command(build_app())
    command.main(list(args), prog_name="glm4")


def exit_code(error: BaseException, program: str) -> int | None:
    """The exit code for an exception of Typer's, its message printed; None for any other.

    Args:
        program: whose help to point to: `glm4 chat`, say.
    """
    if isinstance(error, typer.Exit):
        return console.flush_quietly(int(error.exit_code))
    if isinstance(error, typer.Abort):
        return console.EXIT_INTERRUPTED
    if isinstance(error, _ClickException):
        shown: Any = error
        return console.usage_error(shown.format_message(), program)
    return None

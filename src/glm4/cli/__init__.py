"""The `glm4` command: one file per command, found through the table at the foot of this file.

`glm4 --help` reads the table only. A command's module is imported when that command runs; it holds a function named
after the command (Typer annotations; the docstring is its help) and a string `EXAMPLES` (one example a line), shown
at the end of its help.

Exit codes: 0 done, 1 failed, 2 wrong usage or no such model, 130 interrupted.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

# Typer brings its own copy of click in newer releases and the real one in older ones; this finds either.
_ClickException: type[Exception] = typer.BadParameter.__mro__[2]


class CommandRow(NamedTuple):
    """Where a command lives and how `glm4 --help` lists it."""

    module: str
    panel: str
    summary: str


class _Command(TyperCommand):
    """A command whose help ends with its module's examples, line breaks kept."""

    examples = ""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        if self.examples:
            from glm4.cli.console import stdout

            stdout().print(" Examples:", highlight=False)
            for line in self.examples.strip().splitlines():
                stdout().print(f"   {line}", markup=False, highlight=False, soft_wrap=True)


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
    row = COMMANDS[name]
    module = importlib.import_module(row.module)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    function = getattr(module, name)
    app.command(name, cls=_Command, help=_paragraphs(function))(function)
    command: Any = typer.main.get_command(app)
    command.examples = getattr(module, "EXAMPLES", "")
    return command


def _paragraphs(function: Callable[..., object]) -> str:
    """A docstring with its paragraphs each on one line, for help texts that fit any width."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)


def _print_version(wanted: bool) -> None:
    if wanted:
        from glm4 import __version__

        typer.echo(f"glm4 {__version__}")
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the entry point of the `glm4` script.

    Args:
        argv: arguments without the program name; None takes the process's own.

    Returns:
        The exit code.
    """
    from glm4.cli import console

    args = list(sys.argv[1:] if argv is None else argv)
    console.prepare_streams()
    args, debug = _take_debug(args)
    command: Any = typer.main.get_command(build_app())
    if "_GLM4_COMPLETE" in os.environ:  # the shell asks for completions
        command.main(args, prog_name="glm4")
        return 0
    try:
        with command.make_context("glm4", args) as ctx:
            command.invoke(ctx)
        sys.stdout.flush()
    except typer.Exit as exit_:
        return console.flush_quietly(int(exit_.exit_code))
    except typer.Abort:
        return console.EXIT_INTERRUPTED
    except BrokenPipeError:
        console.silence_stdout()  # the reader has what it wanted (`| head -1`)
        return 0
    except KeyboardInterrupt:
        console.error("interrupted")
        return console.EXIT_INTERRUPTED
    except _ClickException as error:
        return console.usage_error(error)
    except Exception as error:
        if debug:
            raise
        return console.failure(error)
    return 0


def _take_debug(args: list[str]) -> tuple[list[str], bool]:
    """Accept `--debug` anywhere before `--`, so that it can be appended to a command that just failed."""
    end = args.index("--") if "--" in args else len(args)
    debug = "--debug" in args[:end] or os.environ.get("GLM4_DEBUG", "") not in ("", "0")
    return [arg for i, arg in enumerate(args) if i >= end or arg != "--debug"], debug


_RUN, _MODELS = "Run a model", "Manage models"

COMMANDS: dict[str, CommandRow] = {
    "chat": CommandRow("glm4.cli.chat", _RUN, "Talk to a model, or ask it one question."),
    "generate": CommandRow("glm4.cli.generate", _RUN, "Continue a text, without a chat template."),
    "serve": CommandRow("glm4.cli.serve", _RUN, "Serve models over HTTP: OpenAI's and Anthropic's APIs."),
    "batch": CommandRow("glm4.cli.batch", _RUN, "Answer a file of OpenAI batch requests; resumes where it stopped."),
    "bench": CommandRow("glm4.cli.bench", _RUN, "Measure how fast a model runs here."),
    "pull": CommandRow("glm4.cli.pull", _MODELS, "Download a model."),
    "models": CommandRow("glm4.cli.models", _MODELS, "List installed and known models."),
    "info": CommandRow("glm4.cli.info", _MODELS, "Describe a model: architecture, context, tensors."),
    "quantize": CommandRow("glm4.cli.quantize", _MODELS, "Write a model as a smaller checkpoint that starts fast."),
    "plan": CommandRow("glm4.cli.plan", _MODELS, "Estimate the memory a model needs, and whether it fits here."),
}

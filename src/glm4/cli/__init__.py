"""The `glm4` command: one file per command, found through the table in `commands.py`.

`glm4 --help` reads the table only. A command's module is imported when that command runs; it holds a function named
after the command (parameters annotated with an `Option` or `Argument` of `glm4.cli.parameters`; the docstring is its
help) and a string `EXAMPLES` (one example a line), shown at the end of its help.

Exit codes: 0 done, 1 failed, 2 wrong usage or no such model, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from glm4.cli.commands import COMMANDS, print_version


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the entry point of the `glm4` script.

    Args:
        argv: arguments without the program name; None takes the process's own.

    Returns:
        The exit code.
    """
    args, debug = _take_debug(list(sys.argv[1:] if argv is None else argv))
    with _noted_interrupts() as interrupts:
        try:
            _run(args)
        except (Exception, KeyboardInterrupt) as error:
            if interrupts and _is_broken_import(error):
                error = KeyboardInterrupt()
            code = _exit_code(error, args, debug=debug)
            if code is None:
                raise
            return code
    return 0


@contextlib.contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """Yields a list that every Ctrl-C is written to, beside raising KeyboardInterrupt as ever."""
    noted: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    # Other threads cannot set a handler, and a process told to ignore Ctrl-C goes on doing so.
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def handle(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, handle)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _is_broken_import(error: BaseException | None) -> bool:
    """Whether an import failed: compiled modules (NumPy's) turn a Ctrl-C during their import into an ImportError."""
    while error is not None and not isinstance(error, ImportError):
        error = error.__cause__ or error.__context__
    return error is not None


def _run(args: Sequence[str]) -> None:
    """Run a plain command line at once, and any other through Typer."""
    if args == ["--version"]:
        print_version()
        return
    from glm4.cli import console
    from glm4.cli.parameters import plain_arguments

    console.prepare_streams()
    if "_GLM4_COMPLETE" in os.environ:  # the shell asks for completions
        from glm4.cli import typer_app

        typer_app.complete(args)
        return
    if args and args[0] in COMMANDS:
        _, function = COMMANDS[args[0]].load(args[0])
        arguments = plain_arguments(function, args[1:])
        if arguments is not None:
            function(**arguments)
            sys.stdout.flush()
            return
    from glm4.cli import typer_app

    typer_app.run(args)
    sys.stdout.flush()


def _exit_code(error: BaseException, args: Sequence[str], *, debug: bool) -> int | None:
    """The exit code for what ended a command, its message printed; None asks for a traceback."""
    from glm4.cli import console
    from glm4.cli.parameters import Exit, UsageError

    program = f"glm4 {args[0]}" if args and args[0] in COMMANDS else "glm4"
    if isinstance(error, Exit):
        return console.flush_quietly(error.code)
    if isinstance(error, UsageError):
        return console.usage_error(f"invalid value: {error}", program)
    if isinstance(error, BrokenPipeError):
        console.silence_stdout()  # the reader has what it wanted (`| head -1`)
        return 0
    if isinstance(error, KeyboardInterrupt):
        console.error("interrupted")
        return console.EXIT_INTERRUPTED
    code = None
    if "typer" in sys.modules:  # otherwise it cannot be one of Typer's exceptions
        from glm4.cli import typer_app

        code = typer_app.exit_code(error, program)
    return console.failure(error) if code is None and not debug else code


def _take_debug(args: list[str]) -> tuple[list[str], bool]:
    """Accept `--debug` anywhere before `--`, so that it can be appended to a command that just failed."""
    end = args.index("--") if "--" in args else len(args)
    debug = "--debug" in args[:end] or os.environ.get("GLM4_DEBUG", "") not in ("", "0")
    return [arg for i, arg in enumerate(args) if i >= end or arg != "--debug"], debug

"""The `glm4` command: one file per command, found through the table in `commands.py`.

`glm4 --help` reads the table only. A command's module is imported when that command runs; it holds a function named
after the command (parameters annotated with an `Option` or `Argument` of `glm4.cli.parameters`; the docstring is its
help) and a string `EXAMPLES` (one example per line), shown at the end of its help.

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

from glm4.cli.commands import COMMANDS, before_separator, print_version


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
            # Compiled modules (NumPy's) turn a Ctrl-C during import into an ImportError.
            code = _exit_code(KeyboardInterrupt() if interrupts else error, args, debug=debug)
            if code is None:
                raise
            return code
    return 0


@contextlib.contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """Yields a list that records every Ctrl-C, which still raises KeyboardInterrupt as usual."""
    noted: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    # Other threads cannot set a handler, and a process told to ignore Ctrl-C keeps ignoring it.
    usual = threading.current_thread() is threading.main_thread()
    usual = usual and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual:
        signal.signal(signal.SIGINT, handle)
    try:
        yield noted
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(args: list[str]) -> None:
    if args == ["--version"]:
        print_version()
        return
    from glm4.cli import console
    from glm4.cli.parser import read

    console.prepare_streams()
    name = args[0] if args else "--help"
    if name in COMMANDS and not {"-h", "--help"} & set(before_separator(args)):
        _, function = COMMANDS[name].load(name)
        function(**read(function, args[1:]))
    elif name in COMMANDS or name in ("-h", "--help"):
        from glm4.cli.help_texts import command_help, program_help

        sys.stdout.write(command_help(name) if name in COMMANDS else program_help())
    else:
        from glm4.cli.mistakes import unknown

        raise unknown(name, ["--version"], COMMANDS)
    sys.stdout.flush()


def _exit_code(error: BaseException, args: Sequence[str], *, debug: bool) -> int | None:
    """The exit code for what ended a command, its message printed; None asks for a traceback."""
    from glm4.cli import console
    from glm4.cli.parameters import Exit, UsageError

    if isinstance(error, Exit):
        return console.flush_quietly(error.code)
    if isinstance(error, UsageError):
        return console.usage_error(str(error), f"glm4 {args[0]}" if args and args[0] in COMMANDS else "glm4")
    if isinstance(error, BrokenPipeError):
        console.silence_stdout()  # the reader has what it needs (`| head -1`)
        return 0
    if isinstance(error, KeyboardInterrupt):
        console.error("interrupted")
        return console.EXIT_INTERRUPTED
    return None if debug else console.failure(error)


def _take_debug(args: list[str]) -> tuple[list[str], bool]:
    """Accept `--debug` anywhere before `--`, so that it can be appended to a command that just failed."""
    words = before_separator(args)
    debug = "--debug" in words or os.environ.get("GLM4_DEBUG", "") not in ("", "0")
    return [word for word in words if word != "--debug"] + args[len(words) :], debug

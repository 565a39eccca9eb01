"""What all commands share at the terminal: consoles, errors, exit codes, progress.

Standard output is for answers only; progress, notices and errors go to standard error.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from glm4.errors import Glm4Error, InvalidRequestError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
STREAM = "-"  # as an argument: standard input, or standard output

# Text from models and files may contain any character; these could control the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

ProgressCallback = Callable[[str, float, float], None]
"""`report(stage, done, total)`: the callback through which LLM, the hub and the batch runner report progress."""


@cache
def stdout() -> Console:
    """The console for answers."""
    return _console(stderr=False)


@cache
def stderr() -> Console:
    """The console for progress, notices and errors."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:
            """Leave a closed pipe to `main`; Rich would exit with a failure."""
            raise BrokenPipeError

    return PipeConsole(stderr=stderr, markup=False, emoji=False, highlight=False)


def is_terminal(stream: TextIO) -> bool:
    """Whether Rich would treat a stream as a terminal, without importing Rich, which takes a tenth of startup."""
    forced = any(name in os.environ for name in ("FORCE_COLOR", "TTY_COMPATIBLE"))
    if not forced and not stream.isatty():
        return False
    return (stderr() if stream is sys.stderr else stdout()).is_terminal


def notice(text: str) -> None:
    """Print a dim line on standard error. `text` is never parsed as markup; control characters are removed."""
    if not is_terminal(sys.stderr):
        print(printable(text), file=sys.stderr)
        return
    stderr().print(printable(text), style="dim")


def warning(text: str) -> None:
    """Print `warning: …` on standard error."""
    _labelled("warning", "yellow", text)


def error(text: str, hint: str | None = None) -> None:
    """Print `error: …` on standard error, with an optional line on what to do about it."""
    _labelled("error", "bold red", text)
    if hint:
        notice(f"hint: {hint}")


def _labelled(label: str, style: str, text: str) -> None:
    if not is_terminal(sys.stderr):
        print(f"{label}: {printable(text)}", file=sys.stderr)
        return
    from rich.text import Text

    stderr().print(Text.assemble((f"{label}:", style), " ", printable(text)))


def printable(text: str) -> str:
    """Text without control characters, safe to send to a terminal. Tabs and newlines are kept."""
    return _CONTROL.sub("", text)


def print_json(value: object) -> None:
    """Print one JSON document on standard output, for programs."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


def failure(exc: BaseException) -> int:
    """Print any exception as one `error:` message; returns the exit code for it."""
    if isinstance(exc, Glm4Error):
        error(str(exc))
        return exc.exit_code
    if isinstance(exc, MemoryError) or (isinstance(exc, OSError) and exc.errno == errno.ENOMEM):
        error("out of memory", "take a smaller --dtype (int8, int4), --context or model; `glm4 plan` shows what fits")
        return EXIT_FAILURE
    if isinstance(exc, FileNotFoundError):
        error(_os_error(exc))
        return EXIT_USAGE
    if isinstance(exc, OSError):
        error(_os_error(exc))
        return EXIT_FAILURE
    error(f"internal error: {type(exc).__name__}: {exc}", "run it again with --debug and report the traceback")
    return EXIT_FAILURE


def _os_error(exc: OSError) -> str:
    reason = exc.strerror or str(exc) or type(exc).__name__
    return f"{exc.filename}: {reason}" if exc.filename else reason


def usage_error(message: str, program: str) -> int:
    """Print a usage error of `program` (such as `glm4 chat`); returns the exit code."""
    message = message.strip()
    error(message[:1].lower() + message[1:].rstrip("."), f"`{program} --help` shows the options")
    return EXIT_USAGE


def prepare_streams() -> None:
    """Make the three standard streams usable: UTF-8 regardless of the locale, and open even if the caller closed them.

    Invalid UTF-8 becomes a replacement character, except in piped input (`read_stdin`).
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - open as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


def clean_text(text: str) -> str:
    """Valid Unicode from a command-line argument: undecodable bytes (kept by Python as surrogates) are replaced."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def piped_stdin() -> str | None:
    """All of standard input when it is a pipe or a file, None at a terminal; errors as `read_stdin`."""
    if sys.stdin.closed or sys.stdin.isatty():
        return None
    with contextlib.suppress(OSError, ValueError):  # not every stream can be polled
        if not select.select([sys.stdin], [], [], 2.0)[0]:
            notice("waiting for piped input; `< /dev/null` says there is none")
    return read_stdin()


def read_stdin() -> str:
    """All of standard input, in an encoding that `system.text_encoding` reads.

    Raises:
        InvalidRequestError: it is not text.
    """
    from glm4.system.text_encoding import TextEncodingError, decode_text

    try:
        text = decode_text(sys.stdin.buffer.read())
    except TextEncodingError as error:
        raise InvalidRequestError(f"standard input {error}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def silence_stdout() -> None:
    """Discard what is still buffered for a closed pipe, so the interpreter exits without a message."""
    with contextlib.suppress(OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)


def flush_quietly(code: int) -> int:
    """Flush standard output before exiting with `code`; a closed pipe is not an error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()
    return code


def human_bytes(count: float) -> str:
    """`491.4 MB`: decimal units, as used for downloads and disks."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_duration(seconds: float) -> str:
    """`1:02:03` or `2:03`; for ETAs."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextlib.contextmanager
def progress() -> Iterator[ProgressCallback]:
    """Progress of one long operation on standard error, for as long as the `with` block runs.

    Yields `report(stage, done, total)`. Each new stage gets its own bar; totals of a megabyte or more are shown as
    bytes with a speed, smaller ones as counts, that of 1 as percent; a total of 0 means "unknown". Without a terminal,
    a plain line appears every few seconds instead. The bars disappear when the block ends.
    """
    if not is_terminal(sys.stderr):
        yield PlainProgress()
        return
    bars = _bars()
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: float, total: float) -> None:
        if stage not in tasks:
            for earlier in tasks.values():
                bars.update(earlier, visible=False)
            tasks[stage] = bars.add_task(stage, total=total or None, amount="")
        bars.update(tasks[stage], completed=done, total=total or None, amount=amount(done, total))

    with bars:
        yield report


def _bars() -> Progress:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeRemainingColumn(compact=True),
        console=stderr(),
        transient=True,
    )


def amount(done: float, total: float) -> str:
    """How far something is, as `progress` shows it."""
    if max(done, total) >= 1e6:
        return human_bytes(done) + (f" of {human_bytes(total)}" if total else "")
    if total == 1:
        return f"{done:.0%}"
    return f"{done:g}/{total:g}" if total else f"{done:g}"


class PlainProgress:
    """Progress as occasional lines, for log files: quick stages print nothing."""

    interval = 5.0

    def __init__(self) -> None:
        self._stage = ""
        self._next = 0.0

    def __call__(self, stage: str, done: float, total: float) -> None:
        """As what `progress` yields."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._next = stage, now + self.interval
        elif now >= self._next:
            self._next = now + self.interval
            share = f" ({100 * done / total:.0f}%)" if total > 1 else ""
            notice(f"{stage}: {amount(done, total)}{share}")

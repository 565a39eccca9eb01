"""The program inside the sandbox that runs a model's code; one process per conversation.

It has the standard library, imports nothing of glm4 and runs in an environment of its own. Commands come on descriptor
0 and answers go to descriptor 1, both of which it moves out of the way first: whatever code prints, from Python, C or a
child process, goes to descriptor 2 and cannot look like an answer. Code that writes to the moved descriptor on purpose
can; therefore `interpreter.py` trusts no answer.

A message: two big-endian uint32 (bytes of JSON, bytes of a picture), JSON, picture.
    to here     {"call": 3, "code": "…"}
    from here   {"kind": "ready"}
                {"kind": "figure", "call": 3, "alt": "…"} and a PNG
                {"kind": "done", "call": 3, "error": a traceback or null, "left_out": figures that were not sent}
"""

from __future__ import annotations

import ast
import builtins
import importlib.abc
import importlib.util
import io
import json
import linecache
import os
import re
import shutil
import signal
import struct
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

DATA = "/mnt/data"
MOST_FIGURES = 8
MOST_PICTURE_NBYTES = 5_000_000
MOST_PIXELS = 4096
_DPI = 100
_MOST_ERROR_CHARS = 20_000
_MOST_ALT_CHARS = 500
_HEADER = struct.Struct(">II")
_PNG_SIZE = struct.Struct(">II")
_FENCE = re.compile(r"^```[^\n`]*\n(.*?)(?:^```[^\n`]*$|\Z)", re.MULTILINE | re.DOTALL)
_TABLES = {"display.width": 160, "display.max_columns": 30, "display.unicode.east_asian_width": True}


class Worker:
    """Runs code in one namespace."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._call = 0
        self._figures = self._left_out = 0
        self._running = self._sending = self._interrupted = False
        self._streams = (_Stream(1), _Stream(2))
        self._main = types.ModuleType("__main__")
        self._main.__dict__.update(display=self.show)

    def serve(self) -> None:
        """Run what comes until the other side closes."""
        sys.modules["__main__"] = self._main  # so that pickle and multiprocessing find what code defines
        sys.meta_path.insert(0, _AfterImport({"matplotlib.pyplot": self._adapt_pyplot, "pandas": _adapt_pandas}))
        signal.signal(signal.SIGINT, self._on_interrupt)
        self._send({"kind": "ready"})
        while (command := self._receive()) is not None:
            self._call, self._figures, self._left_out = command["call"], 0, 0
            error = self._guarded(command["code"])
            if os.getpid() != self._pid:  # a child that code forked and let run on to here
                os._exit(0)
            self._send({"kind": "done", "call": self._call, "error": error, "left_out": self._left_out})

    def show(self, value: object) -> None:
        """Show a value as a notebook does: a picture, or its repr."""
        if value is None:
            return
        self._main.__dict__["_"] = value
        picture = getattr(type(value), "_repr_png_", None)
        if picture is not None and isinstance(data := picture(value), bytes):
            self._send_figure(data, f"picture: {type(value).__name__}")
        elif not _is_drawing(value):
            print(repr(value))

    def show_figures(self, *_args: object, **_options: object) -> None:
        """Send every open figure and close it, as `plt.show()` does in a notebook."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None:
            return
        try:
            for number in pyplot.get_fignums():
                figure = pyplot.figure(number)
                if len(figure.get_children()) > 1:  # more than its background
                    self._send_figure(_png(figure), _alt(figure))
        finally:
            pyplot.close("all")

    def _guarded(self, code: str) -> str | None:
        """Run code; returns the text of what it raised. Nothing it does ends the worker, except on purpose."""
        # Code may have replaced any of these.
        signal.signal(signal.SIGINT, self._on_interrupt)
        sys.stdout, sys.stderr = self._streams
        self._interrupted, self._running = False, True
        try:
            self._run(code)
            self.show_figures()
            self._running = False
            return None
        except BaseException as error:
            self._running = False
            self._close_figures()
            if isinstance(error, SystemExit) and not error.code:
                return None
            return _traceback(error)
        finally:
            self._running = False
            for stream in self._streams:
                try:
                    stream.flush()
                except (OSError, ValueError):  # code closed it
                    self._streams = (_Stream(1), _Stream(2))

    def _run(self, code: str) -> None:
        name = f"<cell {self._call}>"
        tree, code = _parse(code, name)
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr) and not code.rstrip().endswith(";"):
            last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
        namespace = self._main.__dict__
        exec(compile(tree, name, "exec", dont_inherit=True), namespace)  # noqa: S102 - what the sandbox is for
        if last is not None:
            self.show(eval(compile(last, name, "eval", dont_inherit=True), namespace))  # noqa: S307

    def _close_figures(self) -> None:
        """After an error: what is half drawn is not shown, and the next attempt starts afresh."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None and hasattr(pyplot, "close"):
            pyplot.close("all")

    def _adapt_pyplot(self, pyplot: Any) -> None:
        def show(*arguments: object, **options: object) -> None:  # pyplot sets attributes of it
            self.show_figures(*arguments, **options)

        pyplot.show = show

    def _on_interrupt(self, _signal: int, _frame: object) -> None:
        """Interrupt code only: neither a message half sent nor the wait for the next command."""
        if self._running and self._sending:
            self._interrupted = True
        elif self._running:
            raise KeyboardInterrupt

    def _send_figure(self, data: bytes, alt: str) -> None:
        if self._figures >= MOST_FIGURES or not 0 < len(data) <= MOST_PICTURE_NBYTES:
            self._left_out += 1
            return
        self._figures += 1
        self._send({"kind": "figure", "call": self._call, "alt": alt[:_MOST_ALT_CHARS]}, data)

    def _send(self, message: dict[str, Any], data: bytes = b"") -> None:
        if os.getpid() != self._pid:
            return
        text = json.dumps(message).encode()
        rest = memoryview(_HEADER.pack(len(text), len(data)) + text + data)
        self._sending = True
        try:
            with self._lock:
                while rest:
                    rest = rest[os.write(self._answers, rest) :]
        finally:
            self._sending = False
        if self._running and self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt

    def _receive(self) -> dict[str, Any] | None:
        header = self._read(_HEADER.size)
        if header is None:
            return None
        length, _ = _HEADER.unpack(header)
        text = self._read(length)
        return None if text is None else json.loads(text)

    def _read(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            part = os.read(self._commands, count - len(data))
            if not part:
                return None
            data += part
        return data


class _Stream(io.TextIOWrapper):
    """A standard stream whose lines, and pieces of lines now and then, are seen at once."""

    _SECONDS = 0.1

    def __init__(self, descriptor: int) -> None:
        binary = open(descriptor, "wb", closefd=False)  # noqa: SIM115 - as long as the process
        super().__init__(binary, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        self._seen = 0.0

    def write(self, text: str) -> int:
        """Write, and pass it on if nothing was for a while."""
        count = super().write(text)
        now = time.monotonic()
        if now - self._seen > self._SECONDS:
            self._seen = now
            self.flush()
        return count


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function with a module when it is imported for the first time."""

    def __init__(self, actions: dict[str, Callable[[Any], None]]) -> None:
        self._actions, self._searching = actions, False

    def find_spec(self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None) -> Any:
        action = self._actions.get(name)
        if action is None or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._searching = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            execute(module)
            action(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _adapt_pandas(pandas: Any) -> None:
    """Tables as text: wider than a terminal's, with Chinese characters counted as two columns."""
    for option, value in _TABLES.items():
        pandas.set_option(option, value)


def _parse(code: str, name: str) -> tuple[ast.Module, str]:
    """The tree of code, and its text as parsed: without the Markdown fences and notebook lines that models write.

    Raises:
        SyntaxError: it is not Python.
    """
    try:
        return ast.parse(code, name), code
    except SyntaxError as error:
        blocks = _FENCE.findall(code)
        plain = "\n".join(blocks) if blocks else code
        plain = re.sub(r"(?m)^%matplotlib\b.*$", "", plain)
        if plain != code:
            return ast.parse(plain, name), plain
        if re.search(r"(?m)^\s*[!%]", code):
            error.msg = f"{error.msg} (this is plain Python: no lines with ! or %)"
        raise


_MODULES = (
    "This session has numpy, pandas, matplotlib, openpyxl and the standard library of Python, and nothing else can be"
    " installed. Write the code with these.\n"
)


def _traceback(error: BaseException) -> str:
    """What code raised, with the frames of code itself: neither ours nor those of libraries."""
    try:
        report = traceback.TracebackException.from_exception(error)
        _keep_frames_of_code(report, set())
        text = "".join(report.format())
        if isinstance(error, ModuleNotFoundError):
            text += _MODULES
    except Exception:  # an exception class of the code itself can raise anywhere
        text = f"{type(error).__name__}\n"
    if len(text) > _MOST_ERROR_CHARS:
        half = _MOST_ERROR_CHARS // 2
        text = f"{text[:half]}\n…\n{text[-half:]}"
    return text


def _keep_frames_of_code(report: traceback.TracebackException | None, seen: set[int]) -> None:
    if report is None or id(report) in seen:
        return
    seen.add(id(report))
    kept = [frame for frame in report.stack if frame.filename.startswith(("<cell ", f"{DATA}/"))]
    report.stack = traceback.StackSummary.from_list(kept)
    for inner in (report.__cause__, report.__context__, *(getattr(report, "exceptions", None) or ())):
        _keep_frames_of_code(inner, seen)


def _is_drawing(value: object) -> bool:
    """Whether it is a part of a figure, or a list of such: figures are sent anyway, and names of parts say nothing."""
    if type(value) in (list, tuple) and value:
        return all(_is_drawing(part) for part in value[:10])  # type: ignore[index]
    return type(value).__module__.partition(".")[0] == "matplotlib"


def _png(figure: Any) -> bytes:
    """A figure as PNG within the limits; empty if that cannot be."""
    width, height = figure.get_size_inches()
    dpi = min(_DPI, MOST_PIXELS / max(width, height))
    failure: Exception | None = None
    for factor, box in ((1, "tight"), (1, None), (0.5, None), (0.25, None)):
        buffer = io.BytesIO()
        try:
            figure.savefig(buffer, format="png", dpi=dpi * factor, bbox_inches=box)
        except Exception as error:  # a text far outside makes the tight box giant, which fails in many ways
            failure = error
            continue
        data = buffer.getvalue()
        if len(data) <= MOST_PICTURE_NBYTES and max(_PNG_SIZE.unpack(data[16:24])) <= MOST_PIXELS:
            return data
    if failure is not None:
        raise failure
    return b""


def _alt(figure: Any) -> str:
    """What a figure shows, by its titles and the labels of its axes."""
    heading = getattr(figure, "_suptitle", None)
    parts = [heading.get_text() if heading is not None else ""]
    for axes in figure.axes:
        labels = [f"{name}: {label}" for name, label in (("x", axes.get_xlabel()), ("y", axes.get_ylabel())) if label]
        parts += [axes.get_title(), *labels]
    return "; ".join(" ".join(part.split()) for part in parts if part.strip())


def _no_input(*_args: object) -> NoReturn:
    raise RuntimeError("input() does not work here, because nobody can answer; assign the value in the code instead")


def main() -> None:
    """Move the descriptors, prepare the interpreter, serve."""
    commands, answers = os.dup(0), os.dup(1)  # not inherited by programs that code starts
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    worker = Worker(commands, answers)
    builtins.input = _no_input
    sys.argv, sys.dont_write_bytecode = [""], True
    sys.path.insert(0, DATA)
    fonts = os.environ.get("MPLCONFIGDIR")
    if fonts:  # matplotlib wants to write there; the environment is read-only
        shutil.copytree(os.path.join(sys.prefix, "matplotlib"), fonts, dirs_exist_ok=True)  # noqa: PTH118
    worker.serve()


if __name__ == "__main__":
    main()

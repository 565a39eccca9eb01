"""`PythonTool`: a model runs Python, with numpy, pandas and matplotlib, in a sandbox that its conversation keeps.

Code never runs outside the sandbox; without one there is no tool. What the sandbox does not cover is listed in
`glm4.sandbox.launch`. Not covered here: files that the tool offers contain what code wrote, so a document, a web page
or a spreadsheet among them can be as hostile as any download; the model reads output and file names, which may try to
instruct it.
"""

from __future__ import annotations

import json
import tempfile
import threading
from pathlib import Path

from glm4.agent.files import FileStore
from glm4.agent.tool import Function, Invocation, Observation, Tool, ToolContext, ToolResult
from glm4.agent.tools.python.data_folder import DataFolder, safe_name
from glm4.agent.tools.python.environment import INSTALL, packages
from glm4.agent.tools.python.interpreter import DATA, MOST_OUTPUT_NBYTES, Interpreter, Outcome
from glm4.agent.tools.python.output_text import OutputText
from glm4.errors import InvalidRequestError, SandboxUnavailableError
from glm4.sandbox.command import give_to_sandbox
from glm4.sandbox.launch import unavailable
from glm4.sandbox.limits import Limits

_DESCRIPTION = (
    "Run Python in a stateful session, like a notebook: variables stay, the value of the last expression is shown, and "
    "matplotlib figures are shown to the user. numpy, pandas, matplotlib and openpyxl are there. Files in /mnt/data "
    "persist, and new ones there are offered to the user. A call is stopped after 60 seconds. There is no internet."
)
_PARAMETERS = {
    "type": "object",
    "properties": {"code": {"type": "string", "description": "Python source"}},
    "required": ["code"],
    "additionalProperties": False,
}
_MOST_CODE_CHARS = 200_000
_PATIENCE = 5.0
_LOST = f"a new interpreter takes over: variables and imports are lost, files in {DATA} are kept"


def lacks() -> list[str]:
    """Why there is no python tool here, each reason with what to do about it; empty if there is one."""
    reasons = []
    if not packages():
        environment = "environment with numpy, pandas and matplotlib"
        reasons.append(f"the python tool has no {environment} for this Python, or an old one; {INSTALL}")
    if (reason := unavailable()) is not None:
        reasons.append(f"the python tool runs code only in a sandbox: {reason}")
    return reasons


class PythonTool(Tool):
    """The python tool of one conversation.

    Args:
        folder: becomes `/mnt/data`; made if missing, and kept. By default a temporary one that ends with the tool.
        seconds: a call may run before it is interrupted.
        limits: of the sandbox; `disk_nbytes` is the quota of `/mnt/data`.
        output_chars: of what code prints, for the model; the middle is left out.

    Attributes:
        seconds: see there.

    Raises:
        SandboxUnavailableError: it cannot run here; says what to install.
    """

    name = "python"
    builtin = "python"
    functions = (Function("python", _DESCRIPTION, _PARAMETERS),)

    def __init__(
        self,
        folder: Path | None = None,
        *,
        seconds: float = 60.0,
        limits: Limits | None = None,
        output_chars: int = 12_000,
    ) -> None:
        if reasons := lacks():
            raise SandboxUnavailableError(". ".join(reasons))
        self._temporary = tempfile.TemporaryDirectory(prefix="glm4-python-") if folder is None else None
        path = Path(self._temporary.name) / "data" if self._temporary is not None else folder
        assert path is not None  # noqa: S101
        path.mkdir(parents=True, exist_ok=True)
        give_to_sandbox(path)
        limits = limits or Limits()
        self._data = DataFolder(path, limits.disk_nbytes)
        self._interpreter = Interpreter(path, limits)
        self.seconds, self._output_chars = seconds, output_chars
        self._figures = 0
        self._lock = threading.Lock()  # of the folder: `close` may come from another thread
        self.timeout = seconds + 30.0  # starting the interpreter and ending one that does not listen

    def add_file(self, name: str, data: bytes) -> str:
        """Put a user's file into `/mnt/data`; returns its path there, which may differ in the name."""
        return f"{DATA}/{self._data.add(name, data)}"

    def about(self, invocation: Invocation) -> str:
        """See `Tool.about`."""
        return f"run Python: {_code(invocation).strip()}"

    def run(self, invocation: Invocation, context: ToolContext) -> ToolResult:
        """See `Tool.run`."""
        code = _code(invocation)
        if len(code) > _MOST_CODE_CHARS:
            raise InvalidRequestError(f"the code has more than {_MOST_CODE_CHARS:,} characters")
        with self._lock:
            return self._run(code, context)

    def _run(self, code: str, context: ToolContext) -> ToolResult:
        text = OutputText(self._output_chars)

        def output(data: bytes, *, final: bool = False) -> None:
            if shown := text.add(data, final=final):
                context.output(shown)

        left = context.left()
        patience = min(_PATIENCE, left / 3)
        seconds = min(self.seconds, left - patience)
        outcome = self._interpreter.run(
            code, seconds=seconds, patience=patience, cancelled=context.cancelled, output=output
        )
        output(b"", final=True)
        removed = outcome.overfull and self._data.make_room()
        if outcome.error is not None:
            context.output(outcome.error, "error")
        notes = [
            *_endings(outcome, seconds, removed),
            *self._show_figures(outcome, context),
            *self._show_files(context),
        ]
        for note in notes:
            context.output(f"{note}\n", "log")
        parts = [text.for_model(), (outcome.error or "").strip("\n"), *(f"[{note}]" for note in notes)]
        answer = "\n".join(part for part in parts if part) or "[no output]"
        # GLM-4's own tool put no metadata behind the role.
        return ToolResult((Observation(answer),), failed=any((outcome.error, outcome.stopped, outcome.lost)))

    def close(self) -> None:
        """See `Tool.close`."""
        self._interpreter.close()
        with self._lock:
            if self._temporary is not None:
                self._data.empty()
                self._temporary.cleanup()
            self._data.close()

    def _show_figures(self, outcome: Outcome, context: ToolContext) -> list[str]:
        notes: list[str] = []
        for figure in outcome.figures:
            self._figures += 1
            note = _offer(f"figure-{self._figures}.png", figure.data, figure.alt or None, context)
            notes.append(
                note or f"figure {self._figures} is shown to the user" + (f": {figure.alt}" if figure.alt else "")
            )
        if outcome.left_out:
            notes.append(f"{outcome.left_out} more figures are not shown: at most 8 of 5 MB each per call")
        return notes

    def _show_files(self, context: ToolContext) -> list[str]:
        changed, left_out = self._data.changes()
        notes: list[str] = []
        for path, data in changed:
            note = _offer(safe_name(path), data, None, context)
            notes.append(note or f"{DATA}/{path} ({len(data):,} B) is offered to the user")
        if left_out:
            notes.append(f"{left_out} more files in {DATA} are not offered: too many, or too large")
        return notes


def _endings(outcome: Outcome, seconds: float, removed: bool) -> list[str]:
    """How the call ended, if not by itself."""
    reasons = {
        "time": f"stopped after {seconds:.3g} seconds, the most that a call may take",
        "cancelled": "stopped before it was done, as the turn was ended",
        "output": f"stopped, as it printed more than {MOST_OUTPUT_NBYTES >> 20} MB",
    }
    notes = [] if outcome.stopped is None else [reasons[outcome.stopped]]
    if outcome.lost is not None:
        notes.append(f"the code {outcome.lost}; {_LOST}")
        notes += [f"what this call wrote to {DATA} was removed, as it did not fit"] * removed
    elif notes:
        notes[0] += "; variables are kept"
    return notes


def _offer(name: str, data: bytes, alt: str | None, context: ToolContext) -> str | None:
    """Show a file to the user; returns why that cannot be."""
    store: FileStore | None = context.files
    if store is None:
        return f"{name} cannot be shown here: this conversation keeps no files"
    try:
        context.file(store.put(name, data, alt=alt))
    except InvalidRequestError as error:
        return f"{name} cannot be shown: {error}"
    return None


def _code(invocation: Invocation) -> str:
    """The code of a call: raw, or in a JSON object."""
    if not invocation.raw:
        try:
            arguments = json.loads(invocation.arguments)
        except ValueError:
            return invocation.arguments
        if isinstance(arguments, dict) and isinstance(arguments.get("code"), str):
            return str(arguments["code"])
    return invocation.arguments

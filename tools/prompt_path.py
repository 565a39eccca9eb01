"""How far a prompt travels: the rooms that hold it between the edge and the forward pass, and how often it is parsed.

    python tools/prompt_path.py cli     # glm4 chat "…"
    python tools/prompt_path.py http    # POST /v1/chat/completions

Runs a real request on a tiny random checkpoint under a profiler. Whenever a function of the package is called with the
prompt (its text, a message with it, its token ids) among its arguments, that is a stay in the caller's room and one in
the callee's. A room is a folder of the package or a file at its top; consecutive stays in one room count once. Once the
engine has the prompt, only its thread counts. The last stay is the model's.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "src")]

MARKER = "zebra quagga okapi 4711"
PACKAGE = str(ROOT / "src" / "glm4") + "/"
_DEPTH = 5


def holds(value: Any, ids: tuple[int, ...], depth: int = _DEPTH) -> bool:
    """Whether a value is the prompt or plain data that contains it; live objects (engines, models) do not count."""
    if isinstance(value, (str, bytes)):
        return MARKER in value if isinstance(value, str) else MARKER.encode() in value
    if depth == 0:
        return False
    if isinstance(value, Mapping):
        return any(holds(one, ids, depth - 1) for one in list(value.values())[:40])
    if isinstance(value, (list, tuple)):
        if len(value) >= len(ids) and all(type(one) is int for one in value):
            return any(tuple(value[at : at + len(ids)]) == ids for at in range(len(value) - len(ids) + 1))
        return any(holds(one, ids, depth - 1) for one in value[:40])
    if type(value).__name__ == "ndarray":
        return holds(value.tolist(), ids, depth) if getattr(value, "ndim", 0) == 1 else False
    if hasattr(type(value), "__dataclass_fields__") and type(value).__module__.startswith("glm4."):
        return any(holds(getattr(value, name, None), ids, depth - 1) for name in type(value).__dataclass_fields__)
    return False


class Tracer:
    """Notes the rooms that the prompt stays in, up to the forward pass."""

    def __init__(self, ids: tuple[int, ...]) -> None:
        self.stays: list[str] = []
        self.parses = 0
        self._ids = ids
        self._done = False
        self._carrier = ""  # the engine's thread, once it has the prompt

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """A profile function; see `sys.setprofile`."""
        code = frame.f_code
        thread = threading.current_thread().name
        if self._carrier not in ("", thread):
            return
        if event != "call" or self._done or not code.co_filename.startswith(PACKAGE):
            return
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        arguments = [frame.f_locals.get(name) for name in names if name not in ("self", "cls")]
        if code.co_name in ("from_dict", "as_messages") and not isinstance(arguments[0], str):
            self.parses += code.co_name == "as_messages" and holds(arguments, self._ids)
        if not any(holds(value, self._ids) for value in arguments):
            return
        self._carrier = thread if thread == "glm4-engine" else ""
        caller = frame.f_back
        for one in (caller, frame):
            if one is not None and one.f_code.co_filename.startswith(PACKAGE):
                self._stay(one.f_code.co_filename.removeprefix(PACKAGE).split("/")[0].removesuffix(".py"))
        self._done = code.co_name == "forward"

    def _stay(self, name: str) -> None:
        if not self.stays or self.stays[-1] != name:
            self.stays.append(name)


def traced(ids: tuple[int, ...], work: Callable[[], Any]) -> Tracer:
    """Run `work`, on whatever threads, under a tracer."""
    tracer = Tracer(ids)
    threading.setprofile(tracer)
    sys.setprofile(tracer)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return tracer


def run(kind: str, folder: Path) -> Tracer:
    """One request, from the edge of the program."""
    from glm4.tokenizer import load_tokenizer

    ids = tuple(load_tokenizer(folder).encode(MARKER))
    if kind == "cli":
        from glm4.cli import main

        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return traced(ids, lambda: main(["chat", MARKER, "-m", str(folder), "--max-tokens", "1", "--plain"]))
    from live import config, serve

    body = {"model": "tiny", "messages": [{"role": "user", "content": MARKER}], "max_tokens": 1}

    def ask() -> None:
        with serve(config("tiny", source=str(folder))) as server, server.client() as client:
            client.post("/v1/chat/completions", json=body).raise_for_status()

    return traced(ids, ask)


def main() -> None:
    """Print the stays, one per line, and their number."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kind", choices=["cli", "http"])
    arguments = parser.parse_args()
    from tiny import write_folder

    sys.stdin = open("/dev/null")  # noqa: PTH123, SIM115 - the command must not wait for a pipe
    with tempfile.TemporaryDirectory() as temporary:
        tracer = run(arguments.kind, write_folder(Path(temporary)))
    for number, name in enumerate(tracer.stays, 1):
        print(f"{number:3}  {name}")
    print(f"{len(tracer.stays)} stays in {len(set(tracer.stays))} rooms; messages parsed {tracer.parses} times")


if __name__ == "__main__":
    main()

"""`glm4 ui`: the web page for one person, on this machine, in a browser."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from glm4.cli import options
from glm4.cli.agent_options import OwnAssistant
from glm4.cli.parameters import Argument, Option
from glm4.cli.serving_options import AccessOptions, LogLevel, LogOptions, MaxNumSeqs, ServedModels

if TYPE_CHECKING:
    import socket

    from glm4.hub.store import Progress
    from glm4.llm import LLM
    from glm4.server.config import ModelSpec, ServerConfig

EXAMPLES = """
glm4 ui
glm4 ui glm-4-9b-chat --dtype int4 --context 32768
glm4 ui --tools python,browser --search ddgs
glm4 ui --no-browser --port 8080
glm4 ui --no-save
glm4 ui --host 0.0.0.0 --api-key-file keys.txt
"""

_PORTS = range(8000, 8020)
"""Tried in order: what a browser keeps for a page, it keeps for its port."""
_SHUTDOWN_SECONDS = 2.0


@dataclass(frozen=True)
class OwnModels(ServedModels):
    """For one person, who has a few answers at once at most."""

    max_num_seqs: MaxNumSeqs = 4


@dataclass(frozen=True)
class OwnLog(LogOptions):
    """Who sits at this terminal need not see every request."""

    log_level: LogLevel = "warning"


def ui(
    first: Annotated[str | None, Argument(metavar="MODEL", help="Who answers; the same as a first -m.")] = None,
    *,
    models: OwnModels,
    engine: options.EngineOptions,
    access: AccessOptions,
    port: Annotated[
        int | None, Option(min=0, max=65535, metavar="N", help="Port; otherwise 8000, or the next one that is free.")
    ] = None,
    browser: Annotated[bool, Option("--browser", "--no-browser", help="Open the page in your browser.")] = True,
    log: OwnLog,
    assistant: OwnAssistant,
) -> None:
    """Open the web page: conversations with a model in your browser.

    Conversations are kept where `glm4 chat` keeps them, and those are there, too. Tools that are ready on this machine
    can be chosen in the page (see `glm4 tools`). The page opens at once and shows how far the model is. It ends with
    Ctrl-C, or with this terminal; what is being answered is kept as far as it is.

    Only this machine can reach it unless --host says otherwise, and then a key is needed: each key has conversations
    of its own. `glm4 serve --ui` has the same page, and limits for many.
    """
    specs = models.specs(first, engine)
    from glm4.server.config import ServerConfig

    settings = access.settings() | log.settings()
    config = ServerConfig(
        specs, port=port or 0, **settings, agent=assistant.config(), ui=True, shutdown_timeout=_SHUTDOWN_SECONDS
    )
    log.set_up()
    with claimed(config.agent.sessions) as claim:
        if claim.address is not None:
            _show_other(claim.address, browser=browser)
            return
        _run(config, claim, choose_port=port is None, browser=browser)


def _run(config: ServerConfig, claim: Claim, *, choose_port: bool, browser: bool) -> None:
    from glm4.cli.web_browser import has_browser, open_page
    from glm4.server.agent.state import AgentState
    from glm4.server.app import create_app
    from glm4.server.run import run
    from glm4.server.state import find_state

    loader = TerminalLoader()
    app = create_app(config, loader)
    listener = _bind(config, choose_port=choose_port)
    address = page_address(listener)
    claim.write(address)
    opens = browser and has_browser()
    _show(config, address, listener.getsockname()[1], opens=opens, wanted=browser)
    run(
        app, config, listener,
        on_listening=(lambda: open_page(address)) if opens else (lambda: None),
        on_stop=find_state(app, AgentState).turns.end_all, on_end=loader.close,
    )  # fmt: skip


def _bind(config: ServerConfig, *, choose_port: bool) -> socket.socket:
    from glm4.errors import InvalidRequestError
    from glm4.server.run import bind

    for port in _PORTS if choose_port else ():
        with suppress(InvalidRequestError):
            return bind(replace(config, port=port))
    return bind(config)  # any free one, or the one that was asked for; says what is wrong with the address


def page_address(listener: socket.socket) -> str:
    """Where this machine's browser finds the page."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}/ui" if ":" in host else f"http://{host}:{port}/ui"


def _show(config: ServerConfig, address: str, port: int, *, opens: bool, wanted: bool) -> None:
    from glm4.cli import console
    from glm4.cli.web_browser import forwarding

    _show_boldly(f"glm4 is at {address}")
    if wanted and not opens:
        console.notice("no browser can be opened from here; open that address in one")
        console.notice(f"on another machine, this brings it there: {forwarding(port)}")
    console.notice(f"tools: {', '.join(config.agent.tools) or 'none'} (`glm4 tools` shows what others need)")
    kept = config.agent.sessions
    console.notice(f"conversations are kept in {kept}" if kept else "conversations are not kept")
    console.notice("stop with Ctrl-C")


def _show_boldly(text: str) -> None:
    from glm4.cli import console

    if console.is_terminal(sys.stderr):
        console.stderr().print(text, style="bold", soft_wrap=True)
    else:
        print(text, file=sys.stderr)


def _show_other(address: str, *, browser: bool) -> None:
    from glm4.cli import console
    from glm4.cli.web_browser import has_browser

    _show_boldly(f"glm4 ui is running already: {address or 'it is starting'}")
    console.notice("stop it to start it with other options; --sessions FOLDER or --no-save start another one")
    if address and browser and has_browser():
        import webbrowser

        webbrowser.open(address)


class Claim:
    """A folder of conversations that this process has to itself, as far as `glm4 ui` goes, or another one has.

    Attributes:
        address: of the page of that other process, "" if it is not known yet; None: the folder is ours.
    """

    def __init__(self, file: int | None, address: str | None = None) -> None:
        self._file = file
        self.address = address

    def write(self, address: str) -> None:
        """Tell others where the page is."""
        if self._file is not None:
            os.truncate(self._file, 0)
            os.pwrite(self._file, address.encode(), 0)


@contextmanager
def claimed(folder: Path | None) -> Iterator[Claim]:
    """Claim a folder while the block runs. The system takes the claim back when the process ends, however it does."""
    if folder is None:
        yield Claim(None)
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.open(folder / "ui.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(file, 0)
        except BlockingIOError:
            yield Claim(None, os.pread(file, 200, 0).decode("ascii", "replace"))
            return
        except OSError:  # a file system without locks
            yield Claim(None)
            return
        yield Claim(file)
    finally:
        os.close(file)


class TerminalLoader:
    """Loads models with a bar at the terminal, and tells the server as well, which shows it in the page."""

    def __init__(self) -> None:
        self._bars = ExitStack()

    def __call__(self, spec: ModelSpec, report: Progress) -> LLM:
        """Load a model; called in a thread. See `LLM` for errors."""
        from glm4.cli import console
        from glm4.llm import LLM

        shown = self._bars.enter_context(console.progress())
        with self._bars:
            llm = LLM(spec.source, progress=_both(report, shown), **spec.options)
        console.notice(f"{spec.names[0]} is ready")
        return llm

    def close(self) -> None:
        """Take the bar away, even if a model is still being loaded: the terminal is somebody else's from now on."""
        with suppress(OSError):  # it is closed
            self._bars.close()


def _both(first: Progress, second: Progress) -> Callable[[str, float, float], None]:
    def report(stage: str, done: float, total: float) -> None:
        first(stage, done, total)
        second(stage, done, total)

    return report

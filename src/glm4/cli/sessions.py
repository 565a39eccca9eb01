"""`glm4 sessions`: saved conversations with the assistant: list, find, show, export, import, delete."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from glm4.cli.parameters import Argument, AsJson, Option, UsageError

if TYPE_CHECKING:
    from glm4.agent.file_store import FolderFileStore
    from glm4.agent.sessions import Session, SessionStore

EXAMPLES = """
glm4 sessions
glm4 sessions find "weather in Beijing"
glm4 sessions export 3f2a --format markdown > talk.md
glm4 sessions export 3f2a --format html > talk.html
glm4 sessions export 3f2a > talk.json
glm4 sessions import talk.json
glm4 sessions import conversations.json
glm4 sessions delete 3f2a
"""

ACTIONS = ("list", "find", "export", "import", "delete")


def sessions(
    action: Annotated[
        str, Argument(metavar="ACTION", help="list (the default), find TEXT, export ID, import FILE, or delete ID.")
    ] = "list",
    what: Annotated[
        str | None, Argument(metavar="WHAT", help="A text, a file, or an id; the beginning of an id is enough.")
    ] = None,
    *,
    folder: Annotated[
        Path | None, Option(metavar="FOLDER", help="Where they are: what `glm4 serve --sessions` was given.")
    ] = None,
    format: Annotated[
        str, Option(metavar="FORMAT", help="Of an export: json has everything, markdown and html are to read.")
    ] = "json",
    limit: Annotated[int, Option(min=1, max=10_000, metavar="N", help="How many to list.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List and move saved conversations.

    `glm4 chat --tools` saves its conversations, and `glm4 chat --resume ID` continues one. Those that clients had with
    `glm4 serve --sessions FOLDER` are in that folder. Import takes what export wrote, and OpenAI's conversations.json.
    """
    if action not in ACTIONS:
        raise UsageError(f"the action is one of {', '.join(ACTIONS)}, not {action!r}")
    if format not in ("json", "markdown", "html"):
        raise UsageError(f"--format is json, markdown or html, not {format!r}")
    if (what is None) != (action == "list"):
        raise UsageError(f"{action} takes {'nothing' if action == 'list' else 'WHAT: see `glm4 sessions --help`'}")
    store, files = open_sessions(folder)
    try:
        if action == "list":
            _list(store.sessions(limit=limit), as_json=as_json)
        elif action == "find":
            _find(store, str(what), limit, as_json=as_json)
        elif action == "import":
            _import(store, files, Path(str(what)))
        else:
            session = find_session(store, str(what))
            if action == "export":
                _export(store, files, session.id, format)
            else:
                for sha256 in store.delete(session.id):
                    files.delete(sha256)
    finally:
        store.close()


def open_sessions(folder: Path | None = None) -> tuple[SessionStore, FolderFileStore]:
    """The saved conversations and their files; `sessions` in glm4's own folder if no other is named.

    Raises:
        StoreError: they cannot be opened.
    """
    from glm4.agent.file_store import FolderFileStore
    from glm4.agent.sessions import SessionStore
    from glm4.hub.store import home

    place = folder or home() / "sessions"
    return SessionStore(place / "conversations.sqlite"), FolderFileStore(place / "files")


def find_session(store: SessionStore, beginning: str) -> Session:
    """The conversation whose id begins so.

    Raises:
        UsageError: there is none, or several.
    """
    found = [session for session in store.sessions(limit=100_000) if session.id.startswith(beginning)]
    if len(found) != 1 or not beginning:
        said = "no conversation" if not found else f"{len(found)} conversations"
        raise UsageError(f"{said} with an id that begins with {beginning!r}; `glm4 sessions` lists them")
    return found[0]


def _list(found: list[Session], *, as_json: bool) -> None:
    from glm4.cli import console

    if as_json:
        console.print_json([asdict(session) for session in found])
        return
    if not found:
        console.notice("there are no saved conversations")
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("id", "changed", "model", "title"):
        table.add_column(title, no_wrap=title != "title", header_style="dim")
    for session in found:
        table.add_row(session.id[:8], _when(session.updated), console.printable(session.model), _shown(session.title))
    console.stdout().print(table)


def _find(store: SessionStore, text: str, limit: int, *, as_json: bool) -> None:
    from glm4.cli import console

    found = store.search(text, limit=limit)
    if as_json:
        console.print_json([asdict(one) for one in found])
        return
    for one in found:
        console.stdout().print(
            f"{one.conversation[:8]}  {_shown(one.title)}\n    {_shown(one.excerpt)}", soft_wrap=True
        )
    if not found:
        console.notice("nothing was found")


def _import(store: SessionStore, files: FolderFileStore, path: Path) -> None:
    from glm4.agent.session_export import digests, from_document
    from glm4.agent.uploads import has_content
    from glm4.errors import InvalidRequestError
    from glm4.system.strict_json import finite_float, refuse_constant
    from glm4.system.text_encoding import TextEncodingError, read_text

    try:
        document = json.loads(read_text(path), parse_constant=refuse_constant, parse_float=finite_float)
    except (ValueError, RecursionError, TextEncodingError):
        raise UsageError(f"{path} is not an export of conversations: not valid JSON") from None
    documents = document if isinstance(document, list) else [document]
    failed: list[str] = []
    for index, one in enumerate(documents):
        try:
            sys.stdout.write(from_document(store, one, files=files) + "\n")
        except InvalidRequestError as error:
            for sha256 in digests(one):  # those that were kept before it failed
                if not has_content(store, sha256):
                    files.delete(sha256)
            title = one.get("title") if isinstance(one, dict) else None
            failed.append(f"number {index + 1}{f' ({_shown(title[:80])})' if isinstance(title, str) else ''}: {error}")
    if failed:
        listed = "\n  ".join(failed)
        raise UsageError(f"{len(failed)} of {len(documents)} conversations could not be imported:\n  {listed}")
    if not documents:
        raise UsageError(f"{path} has no conversations")


def _export(store: SessionStore, files: FolderFileStore, session: str, kind: str) -> None:
    from glm4.agent.session_export import as_document, as_markdown
    from glm4.cli import console

    if kind == "markdown":
        sys.stdout.write(console.printable(as_markdown(store, session)))
    elif kind == "html":
        from glm4.agent.session_html import as_html

        text = as_html(store.get(session), store.branch(session), store.files(session), files)
        sys.stdout.write(console.printable(text))
    else:
        console.print_json(as_document(store, session, files=files))


def _shown(text: str) -> str:
    from glm4.cli.console import printable

    return printable(" ".join(text.split()))


def _when(seconds: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")

"""Clicks that ten everyday tasks take on our page and on llama.cpp's, each done in a real browser.

    python benchmarks/page_tasks.py --llama-server build/bin/llama-server --llama-page tools/ui/dist

A click, a key and a choice in a menu count one; typing a text, and choosing files in the system's dialog, count
nothing. Every task begins on an open conversation, in a window of 1280 by 800, as the page is when it is opened for the
first time. The page of llama.cpp is built from its source package (`npm ci && npx vite build` in tools/ui).
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from playwright.sync_api import Locator, Page, sync_playwright

import harness
from programs import gguf_of

BROWSER = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


class Hand:
    """Does things on a page, and counts them."""

    def __init__(self, page: Page, folder: Path) -> None:
        self.page = page
        self.folder = folder
        self.count = 0

    def click(self, target: Locator) -> None:
        """A click, where the target has to be there."""
        target.click()
        self.count += 1

    def key(self, name: str) -> None:
        """A key."""
        self.page.keyboard.press(name)
        self.count += 1

    def button(self, name: str, *, last: bool = False) -> Locator:
        """A button by its name."""
        found = self.page.get_by_role("button", name=name)
        return found.last if last else found.first

    def item(self, name: str) -> Locator:
        """An entry of an open menu."""
        return self.page.get_by_role("menuitem", name=name).first

    def save(self, act: Callable[[], None]) -> None:
        """Something that ends with a download."""
        with self.page.expect_download():
            act()

    def accepting(self, act: Callable[[], None]) -> None:
        """Something that the browser's own question follows, which is answered with yes."""
        with self.page.expect_event("dialog") as asked:
            self.page.once("dialog", lambda dialog: dialog.accept())
            act()
        assert asked.value.message
        self.count += 1

    def choose(self, act: Callable[[], None]) -> None:
        """Something that opens the system's dialog, in which a document is chosen."""
        document = self.folder / "notes.txt"
        document.write_text("The meeting is at noon.")
        with self.page.expect_file_chooser() as chooser:
            act()
        chooser.value.set_files(document)


def _ask(hand: Hand, text: str) -> None:
    hand.page.locator("textarea:visible").last.fill(text)
    hand.key("Enter")


def _ours_ready(page: Page) -> None:
    page.get_by_role("button", name="Try again").last.wait_for()


def _ours_new(hand: Hand) -> None:
    hand.click(hand.button("New conversation"))
    _ask(hand, "Say hi.")
    _ours_ready(hand.page)


def _ours_again(hand: Hand) -> None:
    hand.click(hand.button("Try again", last=True))
    _ours_ready(hand.page)


def _ours_edit(hand: Hand) -> None:
    hand.click(hand.button("Edit"))
    hand.page.get_by_role("textbox", name="Edit the message").fill("Say ho.")
    hand.key("Enter")
    hand.page.get_by_text("Say ho.").first.wait_for()
    _ours_ready(hand.page)


def _ours_versions(hand: Hand) -> None:
    hand.click(hand.button("Previous version"))


def _ours_temperature(hand: Hand) -> None:
    hand.click(hand.button("Settings"))
    hand.page.get_by_label("Temperature").fill("0.2")
    hand.key("Escape")


def _ours_system(hand: Hand) -> None:
    hand.click(hand.button("Settings"))
    hand.page.get_by_role("textbox", name="System prompt").fill("Be brief.")
    hand.key("Escape")


def _ours_search(hand: Hand) -> None:
    hand.click(hand.page.get_by_role("searchbox", name="Search all messages"))
    hand.page.keyboard.type("say")
    hand.click(hand.page.get_by_role("navigation").get_by_role("button", name="Say hi.").first)


def _row_menu(hand: Hand) -> None:
    hand.page.get_by_role("navigation").get_by_text("Say hi.").first.hover()
    hand.click(hand.page.get_by_role("button", name="Actions for").first)


def _ours_export(hand: Hand) -> None:
    _row_menu(hand)
    hand.save(lambda: hand.click(hand.item("Export as Markdown")))


def _ours_delete(hand: Hand) -> None:
    _row_menu(hand)
    hand.click(hand.item("Delete"))
    hand.click(hand.page.get_by_role("dialog").get_by_role("button", name="Delete"))


def _theirs_ready(page: Page) -> None:
    page.get_by_label("Regenerate").last.wait_for()
    page.get_by_role("button", name="Stop").last.wait_for(state="detached")


def _theirs_new(hand: Hand) -> None:
    hand.click(hand.button("New chat"))
    hand.page.get_by_label("Regenerate").last.wait_for(state="detached")
    _ask(hand, "Say hi.")
    _theirs_ready(hand.page)


def _theirs_again(hand: Hand) -> None:
    hand.click(hand.page.get_by_label("Regenerate").last)
    _theirs_ready(hand.page)


def _theirs_edit(hand: Hand) -> None:
    hand.click(hand.page.get_by_label("Edit").first)
    hand.page.get_by_placeholder("Edit your message").fill("Say ho.")
    hand.key("Enter")
    hand.page.get_by_text("Say ho.").first.wait_for()
    _theirs_ready(hand.page)


def _theirs_settings(hand: Hand, section: str | None, field: str, value: str) -> None:
    hand.click(hand.page.get_by_label("Settings").last)
    if section is not None:
        hand.click(hand.button(section))
    hand.page.locator(field).first.fill(value)
    hand.click(hand.button("Save settings"))


def _theirs_attach(hand: Hand) -> None:
    hand.click(hand.button("Add files", last=True))
    hand.choose(lambda: hand.click(hand.item("Add files")))


def _theirs_search(hand: Hand) -> None:
    hand.click(hand.page.get_by_label("Search").last)
    hand.page.get_by_placeholder("Search conversations").fill("say")
    hand.click(hand.page.get_by_role("button", name="Say hi.").first)


def _theirs_menu(hand: Hand) -> None:
    expand = hand.page.get_by_label("Expand navigation").last
    if expand.is_visible():
        hand.click(expand)
    hand.page.get_by_text("Say hi.").first.hover()
    hand.click(hand.page.locator("button[aria-haspopup=menu]").first)


def _theirs_export(hand: Hand) -> None:
    _theirs_menu(hand)
    hand.save(lambda: hand.click(hand.item("Export")))


def _theirs_delete(hand: Hand) -> None:
    _theirs_menu(hand)
    hand.accepting(lambda: hand.click(hand.item("Delete")))


Task = Callable[[Hand], None]
TASKS: dict[str, tuple[Task, Task]] = {
    "ask in a new conversation": (_ours_new, _theirs_new),
    "have the answer again": (_ours_again, _theirs_again),
    "go back to the first answer": (
        _ours_versions,
        lambda hand: hand.click(hand.page.get_by_label("Previous").last),
    ),
    "change a question and ask it again": (_ours_edit, _theirs_edit),
    "add a document": (lambda hand: hand.choose(lambda: hand.click(hand.button("Add files"))), _theirs_attach),
    "set the temperature": (
        _ours_temperature,
        lambda hand: _theirs_settings(hand, "Sampling", "#temperature", "0.2"),
    ),
    "set a system prompt": (
        _ours_system,
        lambda hand: _theirs_settings(hand, None, "[role=dialog] textarea", "Be brief."),
    ),
    "find a conversation by its words": (_ours_search, _theirs_search),
    "save a conversation as a file": (_ours_export, _theirs_export),
    "delete a conversation": (_ours_delete, _theirs_delete),
}


def clicks(address: str, side: int, folder: Path) -> dict[str, int | None]:
    """Task → clicks it took; None where it could not be done."""
    counted: dict[str, int | None] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=BROWSER)
        for name, sides in TASKS.items():
            page = browser.new_context(viewport={"width": 1280, "height": 800}, locale="en-US").new_page()
            page.set_default_timeout(60_000)
            hand = Hand(page, folder)
            try:
                page.goto(address)
                page.locator("textarea:visible").last.wait_for()
                if side == 0:
                    page.get_by_role("button", name="New conversation").first.wait_for()
                _ask(hand, "Say hi.")
                (_ours_ready, _theirs_ready)[side](page)
                if name == "go back to the first answer":
                    TASKS["have the answer again"][side](hand)
                hand.count = 0
                sides[side](hand)
                counted[name] = hand.count
                harness.progress(f"{name}: {hand.count}")
            except Exception as error:
                print(f"{name}: {str(error).splitlines()[0]}", file=sys.stderr)
                counted[name] = None
            page.context.close()
        browser.close()
    return counted


@contextmanager
def _serving(command: list[str], ready: str) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                with urlopen(ready, timeout=5):
                    break
            except (URLError, OSError):
                time.sleep(0.3)
        yield
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--llama-server", type=Path, required=True)
    parser.add_argument("--llama-page", type=Path, required=True, help="the folder that vite built")
    parser.add_argument("--model", default="smoke", help="a starter model")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    port, other = _free_port(), _free_port()
    file = gguf_of(given.model)
    ours = [sys.executable, "-m", "glm4", "ui", given.model, "--port", str(port), "--no-browser", "--no-save"]
    theirs = [str(given.llama_server), "-m", str(file), "--path", str(given.llama_page), "--port", str(other), "-c",
              "4096", "--jinja"]  # fmt: skip
    counted = []
    sides = ((ours, f"http://127.0.0.1:{port}/", "ui", "ready"), (theirs, f"http://127.0.0.1:{other}/", "", "health"))
    for side, (command, address, path, ready) in enumerate(sides):
        with tempfile.TemporaryDirectory() as folder, _serving(command, address + ready):
            counted.append(clicks(address + path, side, Path(folder)))
    if given.json:
        print(json.dumps({name: {"glm4": counted[0][name], "llama.cpp": counted[1][name]} for name in TASKS}))
        return
    print("| task | glm4 | llama.cpp |\n|---|---|---|")
    for name in TASKS:
        print(f"| {name} | {counted[0][name] or '-'} | {counted[1][name] or '-'} |")
    print(f"| all | {sum(n or 0 for n in counted[0].values())} | {sum(n or 0 for n in counted[1].values())} |")


if __name__ == "__main__":
    main()

"""A real Chromium for the page's tests. What goes wrong unseen fails the test: errors in the console (reports of the
content policy are among them), uncaught exceptions, failed requests, dialogs, and any request to another origin.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
HANG_MS = int(os.environ.get("PAGE_HANG_MS", "90000"))
"""How long to wait for what must happen; no machine is so slow. Shorter where tests are written."""


def missing() -> str | None:
    """Why there is no browser here, or None."""
    if find_spec("playwright") is None:
        return "the package playwright is not installed"
    return None if CHROMIUM else "chromium is not installed"


def expect(what: Any) -> Any:
    """Playwright's assertions about a locator or page, which wait."""
    from playwright.sync_api import expect as of

    return of(what)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless Chromium."""
    from playwright.sync_api import expect as assertions
    from playwright.sync_api import sync_playwright

    assertions.set_options(timeout=HANG_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


class Watch:
    """A browser context (a person with cookies of their own), and what went wrong in it.

    Attributes:
        problems: one line each.
        requests: method and URL of all requests.
        dialogs: messages of alert, confirm and prompt; each is dismissed.
    """

    def __init__(self, browser: Browser, origin: str, **options: Any) -> None:
        self.origin = origin
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        self._expected: list[re.Pattern[str]] = []
        usual: dict[str, Any] = {"locale": "en-US", "viewport": {"width": 1280, "height": 800}}
        self.context: BrowserContext = browser.new_context(**usual | options)
        self.context.set_default_timeout(HANG_MS)
        self.context.on("request", self._request)
        self.context.on("requestfailed", self._failed)
        self.context.on("console", self._console)
        self.context.on("weberror", lambda error: self._note(f"uncaught: {error.error.stack or error.error}"))
        self.context.on("dialog", self._dialog)

    def expect(self, pattern: str) -> None:
        """Problems that match are what the test is about."""
        self._expected.append(re.compile(pattern, re.DOTALL))

    def page(self, path: str = "/ui") -> Page:
        """A new tab."""
        page = self.context.new_page()
        page.goto(self.origin + path)
        return page

    @property
    def unexpected(self) -> list[str]:
        """Problems that nobody expected."""
        return [one for one in self.problems if not any(each.search(one) for each in self._expected)]

    def check(self) -> None:
        """Fail with all of them."""
        assert not self.unexpected, "\n".join(self.unexpected)

    def until(self, page: Page, condition: Callable[[], object], what: str) -> None:
        """Wait for something that must happen, while events of the browser arrive."""
        deadline = time.monotonic() + HANG_MS / 1000
        while not condition():
            assert time.monotonic() < deadline, f"in vain: {what}"
            page.wait_for_timeout(20)

    def close(self) -> None:
        """Forget this person."""
        self.context.close()

    def _note(self, problem: str) -> None:
        self.problems.append(problem)

    def _request(self, request: Request) -> None:
        self.requests.append(f"{request.method} {request.url}")
        parts = urlsplit(request.url)
        if parts.scheme in ("http", "https", "ws", "wss") and f"{parts.scheme}://{parts.netloc}" != self.origin:
            self._note(f"request to another origin: {request.url}")

    def _failed(self, request: Request) -> None:
        # Aborted: by the page itself, or because it was left; what the policy blocks has a failure of its own.
        if request.failure != "net::ERR_ABORTED":
            self._note(f"failed: {request.method} {request.url}: {request.failure}")

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._note(f"console: {message.text} ({message.location.get('url', '')})")

    def _dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        self._note(f"{dialog.type}: {dialog.message}")
        dialog.dismiss()


AXE_RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")


def serious_findings(page: Page, *leave_out: str) -> list[str]:
    """What axe-core calls serious or critical, with the elements.

    Args:
        leave_out: selectors of what is not looked at.
    """
    source = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    page.evaluate(source)
    found = page.evaluate(
        """async ([tags, exclude]) => {
            const context = exclude.length ? {exclude} : document;
            const results = await axe.run(context, {runOnly: {type: "tag", values: tags}, resultTypes: ["violations"]});
            return results.violations.map((one) => [one.impact, one.id, one.help,
              one.nodes.slice(0, 4).map((node) => `${node.target} ${node.failureSummary}`)]);
        }""",
        [list(AXE_RULES), list(leave_out)],
    )
    return [json.dumps(one, ensure_ascii=False) for one in found if one[0] in ("serious", "critical")]


def sideways(page: Page) -> int:
    """Pixels by which the page can be scrolled sideways."""
    return int(page.evaluate("document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"))


def save_screenshot(page: Page, folder: Path, name: str) -> Path:
    """Keep a picture of the tab."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')[:100]}.png"
    page.screenshot(path=path)
    return path

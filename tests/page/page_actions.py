"""What people do in the page, by roles and names as assistive technology has them; the names come from the catalogs."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from page_browser import Watch, expect

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

STATIC = files("glm4.server.pages") / "chat"


def catalog(language: str) -> dict[str, str]:
    """All texts of a language."""
    return json.loads((STATIC / f"{language}.json").read_text(encoding="utf-8"))


class Chat:
    """The page in one tab.

    Args:
        path: with a fragment, a conversation.
    """

    def __init__(self, watch: Watch, path: str = "/ui", *, language: str = "en", page: Page | None = None) -> None:
        self.watch = watch
        self.page = page or watch.page(path)
        self.words = catalog(language)

    # Names

    def t(self, key: str, **values: object) -> str:
        """A text of the catalog."""
        text = self.words[key]
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", str(value))
        return text

    def named(self, key: str, **values: object) -> re.Pattern[str]:
        """What matches a text of the catalog, whatever its places are filled with."""
        pieces = re.split(r"(\{\w+\})", self.words[key])
        known = {f"{{{name}}}": re.escape(str(value)) for name, value in values.items()}
        parts = [known.get(one, ".*") if one.startswith("{") else re.escape(one) for one in pieces]
        return re.compile(f"^{''.join(parts)}$", re.DOTALL)

    def button(self, key: str, within: Locator | None = None, **values: object) -> Locator:
        return (within or self.page).get_by_role("button", name=self.named(key, **values))

    # The conversation

    @property
    def box(self) -> Locator:
        return self.page.get_by_role("textbox", name=self.t("composer.text"), exact=True)

    @property
    def messages(self) -> Locator:
        return self.page.get_by_role("main").get_by_role("article")

    def message(self, number: int) -> Locator:
        """From 1; -1 is the last."""
        return self.messages.nth(number - 1 if number > 0 else number)

    def body(self, number: int = -1) -> Locator:
        return self.message(number).locator(".message-body")

    def ready(self) -> Chat:
        """Wait until a message can be written."""
        expect(self.box).to_be_visible()
        return self

    def send(self, text: str) -> None:
        """Write, and press Enter."""
        self.ready()
        self.box.fill(text)
        self.box.press("Enter")

    def ask(self, text: str, status: str = "completed") -> Locator:
        """Send, and wait for the end of the answer: its message."""
        before = self.messages.count()
        self.send(text)
        expect(self.messages).to_have_count(before + 2)
        return self.ended(status)

    def ended(self, status: str = "completed") -> Locator:
        """Wait for the end of the last message."""
        expect(self.message(-1)).to_have_attribute("data-status", status)
        expect(self.button("composer.send")).to_be_visible()
        return self.message(-1)

    def shown(self, number: int = -1) -> str:
        """A message's text, with single spaces."""
        return " ".join(self.body(number).inner_text().split())

    def waits_for(self, text: str) -> None:
        """The last message has this text so far."""
        expect(self.body()).to_contain_text(text)

    def stop(self) -> None:
        self.button("composer.stop").click()

    def fresh(self) -> None:
        """A new conversation."""
        self.button("sidebar.new").click()
        expect(self.messages).to_have_count(0)

    # Dialogs

    def settings(self) -> Locator:
        """Open the settings."""
        self.button("settings.title").click()
        return self.page.get_by_role("dialog", name=self.t("settings.title"))

    def close(self, dialog: Locator) -> None:
        self.button("dialog.close", dialog).click()

    def choose_tools(self, *names: str) -> None:
        """Turn these on."""
        dialog = self.settings()
        for name in names:
            dialog.get_by_role("switch", name=name, exact=True).check()
        self.close(dialog)

    def answer(self, dialog_button: str, text: str | None = None) -> None:
        """Answer the question that the page asks."""
        dialog = self.page.locator("#question-dialog")
        if text is not None:
            dialog.get_by_role("textbox").fill(text)
        dialog.get_by_role("button", name=self.t(dialog_button), exact=True).click()

    # The list

    def row(self, title: str) -> Locator:
        """A conversation of the list."""
        return (
            self.page.get_by_role("navigation")
            .get_by_role("listitem")
            .filter(has=self.page.get_by_role("link", name=title))
        )

    def menu(self, title: str, item: str) -> None:
        """Choose from the menu of a conversation."""
        self.button("sidebar.row_menu", self.row(title)).click()
        self.page.get_by_role("menuitem", name=self.t(item), exact=True).click()

    @property
    def conversation(self) -> str:
        """The id in the address."""
        found = re.search(r"#/c/([\w-]+)", self.page.url)
        assert found is not None, self.page.url
        return found[1]

    def evaluate(self, code: str, argument: Any = None) -> Any:
        return self.page.evaluate(code, argument)

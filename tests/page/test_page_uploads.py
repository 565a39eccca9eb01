"""Files in the page: by dialog, drop and paste; documents that are cited, and the panel that shows the place."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from page_actions import Chat
from page_browser import Watch, expect
from page_model import Rules, call
from page_server import Served, page_server

from pdf_files import PdfFile, Words
from stepped import until

pytestmark = pytest.mark.page
People = Callable[..., Watch]

LINE = "Line {} of page {} is about birds, their nests and their songs."
PIKE = "Pike wait in the reeds for smaller fish."


def long_pdf() -> bytes:
    """A dozen pages; the seventh has a sentence of its own."""
    pages = [[Words(72, 750 - 12 * at, LINE.format(at, n)) for at in range(40)] for n in range(1, 13)]
    pages[6][20] = Words(72, 510, PIKE)
    return bytes(PdfFile(pages))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    rules: Rules = {
        "Where": (call("search_files", '{"query": "pike"}'), "Pike wait in the reeds【7†source】. So it says."),
        "Buy": lambda asked: "You should buy milk." if "Buy milk" in asked.prompt else "I see no list.",
        "look": "Nothing to see.",
    }
    folder = tmp_path_factory.mktemp("files")
    # Of a size that a long document does not fit into half of.
    with page_server(folder, rules, "files", functions=False, model={"max_model_len": 16384}) as served:
        yield served


@pytest.fixture
def chat(served: Served, person: People) -> Iterator[Chat]:
    yield Chat(person(served.url)).ready()
    served.model.rest()


def attach(chat: Chat, name: str, data: bytes, kind: str) -> None:
    """By the file dialog; come back when it has arrived."""
    with chat.page.expect_file_chooser() as chooser:
        chat.button("composer.attach").click()
    chooser.value.set_files({"name": name, "mimeType": kind, "buffer": data})
    expect(chat.page.locator(".attachment[data-state=ready]").filter(has_text=name)).to_be_visible()


def drop(chat: Chat, name: str, text: str, kind: str, event: str = "drop") -> None:
    """Drop a file on the page, or paste it into the box."""
    chat.evaluate(
        """([name, text, kind, type]) => {
            const data = new DataTransfer();
            data.items.add(new File([text], name, {type: kind}));
            const target = document.getElementById("composer-text");
            const init = {bubbles: true, cancelable: true};
            const event = type === "paste" ? new ClipboardEvent("paste", {...init, clipboardData: data})
              : new DragEvent("drop", {...init, dataTransfer: data});
            if (type === "drop") target.dispatchEvent(new DragEvent("dragenter", {...init, dataTransfer: data}));
            target.dispatchEvent(event);
        }""",
        [name, text, kind, event],
    )


def test_a_document_is_read_and_cited_and_the_panel_jumps(
    chat: Chat, served: Served, shoot: Callable[..., object]
) -> None:
    chat.choose_tools("files")
    attach(chat, "long.pdf", long_pdf(), "application/pdf")
    answer = chat.ask("Where do pike wait?")
    expect(chat.message(1)).to_contain_text("long.pdf")
    cited = answer.get_by_role("link", name="7", exact=True)
    expect(cited).to_be_visible()
    cited.click()
    panel = chat.page.get_by_role("complementary", name=chat.t("panel.label"))
    expect(panel).to_be_visible()
    expect(panel.get_by_role("spinbutton", name=chat.t("documents.page"))).to_have_value("7")
    mark = panel.locator("mark").filter(has_text="Pike wait in the reeds").first
    expect(mark).to_be_in_viewport()
    shoot(chat.page, "cited page")
    chat.button("documents.after", panel).click()
    expect(panel).to_contain_text("of page 8 ")
    expect(panel.locator("mark")).to_have_count(0)
    chat.page.keyboard.press("Escape")
    expect(panel).to_be_hidden()
    expect(cited).to_be_focused()
    sources = answer.get_by_role("region", name=chat.t("citations.sources"))
    sources.get_by_role("button").first.click()
    expect(panel.get_by_role("spinbutton")).to_have_value("7")


def test_drop_and_paste(chat: Chat, served: Served) -> None:
    drop(chat, "list.md", "# Plan\n\nBuy milk.", "text/markdown")
    expect(chat.page.locator(".attachment[data-state=ready]")).to_contain_text("list.md")
    drop(chat, "more.txt", "And bread.", "text/plain", "paste")
    expect(chat.page.locator(".attachment[data-state=ready]")).to_have_count(2)
    answer = chat.ask("Buy what?")
    expect(answer).to_contain_text("You should buy milk.")
    assert "And bread." in served.model.asked[-1].prompt
    chat.message(1).get_by_role("button", name="list.md").first.click()
    expect(chat.page.get_by_role("complementary")).to_contain_text("Buy milk.")


def test_a_file_can_be_taken_back_and_a_wrong_one_is_refused(chat: Chat, served: Served) -> None:
    attach(chat, "one.txt", b"one", "text/plain")
    chat.button("composer.remove", name="one.txt").click()
    expect(chat.page.locator(".attachment")).to_have_count(0)
    drop(chat, "nothing.bin", "", "application/octet-stream")
    expect(chat.page.locator("#composer-hint")).to_contain_text("nothing.bin")
    expect(chat.page.locator(".attachment")).to_have_count(0)
    chat.ask("look")
    assert served.conversation()["files"] == []


def test_a_long_text_becomes_a_file_that_can_be_text_again(chat: Chat) -> None:
    text = "A line of words. " * 600
    chat.evaluate(
        """(text) => {
            const data = new DataTransfer();
            data.setData("text/plain", text);
            document.getElementById("composer-text").dispatchEvent(
              new ClipboardEvent("paste", {bubbles: true, cancelable: true, clipboardData: data}));
        }""",
        text,
    )
    item = chat.page.locator(".attachment[data-state=ready]")
    expect(item).to_have_count(1)
    chat.button("composer.as_text", item).click()
    until(lambda: chat.box.input_value() == text, "the text is in the box")
    expect(chat.page.locator(".attachment")).to_have_count(0)

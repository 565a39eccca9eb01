"""The list of conversations: found, renamed, pinned, deleted, saved as files and read from them."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from page_actions import Chat
from page_browser import Watch, expect
from page_server import Served, page_server, text_of

pytestmark = pytest.mark.page
People = Callable[..., Watch]

OPENAI = [
    {
        "title": "Old talk about herons",
        "create_time": 1700000000.0,
        "update_time": 1700000100.0,
        "current_node": "c",
        "mapping": {
            "r": {"id": "r", "parent": None, "children": ["a"], "message": None},
            "a": {"id": "a", "parent": "r", "children": ["b", "c"], "message": {
                "id": "a", "author": {"role": "user"}, "create_time": 1700000000.0,
                "content": {"content_type": "text", "parts": ["What do herons eat?"]}}},
            "b": {"id": "b", "parent": "a", "children": [], "message": {
                "id": "b", "author": {"role": "assistant"}, "create_time": 1700000050.0,
                "content": {"content_type": "text", "parts": ["I will not say."]}}},
            "c": {"id": "c", "parent": "a", "children": [], "message": {
                "id": "c", "author": {"role": "assistant"}, "create_time": 1700000100.0,
                "content": {"content_type": "text", "parts": ["Mostly **fish**."]}}},
        },
    }
]  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    rules = {"rivers": "The **Yangtze** is long.", "lakes": "The Baikal is deep.", "hello": "Hello."}
    with page_server(tmp_path_factory.mktemp("list"), rules, functions=False) as served:
        yield served


@pytest.fixture
def chat(served: Served, person: People) -> Iterator[Chat]:
    with served.client() as client:
        for one in client.get("/v1/agent/conversations").json()["conversations"]:
            client.delete(f"/v1/agent/conversations/{one['id']}")
    chat = Chat(person(served.url)).ready()
    chat.ask("Tell me about rivers")
    chat.fresh()
    chat.ask("Tell me about lakes")
    yield chat
    served.model.rest()


def choose_file(chat: Chat, name: str, data: bytes) -> None:
    """Import a file by the menu of the list."""
    chat.button("sidebar.list_menu").click()
    with chat.page.expect_file_chooser() as chooser:
        chat.page.get_by_role("menuitem", name=chat.t("import.open")).click()
    chooser.value.set_files({"name": name, "mimeType": "application/json", "buffer": data})


def test_a_conversation_is_found_by_its_words_and_opened_there(chat: Chat) -> None:
    search = chat.page.get_by_role("searchbox", name=chat.t("search.label"))
    search.fill("yangtze")
    found = chat.page.get_by_role("navigation").locator("mark").filter(has_text=re.compile("yangtze", re.IGNORECASE))
    expect(found.first).to_be_visible()
    found.first.click()
    expect(chat.body()).to_contain_text("The Yangtze is long.")
    search.fill("nowhere at all")
    expect(chat.page.get_by_role("navigation")).to_contain_text(chat.t("search.count.other", count=0))
    search.press("Escape")
    expect(chat.row("rivers")).to_be_visible()


def test_renaming_pinning_and_deleting(chat: Chat, served: Served) -> None:
    chat.menu("Tell me about rivers", "sidebar.rename")
    field = chat.page.get_by_role("textbox", name=chat.t("sidebar.new_title"))
    field.fill("Rivers of China")
    field.press("Enter")
    expect(chat.row("Rivers of China")).to_be_visible()
    chat.menu("Rivers of China", "sidebar.pin")
    pinned = chat.page.get_by_role("region", name=chat.t("sidebar.pinned"))
    expect(pinned.get_by_role("link", name="Rivers of China")).to_be_visible()
    chat.page.reload()
    expect(pinned.get_by_role("link", name="Rivers of China")).to_be_visible()
    chat.menu("Tell me about lakes", "sidebar.delete")
    chat.answer("dialog.cancel")
    expect(chat.row("lakes")).to_be_visible()
    chat.menu("Tell me about lakes", "sidebar.delete")
    chat.answer("sidebar.delete")
    expect(chat.row("lakes")).to_have_count(0)
    expect(chat.messages).to_have_count(0)  # it was the one that was shown
    with served.client() as client:
        (left,) = client.get("/v1/agent/conversations").json()["conversations"]
    assert (left["title"], left["pinned"]) == ("Rivers of China", True)


def test_the_list_by_keyboard(chat: Chat) -> None:
    link = chat.row("lakes").get_by_role("link")
    link.focus()
    chat.page.keyboard.press("ArrowDown")
    expect(chat.row("rivers").get_by_role("link")).to_be_focused()
    chat.page.keyboard.press("Enter")
    expect(chat.body()).to_contain_text("Yangtze")
    chat.row("rivers").get_by_role("link").focus()
    chat.page.keyboard.press("F2")
    chat.page.keyboard.type("Renamed")
    chat.page.keyboard.press("Escape")
    expect(chat.row("Tell me about rivers").get_by_role("link")).to_be_focused()
    chat.page.keyboard.press("Delete")
    expect(chat.page.locator("#question-dialog")).to_be_visible()
    chat.page.keyboard.press("Escape")
    expect(chat.row("Tell me about rivers")).to_be_visible()


def saved(chat: Chat, item: str) -> tuple[str, bytes]:
    """Name and content of what a menu entry saves."""
    with chat.page.expect_download() as download:
        chat.menu("Tell me about rivers", item)
    return download.value.suggested_filename, download.value.path().read_bytes()


def test_a_conversation_is_saved_in_three_formats_and_read_again(chat: Chat, served: Served) -> None:
    name, data = saved(chat, "export.json")
    assert name.endswith(".json")
    original = json.loads(data)
    name, markdown = saved(chat, "export.markdown")
    assert name.endswith(".md")
    assert "The **Yangtze** is long." in markdown.decode()
    name, html = saved(chat, "export.html")
    assert name.endswith(".html")
    assert "<strong>Yangtze</strong>" in html.decode()
    assert "<script" not in html.decode()
    choose_file(chat, "talk.json", data)
    dialog = chat.page.get_by_role("dialog", name=chat.t("import.title"))
    expect(dialog).to_contain_text(chat.t("import.done.one", count=1))
    chat.close(dialog)
    expect(chat.row("Tell me about rivers")).to_have_count(2)
    with served.client() as client:
        copies = [
            client.get(f"/v1/agent/conversations/{one['id']}/export").json()
            for one in client.get("/v1/agent/conversations").json()["conversations"]
            if one["title"] == "Tell me about rivers"
        ]
    assert len(copies) == 2
    assert [texts(one) for one in copies] == [texts(original)] * 2


def texts(exported: dict[str, Any]) -> list[str]:
    return [text_of(one) for one in exported["messages"]]


def test_all_of_them_are_saved_at_once(chat: Chat) -> None:
    chat.button("sidebar.list_menu").click()
    with chat.page.expect_download() as download:
        chat.page.get_by_role("menuitem", name=chat.t("export.all")).click()
    data = download.value.path().read_bytes()
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            text = "".join(archive.read(name).decode() for name in archive.namelist() if name.endswith(".json"))
    else:
        text = data.decode()
    assert "Yangtze" in text
    assert "Baikal" in text


def test_an_export_of_openai_is_read(chat: Chat) -> None:
    choose_file(chat, "conversations.json", json.dumps(OPENAI).encode())
    row = chat.row("Old talk about herons")
    expect(row).to_be_visible()
    chat.page.keyboard.press("Escape")
    row.get_by_role("link").click()
    expect(chat.body()).to_contain_text("Mostly fish.")
    expect(chat.body().locator("strong")).to_have_text("fish")
    chat.button("message.previous", chat.message(-1)).click()
    expect(chat.body()).to_contain_text("I will not say.")
    chat.ask("hello")  # and it goes on
    assert chat.shown() == "Hello."


def test_what_is_not_an_export_is_refused(chat: Chat) -> None:
    chat.watch.expect(r"status of 400")
    for name, data in (("a.json", b"not json"), ("b.json", b'{"something": "else"}')):
        choose_file(chat, name, data)
        dialog = chat.page.get_by_role("dialog", name=chat.t("import.title"))
        expect(dialog).to_contain_text(name)
        chat.close(dialog)
    expect(chat.page.get_by_role("navigation").get_by_role("link", name="Tell me about")).to_have_count(2)


def test_a_conversation_of_500_messages_opens(chat: Chat, served: Served) -> None:
    exported = served.conversation()
    with served.client() as client:
        one = client.get(f"/v1/agent/conversations/{exported['conversation']['id']}/export").json()
        user, assistant = one["messages"]
        messages: list[dict[str, Any]] = []
        for at in range(250):
            parent = messages[-1]["id"] if messages else None
            messages.append({**user, "id": f"u{at}", "parent": parent})
            messages.append({**assistant, "id": f"a{at}", "parent": f"u{at}"})
        one["messages"] = messages
        one |= {"title": "Very long", "leaf": "a249"}
        made = client.post("/v1/agent/conversations", json=one)
        assert made.status_code == 200, made.text
    chat.page.goto(f"{served.url}/ui#/c/{made.json()['id']}")
    expect(chat.messages).to_have_count(500)
    expect(chat.message(500)).to_be_in_viewport()
    chat.ask("hello")
    expect(chat.message(502)).to_be_in_viewport()

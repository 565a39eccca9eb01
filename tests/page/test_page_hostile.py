"""Strings of strangers in every place of the page: none of them runs, and nothing asks another server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from page_actions import Chat
from page_browser import Watch, expect
from page_corpus import ALLOWED_ATTRIBUTES, BEACON, PAYLOADS
from page_model import Asked, Rules, call
from page_server import Served, page_server
from test_page_artifacts import beacon

from web_sites import Site

pytestmark = pytest.mark.page
People = Callable[..., Watch]

assert len(PAYLOADS) >= 30


@pytest.fixture(scope="module")
def other() -> Iterator[Site]:
    with beacon() as running:
        yield running


@pytest.fixture(scope="module")
def payloads(other: Site) -> list[str]:
    return [one.replace(BEACON, f"http://127.0.0.1:{other.port}") for one in PAYLOADS]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, payloads: list[str]) -> Iterator[Served]:
    def spoken(asked: Asked) -> str:
        return payloads[int(asked.question.rsplit(" ", 1)[-1])]

    everything = "\n\n".join(payloads)
    rules: Rules = {
        "speak": spoken,
        "everything": everything,
        "think": f"<think>{everything}</think>\n{everything}",
        "tool": (call("say", json.dumps({"text": everything})), everything),
        "file": (call("note", json.dumps({"name": payloads[1], "text": everything})), "Made."),
        "ask": (call("launch", json.dumps({"what": everything})), "No."),
        "<": "I see.",
        "[": "I see.",
        "`": "I see.",
        "$": "I see.",
    }
    with page_server(tmp_path_factory.mktemp("hostile"), rules) as served:
        yield served


@pytest.fixture
def chat(served: Served, person: People, other: Site) -> Iterator[Chat]:
    chat = Chat(person(served.url)).ready()
    yield chat
    nothing_ran(chat, other)
    served.model.rest()


def nothing_ran(chat: Chat, other: Site) -> None:
    chat.evaluate("document.querySelectorAll('main details').forEach((one) => { one.open = true; })")
    assert chat.evaluate(ALLOWED_ATTRIBUTES) == []
    assert chat.evaluate("window.pwned") is None
    assert chat.watch.dialogs == []
    assert other.requests == []
    assert chat.page.url.startswith(chat.watch.origin)
    assert [page.url for page in chat.watch.context.pages] == [chat.page.url]


def hover_and_press(chat: Chat) -> None:
    """What waits for the mouse or the focus gets it; links of answers are not followed."""
    chat.evaluate(
        """() => {
            for (const one of document.querySelectorAll("main .message-body *, nav a, #panel *")) {
              for (const name of ["pointerover", "mouseover", "mouseenter", "focus", "toggle", "animationend"]) {
                one.dispatchEvent(new Event(name, {bubbles: true}));
              }
            }
        }"""
    )


def test_as_the_answer_of_the_model_each_and_all(chat: Chat, payloads: list[str]) -> None:
    for at in range(0, len(payloads), 6):
        chat.ask(f"Please speak {at}")
        hover_and_press(chat)
    chat.ask("Now everything")
    hover_and_press(chat)
    chat.page.reload()
    expect(chat.messages).to_have_count(2 * len(range(0, len(payloads), 6)) + 2)
    hover_and_press(chat)


def test_as_question_title_draft_and_search(chat: Chat, served: Served, payloads: list[str]) -> None:
    for payload in payloads[::8]:
        chat.fresh()
        chat.ask(payload)
    with served.client() as client:
        for payload in payloads:
            titled = {**foreign("script"), "title": payload[:80], "files": [], "leaf": "u"}
            titled["messages"] = titled["messages"][:1]
            assert client.post("/v1/agent/conversations", json=titled).status_code == 200
    chat.page.reload()
    expect(chat.page.get_by_role("navigation").get_by_role("link").nth(40)).to_be_attached()
    chat.page.get_by_role("searchbox").fill("script")
    expect(chat.page.get_by_role("navigation").locator("mark").first).to_be_visible()
    hover_and_press(chat)
    chat.box.fill(payloads[0])
    chat.page.reload()
    expect(chat.box).to_have_value(payloads[0])
    chat.page.goto(f"{chat.watch.origin}/ui#/c/{payloads[0]}")
    chat.ready()


def test_as_what_tools_say_and_make(chat: Chat, served: Served, payloads: list[str]) -> None:
    chat.choose_tools(served.functions)
    for question in ("Use a tool", "Make a file"):
        chat.ask(question)
        hover_and_press(chat)
    chat.send("Please ask")
    chat.button("tools.allow_never").click()
    chat.ended()
    hover_and_press(chat)
    chat.page.reload()
    expect(chat.messages).to_have_count(6)


def test_as_names_and_texts_of_files(chat: Chat, payloads: list[str]) -> None:
    for name in (payloads[0], payloads[1], payloads[6], payloads[25]):
        with chat.page.expect_file_chooser() as chooser:
            chat.button("composer.attach").click()
        name = f"{name.replace('/', '_')}.txt"
        chooser.value.set_files({"name": name, "mimeType": "text/html", "buffer": "\n".join(payloads).encode()})
    expect(chat.page.locator(".attachment[data-state=ready]")).not_to_have_count(0)
    chat.ask("everything")
    for card in chat.message(1).locator("button.file-open").all()[:2]:
        card.click()
        expect(chat.page.get_by_role("complementary")).to_contain_text("pwned")
        hover_and_press(chat)
        nothing = chat.evaluate(ALLOWED_ATTRIBUTES)
        assert nothing == []


def foreign(text: str) -> dict[str, Any]:
    """A conversation in whose every field a stranger has written the same."""
    sha = "a" * 64
    name = text.split("\n\n")[0][:200]  # names have a longest length
    file = {
        "sha256": sha,
        "name": name,
        "media_type": name,
        "size": 3,
        "width": 1,
        "height": 1,
        "alt": name,
        "data": "eHg=",
    }
    citation = {
        "n": 1,
        "title": name,
        "url": text,
        "file": text,
        "page": 1,
        "section": name,
        "text": text,
        "start": 0,
        "end": 3,
    }
    parts = [
        {"kind": "reasoning", "text": text, "blocks": [text]},
        {"kind": "text", "text": f"【1†s】 {text}", "blocks": [text], "html": text, "citations": [citation]},
        {
            "kind": "tool",
            "call": name,
            "tool": name,
            "state": "done",
            "arguments": text,
            "code": text,
            "about": text,
            "seconds": 1.0,
            "output": [{"channel": name, "text": text, "truncated": True}],
            "files": [file],
        },
        {
            "kind": "tool",
            "call": "c2",
            "tool": "browser_search",
            "state": "done",
            "arguments": json.dumps({"query": text}),
            "output": [{"channel": "output", "text": text}],
            "files": [],
        },
        {
            "kind": "tool",
            "call": "c3",
            "tool": "python",
            "state": "error",
            "arguments": text,
            "output": [],
            "files": [],
        },
        {"kind": "tool", "call": "c4", "tool": "python", "state": "writing", "arguments": "x", "code": text},
        {"kind": name, "text": text},
    ]
    user: dict[str, Any] = {
        "id": "u",
        "parent": None,
        "role": "user",
        "status": "completed",
        "model": "",
        "created": 1.0,
        "usage": {},
        "messages": [{"role": "user", "content": text}],
        "parts": [{"kind": "text", "text": text}],
    }
    answer = {
        "id": "a",
        "parent": "u",
        "role": "assistant",
        "status": "error",
        "model": name,
        "created": 2.0,
        "usage": {"prompt": text},
        "messages": [{"role": "assistant", "content": text}],
        "parts": parts,
    }
    return {
        "format": "glm4-conversation",
        "version": 1,
        "title": text[:80],
        "system": text,
        "model": name,
        "params": {},
        "leaf": "a",
        "created": 1.0,
        "updated": 2.0,
        "messages": [user, answer],
        "files": [file],
    }


def variants(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The document, and less of it: an import refuses some of what is wrong, and the rest must still be harmless."""
    yield document
    answer = document["messages"][1]
    yield {**document, "files": []}
    for part in answer["parts"]:
        yield {**document, "files": [], "messages": [document["messages"][0], {**answer, "usage": {}, "parts": [part]}]}


def test_as_every_field_of_an_imported_conversation(
    chat: Chat, served: Served, payloads: list[str], other: Site
) -> None:
    chat.watch.expect(r"status of 40\d")  # files that are not there
    taken: list[str] = []
    with served.client() as client:
        for text in (payloads[0], payloads[1], "\n\n".join(payloads[:20]), "\n\n".join(payloads[20:])):
            before = len(taken)
            for document in variants(foreign(text)):
                answer = client.post("/v1/agent/conversations", json=document)
                assert answer.status_code in (200, 400), answer.text
                taken += [answer.json()["id"]] if answer.status_code == 200 else []
            assert len(taken) > before
    for one in taken:
        chat.page.goto(f"{served.url}/ui#/c/{one}")
        expect(chat.messages).to_have_count(2)
        hover_and_press(chat)
        assert chat.evaluate(ALLOWED_ATTRIBUTES) == []
        chat.evaluate("document.querySelectorAll('a.cite, .sources button').forEach((one) => one.click())")
        assert chat.evaluate(ALLOWED_ATTRIBUTES) == []
    chat.settings()  # the system prompt
    chat.page.keyboard.press("Escape")


def test_as_saved_prompts_and_in_the_html_export(chat: Chat, served: Served, payloads: list[str], other: Site) -> None:
    with served.client() as client:
        for payload in payloads[:20]:
            body = {"name": payload[:60].replace("\x01", "").strip(), "text": payload}
            client.post("/v1/agent/prompts", json=body)
        taken = client.post(
            "/v1/agent/conversations",
            json={
                **foreign("\n\n".join(payloads)),
                "files": [],
                "messages": [{**foreign("\n\n".join(payloads))["messages"][0]}],
                "leaf": "u",
            },
        )
        assert taken.status_code == 200, taken.text
        exported = client.get(f"/v1/agent/conversations/{taken.json()['id']}/export?format=html")
        assert exported.status_code == 200
    dialog = chat.settings()
    expect(dialog.get_by_role("combobox", name=chat.t("prompts.saved")).locator("option")).not_to_have_count(1)
    nothing_ran(chat, other)
    chat.close(dialog)
    # The export, opened as a file is: without our policy.
    tab = chat.watch.context.new_page()
    tab.set_content(exported.text)
    tab.wait_for_load_state()
    assert tab.evaluate("window.pwned") is None
    assert tab.evaluate("document.querySelectorAll('script, iframe, object, embed, [onerror], [onload]').length") == 0
    assert other.requests == []
    tab.close()

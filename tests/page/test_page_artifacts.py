"""Tables, and documents that a model wrote: what they can do in their frame, and what they cannot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from page_actions import Chat
from page_browser import Watch, expect
from page_server import Served, page_server

from web_sites import Site, page, site

pytestmark = pytest.mark.page
People = Callable[..., Watch]

TABLE = """| city | people | note |
|---|---|---|
| Rome | 2,800,000 | =1+1 |
| Bern | 134,000 | a "quoted", one |
| Köln | 1,085,000 | |
"""
BLOCKED = r"Content Security Policy|sandbox|frame-src|ERR_BLOCKED|Failed to load|frame because|Unsafe attempt|BLOCKED"

# Each is tried in the frame; what comes of it is written where the test can read it.
ESCAPES = """<!doctype html><html><body><h1 id=made>Made by a script</h1><pre id=result></pre><script>
const found = {};
const attempt = (name, act) => {
  try { found[name] = String(act()); } catch (error) { found[name] = error.name; }
};
attempt("origin", () => origin);
attempt("cookie", () => document.cookie);
attempt("storage", () => localStorage.length);
attempt("session", () => sessionStorage.length);
attempt("database", () => indexedDB.open("x"));
attempt("parent", () => parent.document.title);
attempt("top", () => top.location.href);
attempt("navigate", () => { top.location = "BEACON/top"; return "set"; });
attempt("popup", () => open("BEACON/popup"));
attempt("webrtc", () => typeof RTCPeerConnection);
attempt("worker", () => new Worker("data:text/javascript,1"));
attempt("service", () => typeof navigator.serviceWorker);
attempt("alert", () => alert("artifact"));
attempt("print", () => print());
attempt("clipboard", () => document.execCommand("copy"));
new Image().src = "BEACON/image.png";
const link = (rel, href) => document.head.append(Object.assign(document.createElement("link"), {rel, href}));
link("stylesheet", "BEACON/style.css");
const form = document.createElement("form"); form.action = "BEACON/form"; document.body.append(form);
attempt("form", () => form.submit());
const frame = document.createElement("iframe"); frame.src = "BEACON/frame"; document.body.append(frame);
link("prefetch", "BEACON/prefetch");
link("preconnect", "BEACON/");
attempt("socket", () => { new WebSocket("BEACON/socket".replace("http", "ws")); return "made"; });
attempt("beacon", () => navigator.sendBeacon("BEACON/beacon", "x"));
attempt("events", () => { new EventSource("BEACON/events"); return "made"; });
const wanted = ["BEACON/fetch", "HERE/v1/agent/conversations", "HERE/ui/session"];
Promise.allSettled(wanted.map((one) => fetch(one))).then((all) => {
  found.fetch = all.map((one) => one.status).join();
  document.getElementById("result").textContent = JSON.stringify(found);
});
</script></body></html>"""
LEAVE = """<!doctype html><body><script>setTimeout(() => { location.href = "BEACON/leave"; }, 50);</script>"""
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle id="dot" cx="4" cy="4" r="3"/></svg>'


@contextmanager
def beacon() -> Iterator[Site]:
    """A server that nothing may ever ask."""

    class Anything(dict[str, bytes]):
        def __missing__(self, path: str) -> bytes:
            return page(b"", "Access-Control-Allow-Origin: *", media_type="text/plain")

    with site(Anything()) as running:
        yield running


@pytest.fixture(scope="module")
def other() -> Iterator[Site]:
    with beacon() as running:
        yield running


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with page_server(tmp_path_factory.mktemp("artifacts"), {"table": f"Here:\n\n{TABLE}"}, functions=False) as served:
        yield served


@pytest.fixture
def chat(served: Served, person: People, other: Site) -> Iterator[Chat]:
    def made(source: str, kind: str) -> str:
        source = source.replace("BEACON", f"http://127.0.0.1:{other.port}").replace("HERE", served.url)
        return f"Look:\n\n```{kind}\n{source}\n```\n"

    served.model.rules |= {
        "escape": made(ESCAPES, "html"), "leave": made(LEAVE, "html"), "circle": made(SVG, "svg"),
        "scripted circle": made(SVG.replace("<circle", "<script>top.pwned=1</script><circle"), "svg"),
    }  # fmt: skip
    watch = person(served.url)
    watch.context.grant_permissions(["clipboard-read", "clipboard-write"])
    yield Chat(watch).ready()
    served.model.rest()


def show(chat: Chat, question: str) -> None:
    """Ask for an artifact, and open it."""
    answer = chat.ask(question)
    assert chat.page.locator("iframe").count() == 0  # by click only
    chat.button("artifact.show", answer).click()
    expect(chat.page.locator("iframe")).to_be_visible()


def test_a_table_is_sorted_copied_and_saved(chat: Chat) -> None:
    answer = chat.ask("A table, please")
    table = answer.get_by_role("table")
    first = table.locator("tbody tr td:first-child")
    expect(first).to_have_text(["Rome", "Bern", "Köln"])
    head = table.get_by_role("columnheader", name="people")
    for order, cities in (
        ("ascending", ["Bern", "Köln", "Rome"]),
        ("descending", ["Rome", "Köln", "Bern"]),
        ("none", ["Rome", "Bern", "Köln"]),
    ):
        head.get_by_role("button").click()
        expect(first).to_have_text(cities)
        expect(head).to_have_attribute("aria-sort", order)
    with chat.page.expect_download() as download:
        chat.button("table.csv", answer).click()
    text = download.value.path().read_bytes().decode("utf-8-sig")
    lines = ["city,people,note", 'Rome,"2,800,000",\'=1+1', 'Bern,"134,000","a ""quoted"", one"', 'Köln,"1,085,000",']
    assert text == "\r\n".join(lines) + "\r\n"
    chat.button("table.copy", answer).click()
    copied = chat.evaluate("navigator.clipboard.readText()")
    assert copied.splitlines()[1].split("\t")[0] == "Rome"


def test_a_document_runs_in_its_frame_and_does_not_get_out(
    chat: Chat, other: Site, shoot: Callable[..., object]
) -> None:
    chat.watch.expect(f"{BLOCKED}|another origin|: csp$")  # tried, and not sent
    show(chat, "Try to escape")
    frame = chat.page.frame_locator("iframe")
    expect(frame.locator("#result")).to_contain_text("fetch")
    found = json.loads(frame.locator("#result").inner_text())
    assert found.pop("fetch") == "rejected,rejected,rejected"
    assert found.pop("origin") == "null"
    for name in ("cookie", "storage", "session", "database", "parent"):
        assert found.pop(name) in ("SecurityError", ""), (name, found)
    assert found.pop("top") in ("SecurityError",), found
    assert found.pop("navigate") in ("SecurityError", "set")
    assert found.pop("popup") == "null"
    assert found.pop("webrtc") == "undefined"
    assert found.pop("alert") in ("undefined", "false")
    element = chat.page.locator("iframe")
    assert element.get_attribute("sandbox") == "allow-scripts"
    assert element.get_attribute("title")
    assert chat.watch.dialogs == []
    assert chat.page.url.startswith(chat.watch.origin)
    assert len(chat.watch.context.pages) == 1
    assert other.requests == []
    shoot(chat.page, "artifact")
    # What is in it is read, not run, as its source.
    panel = chat.page.get_by_role("complementary")
    chat.button("artifact.source", panel).click()
    expect(panel.get_by_text("Made by a script")).to_be_visible()
    chat.page.keyboard.press("Escape")
    expect(chat.page.locator("iframe")).to_have_count(0)


def test_a_frame_cannot_go_elsewhere(chat: Chat, other: Site) -> None:
    chat.watch.expect(f"{BLOCKED}|another origin|: csp$")
    show(chat, "Try to leave")
    chat.watch.until(chat.page, lambda: any("Policy" in one for one in chat.watch.problems), "it was blocked")
    assert other.requests == []
    assert chat.page.url.startswith(chat.watch.origin)


def test_a_drawing_is_shown(chat: Chat) -> None:
    show(chat, "A circle")
    expect(chat.page.frame_locator("iframe").locator("#dot")).to_be_visible()


def test_the_address_of_a_document_opens_nowhere_else(chat: Chat, served: Served) -> None:
    chat.watch.expect("status of 40")
    show(chat, "A circle")
    address = chat.page.locator("iframe").get_attribute("src")
    tab = chat.watch.context.new_page()
    answer = tab.goto(f"{served.url}/{address}")
    assert answer is not None
    assert answer.status in (403, 404)
    assert chat.evaluate("(path) => fetch(path).then((answer) => answer.status)", address) in (403, 404)

"""Two people with a key each: what belongs to one does not exist for the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import httpx
import pytest
from page_actions import Chat
from page_browser import Watch, expect
from page_model import HOLD
from page_server import Served, page_server, text_of

pytestmark = pytest.mark.page
People = Callable[..., Watch]
KEYS = ("first-secret-key", "second-secret-key")
REFUSED = r"status of (401|403|404)"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    rules = {"hello": "Hello.", "slow": f"It begins{HOLD} and ends.", "write": "Written."}
    with page_server(tmp_path_factory.mktemp("login"), rules, api_keys=KEYS) as served:
        yield served


def log_in(chat: Chat, key: str) -> None:
    dialog = chat.page.get_by_role("dialog", name=chat.t("login.title"))
    dialog.get_by_label(chat.t("login.key"), exact=True).fill(key)
    dialog.get_by_role("button", name=chat.t("login.login")).click()


@pytest.fixture
def two(served: Served, person: People) -> Iterator[tuple[Chat, Chat]]:
    chats = []
    for key in KEYS:
        watch = person(served.url)
        watch.expect(REFUSED)
        chat = Chat(watch)
        log_in(chat, key)
        chat.ready()
        chats.append(chat)
    yield chats[0], chats[1]
    served.model.rest()


def test_a_wrong_key_is_refused_and_a_right_one_opens(served: Served, person: People) -> None:
    watch = person(served.url)
    watch.expect(REFUSED)
    chat = Chat(watch)
    dialog = chat.page.get_by_role("dialog", name=chat.t("login.title"))
    expect(dialog).to_be_visible()
    chat.page.keyboard.press("Escape")
    expect(dialog).to_be_visible()
    log_in(chat, "wrong-secret-key")
    expect(dialog.get_by_role("alert")).to_have_text(chat.t("login.wrong"))
    log_in(chat, KEYS[0])
    expect(dialog).to_be_hidden()
    chat.ask("hello")
    (cookie,) = watch.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["secure"]) == (True, "Strict", False)
    assert KEYS[0] not in cookie["value"]
    kept = chat.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
    assert KEYS[0] not in kept
    chat.page.reload()
    expect(chat.messages).to_have_count(2)


def test_what_is_mine_does_not_exist_for_you(two: tuple[Chat, Chat], served: Served) -> None:
    mine, yours = two
    mine.send("Be slow")
    mine.waits_for("It begins")
    conversation = mine.conversation
    client = served.client(KEYS[0])
    with client:
        (turn,) = client.get("/v1/agent/turns").json()["turns"]
        file = client.post("/v1/agent/files?name=a.txt", content=b"secret").json()["file"]
        artifact = client.post("/ui/artifacts", json={"kind": "html", "source": "<p>secret"}).json()["id"]
        prompt = client.post("/v1/agent/prompts", json={"name": "Mine", "text": "secret"}).json()["id"]
    paths = [
        f"ui/conversations/{conversation}", f"ui/turns/{turn['turn']}/events", f"ui/documents/{file}",
        f"v1/agent/conversations/{conversation}", f"v1/agent/files/{file}",
        f"v1/agent/conversations/{conversation}/export", f"v1/agent/turns/{turn['turn']}/events",
    ]  # fmt: skip
    get = "(path) => fetch(path).then((answer) => answer.status)"
    assert [yours.evaluate(get, path) for path in paths] == [404] * len(paths)
    with served.client(KEYS[0]) as own, served.client(KEYS[1]) as other:
        framed = {"Sec-Fetch-Dest": "iframe", "Sec-Fetch-Site": "same-origin"}
        found = [one.get(f"/ui/artifacts/{artifact}", headers=framed).status_code for one in (own, other)]
        assert found == [200, 404]
    send = """async ([path, method, body]) => {
        const {token} = await (await fetch("ui/session")).json();
        const headers = {"X-GLM4-Token": token, "Content-Type": "application/json"};
        return (await fetch(path, {method, headers, body: JSON.stringify(body)})).status;
    }"""
    for path, method, body in (
        (f"v1/agent/turns/{turn['turn']}/stop", "POST", {}),
        (f"v1/agent/turns/{turn['turn']}/approvals/x", "POST", {"decision": "once"}),
        (f"v1/agent/conversations/{conversation}", "PATCH", {"title": "x"}),
        (f"v1/agent/conversations/{conversation}", "DELETE", {}),
        (f"v1/agent/prompts/{prompt}", "PUT", {"text": "x"}),
        ("v1/agent/turns", "POST", {"content": "x", "conversation": conversation}),
        ("v1/agent/turns", "POST", {"content": "x", "files": [file]}),
    ):
        assert yours.evaluate(send, [path, method, body]) in (400, 404), (method, path)
    expect(yours.row("Be slow")).to_have_count(0)
    yours.page.goto(f"{served.url}/ui#/c/{conversation}")
    expect(yours.page.get_by_role("alert").or_(yours.page.locator("#notices")).first).to_contain_text(
        re.compile("exist")
    )
    served.model.go()
    mine.ended()
    assert text_of(served.conversation(key=KEYS[0])["messages"][-1]) == "It begins and ends."


def test_a_request_without_the_token_changes_nothing(two: tuple[Chat, Chat], served: Served) -> None:
    mine, _ = two
    send = """async (headers) => (await fetch("v1/agent/turns", {method: "POST", body: '{"content": "hello"}',
        headers: {"Content-Type": "application/json", ...headers}})).status"""
    before = len(served.model.asked)
    assert mine.evaluate(send, {}) == 403
    assert mine.evaluate(send, {"X-GLM4-Token": "wrong"}) == 403
    assert len(served.model.asked) == before
    cookies = {one["name"]: one["value"] for one in mine.watch.context.cookies()}
    for site in ("cross-site", "same-site", "none"):
        token = mine.evaluate("fetch('ui/session').then((answer) => answer.json()).then(({token}) => token)")
        headers = {"X-GLM4-Token": token, "Sec-Fetch-Site": site}
        answer = httpx.post(f"{served.url}/v1/agent/turns", json={"content": "x"}, headers=headers, cookies=cookies)
        assert answer.status_code == 403, site
    assert httpx.get(f"{served.url}/v1/agent/conversations", cookies=cookies).status_code == 200
    assert httpx.get(f"{served.url}/v1/agent/conversations").status_code == 401


def test_signing_out_leaves_nothing_on_the_screen(two: tuple[Chat, Chat], served: Served) -> None:
    mine, _ = two
    mine.ask("hello, this is private")
    cookies = {one["name"]: one["value"] for one in mine.watch.context.cookies()}
    dialog = mine.settings()
    dialog.get_by_role("button", name=mine.t("login.logout")).click()
    login = mine.page.get_by_role("dialog", name=mine.t("login.title"))
    expect(login).to_be_visible()
    expect(mine.messages).to_have_count(0)
    assert "private" not in mine.page.locator("body").inner_text()
    assert httpx.get(f"{served.url}/v1/agent/conversations", cookies=cookies).status_code == 401
    log_in(mine, KEYS[1])
    expect(login).to_be_hidden()
    expect(mine.row("private")).to_have_count(0)


def test_only_the_first_key_is_the_operators(two: tuple[Chat, Chat], served: Served) -> None:
    mine, yours = two
    expect(mine.button("operator.title")).to_be_visible()
    expect(yours.button("operator.title")).to_be_hidden()
    assert yours.evaluate("fetch('ui/operator').then((answer) => answer.status)") in (403, 404)


def test_a_key_that_was_removed_ends_its_sessions(
    served: Served, person: People, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, other = tmp_path_factory.mktemp("before"), tmp_path_factory.mktemp("after")
    rules = {"hello": "Hello."}
    with page_server(folder, rules, api_keys=KEYS) as before:
        watch = person(before.url)
        watch.expect(REFUSED)
        chat = Chat(watch)
        log_in(chat, KEYS[1])
        chat.ready()
        cookies = {one["name"]: one["value"] for one in watch.context.cookies()}
        assert httpx.get(f"{before.url}/v1/agent/conversations", cookies=cookies).status_code == 200
        chat.page.close()
    port = before.url.rpartition(":")[2]
    for keys, status in ((KEYS, 200), (KEYS[:1], 401)):
        with page_server(other / str(status), rules, api_keys=keys) as after:
            named = {name.replace(port, after.url.rpartition(":")[2]): value for name, value in cookies.items()}
            assert httpx.get(f"{after.url}/v1/agent/conversations", cookies=named).status_code == status

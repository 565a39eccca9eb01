"""A conversation in the page: asking, reading, stopping, trying again, editing, branches, the keyboard."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from page_actions import Chat
from page_browser import Watch, expect
from page_model import HOLD, Rules
from page_server import Served, page_server, text_of

pytestmark = pytest.mark.page
People = Callable[..., Watch]

RICH = """# A heading

Some **bold** text, `code` and a [link](https://example.org/).

```python
def double(x):
    return 2 * x  # twice
```

| city | people |
|---|---|
| Rome | 2,800,000 |
| Bern | 134,000 |

The area is $A = \\pi r^2$, and

$$\\int_0^1 x^2 \\, dx = \\frac{1}{3}$$

- [x] done
- [ ] open

你好，世界。"""
LONG = "\n\n".join(f"Paragraph {n} has a few words in it, and then it ends." for n in range(60))
numbers = iter(range(1, 1000))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    rules: Rules = {
        "rich": RICH,
        "slow": f"It begins{HOLD} and goes on{HOLD} and ends.",
        "long": f"{LONG}{HOLD}\n\nThe end.",
        "count": lambda asked: f"Answer number {next(numbers)} to: {asked.question}",
        "hello": "Hello to you, too.",
    }
    with page_server(tmp_path_factory.mktemp("chat"), rules, functions=False) as served:
        yield served


@pytest.fixture
def chat(served: Served, person: People) -> Iterator[Chat]:
    watch = person(served.url)
    watch.context.grant_permissions(["clipboard-read", "clipboard-write"])
    yield Chat(watch).ready()
    served.model.rest()


def test_an_answer_is_rendered_and_its_source_can_be_copied(chat: Chat, shoot: Callable[..., object]) -> None:
    answer = chat.ask("Something rich, please")
    expect(answer.get_by_role("heading", name="A heading")).to_be_visible()
    expect(answer.get_by_role("cell", name="Rome")).to_be_visible()
    expect(answer.locator("pre.code .k, pre.code .kw").first).to_be_visible()
    assert answer.locator("math").count() == 2
    expect(answer.get_by_role("listitem").filter(has_text="☑ done")).to_be_visible()
    expect(answer.get_by_text("你好，世界。")).to_be_visible()
    expect(answer.locator(".message-stats")).to_contain_text("tokens/s")
    link = answer.get_by_role("link", name="link")
    assert link.get_attribute("target") == "_blank"
    assert "noopener" in (link.get_attribute("rel") or "")
    chat.button("message.copy", answer.get_by_role("contentinfo").or_(answer.locator("footer"))).first.click()
    assert chat.evaluate("navigator.clipboard.readText()").strip() == RICH
    answer.locator("pre.code").hover()
    chat.button("artifact.copy", answer).click()
    assert chat.evaluate("navigator.clipboard.readText()").strip() == "def double(x):\n    return 2 * x  # twice"
    shoot(chat.page, "chat")


def test_stopping_keeps_what_was_said_and_trying_again_makes_a_branch(chat: Chat, served: Served) -> None:
    chat.send("Be slow")
    chat.waits_for("It begins")
    chat.stop()
    chat.ended("stopped")
    assert chat.shown() == "It begins"
    served.model.go(5)
    answer = chat.message(-1)
    chat.button("message.retry", answer).click()
    expect(chat.body()).to_contain_text("and ends.")
    chat.ended()
    expect(chat.messages).to_have_count(2)
    group = chat.message(-1)
    expect(group).to_contain_text(chat.t("message.branch", index=2, total=2))
    chat.button("message.previous", group).click()
    expect(chat.body()).to_have_text(re.compile(r"^\s*It begins\s*$"))
    chat.button("message.next", chat.message(-1)).click()
    expect(chat.body()).to_contain_text("It begins and goes on and ends.")
    stored = served.conversation()["messages"]
    texts = [text_of(one) for one in stored if one["role"] == "assistant"]
    assert texts == ["It begins", "It begins and goes on and ends."]


@pytest.mark.parametrize("number", [1, 3], ids=["first", "later"])
def test_a_question_is_edited_and_both_versions_stay(chat: Chat, number: int) -> None:
    chat.ask("Please count one")
    chat.ask("Please count two")
    question = chat.message(number)
    question.hover()
    chat.button("message.edit", question).click()
    field = chat.page.get_by_role("textbox", name=chat.t("edit.label"))
    expect(field).to_have_value("Please count one" if number == 1 else "Please count two")
    field.fill("Please count three")
    chat.button("composer.send", chat.message(number)).click()
    expect(chat.messages).to_have_count(number + 1)
    chat.ended()
    assert "to: Please count three" in chat.shown()
    expect(chat.message(number)).to_contain_text(chat.t("message.branch", index=2, total=2))
    chat.button("message.previous", chat.message(number)).click()
    chat.waits_for("to: Please count two")
    expect(chat.messages).to_have_count(4)
    chat.page.reload()
    chat.waits_for("to: Please count two")
    expect(chat.messages).to_have_count(4)


def test_a_draft_survives_a_reload(chat: Chat) -> None:
    chat.ask("hello")
    chat.box.fill("not yet sent")
    chat.page.reload()
    expect(chat.box).to_have_value("not yet sent")
    expect(chat.messages).to_have_count(2)


def test_enter_while_composing_does_not_send(chat: Chat) -> None:
    chat.box.focus()
    session = chat.watch.context.new_cdp_session(chat.page)
    session.send("Input.imeSetComposition", {"text": "ni", "selectionStart": 2, "selectionEnd": 2})
    for kind in ("rawKeyDown", "keyUp"):  # as an input method sends it
        session.send(
            "Input.dispatchKeyEvent", {"type": kind, "key": "Process", "code": "Enter", "windowsVirtualKeyCode": 229}
        )
    chat.evaluate("""() => document.activeElement.dispatchEvent(
        new KeyboardEvent("keydown", {key: "Enter", isComposing: true, bubbles: true, cancelable: true}))""")
    session.send("Input.insertText", {"text": "你"})
    expect(chat.box).to_have_value("你")
    expect(chat.messages).to_have_count(0)
    chat.page.keyboard.press("Shift+Enter")
    expect(chat.box).to_have_value("你\n")
    chat.page.keyboard.type("count")
    chat.page.keyboard.press("Enter")
    expect(chat.messages).to_have_count(2)
    chat.ended()
    assert "你" in chat.shown(1)


def test_the_reader_is_not_pulled_to_the_end(chat: Chat, served: Served) -> None:
    chat.send("Something long")
    chat.waits_for("Paragraph 59")
    scroller = chat.page.locator("#scroller")
    at_end = "(one) => one.scrollTop + one.clientHeight >= one.scrollHeight - 64"
    assert scroller.evaluate(at_end)
    scroller.hover()
    chat.page.mouse.wheel(0, -1500)
    chat.page.wait_for_function(
        "() => { const one = document.getElementById('scroller');"
        " return one.scrollTop + one.clientHeight < one.scrollHeight - 500; }"
    )
    before = scroller.evaluate("(one) => one.scrollTop")
    served.model.go()
    chat.ended()
    assert "The end." in chat.shown()
    assert scroller.evaluate("(one) => one.scrollTop") == pytest.approx(before, abs=2)
    chat.button("transcript.jump").click()
    chat.page.wait_for_function(
        "() => { const one = document.getElementById('scroller');"
        " return one.scrollTop + one.clientHeight >= one.scrollHeight - 64; }"
    )


def test_from_the_first_visit_to_an_answer_with_the_keyboard_alone(chat: Chat, served: Served) -> None:
    press = chat.page.keyboard.press
    focused = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
    chat.page.locator("body").press("Tab")
    if chat.evaluate("document.activeElement.id") != "composer-text":
        for _ in range(3):
            if chat.evaluate(focused).strip() == chat.t("page.skip"):
                break
            press("Tab")
        press("Enter")
    expect(chat.box).to_be_focused()
    chat.page.keyboard.type("hello")
    press("Enter")
    chat.ended()
    expect(chat.page.get_by_role("status").filter(has_text="Hello to you, too.")).to_have_count(1)
    press("Control+Shift+O")
    expect(chat.messages).to_have_count(0)
    chat.page.keyboard.type("Be slow")
    press("Enter")
    chat.waits_for("It begins")
    press("Escape")
    chat.ended("stopped")
    chat.page.locator("body").click(position={"x": 640, "y": 60})
    press("?")
    dialog = chat.page.get_by_role("dialog", name=chat.t("key.title"))
    expect(dialog).to_be_visible()
    press("Escape")
    expect(dialog).to_be_hidden()


def test_right_to_left(chat: Chat, served: Served) -> None:
    served.model.rules["שלום"] = "שלום לך.\n\nAnd English."
    answer = chat.ask("שלום")
    block = answer.locator(".message-body p").first
    assert block.evaluate("(one) => getComputedStyle(one).direction") == "rtl"
    assert answer.locator(".message-body p").nth(1).evaluate("(one) => getComputedStyle(one).direction") == "ltr"

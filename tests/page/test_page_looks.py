"""How the page looks and sounds: accessibility of every view in both themes and languages, small screens, sizes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import httpx
import pytest
from page_actions import STATIC, Chat, catalog
from page_browser import Watch, expect, serious_findings, sideways
from page_model import call
from page_server import Served, page_server
from test_page_chat import RICH

pytestmark = pytest.mark.page
People = Callable[..., Watch]
MOST_STATIC_BYTES = 300_000
LOOKS = [("light", "en"), ("dark", "en"), ("light", "zh"), ("dark", "zh")]
WIDE = (
    "A" * 300
    + "\n\n```\n"
    + "code " * 80
    + "\n```\n\n|"
    + " wide |" * 30
    + "\n|"
    + "---|" * 30
    + "\n|"
    + " cell |" * 30
)
NOTE = '{"name": "notes.md", "text": "# Notes"}'


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    rules = {
        "everything": (
            "First a file." + call("note", NOTE),
            RICH + "\n\n```html\n<p>Hi</p>\n```\n\nAs it says【1†source】.",
        ),
        "wide": WIDE + "\n\n$$" + "x + " * 60 + "y$$",
        "launch": (call("launch", '{"what": "a rocket"}'), "Done."),
    }
    with page_server(tmp_path_factory.mktemp("looks"), rules) as served:
        yield served


@pytest.fixture(params=LOOKS, ids=lambda look: "-".join(look))
def chat(request: pytest.FixtureRequest, served: Served, person: People) -> Iterator[Chat]:
    theme, language = request.param
    watch = person(served.url, locale={"en": "en-US", "zh": "zh-CN"}[language], color_scheme=theme)
    yield Chat(watch, language=language).ready()
    served.model.rest()


def test_every_view_is_accessible(chat: Chat, shoot: Callable[..., object], request: pytest.FixtureRequest) -> None:
    look = request.node.callspec.id
    findings: list[str] = []

    def see(view: str) -> None:
        shoot(chat.page, f"{view} {look}")
        findings.extend(f"{view}: {one}" for one in serious_findings(chat.page))

    assert chat.evaluate("document.documentElement.lang").startswith(look.partition("-")[2])
    dark = chat.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    background = chat.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(float(one) for one in re.findall(r"[\d.]+", background)[:3])
    assert dark == (brightness < 3 * 128)
    see("empty")
    chat.choose_tools("functions.py")
    answer = chat.ask("everything")
    see("everything")
    answer.get_by_role("button", name="notes.md").first.click()
    expect(chat.page.get_by_role("complementary")).to_contain_text("Notes")
    see("panel")
    chat.page.keyboard.press("Escape")
    chat.button("artifact.show", answer).click()
    expect(chat.page.frame_locator("iframe").get_by_text("Hi")).to_be_visible()
    see("artifact")
    chat.page.keyboard.press("Escape")
    chat.send("launch")
    expect(chat.button("tools.allow_once")).to_be_visible()
    see("approval")
    chat.button("tools.allow_never").click()
    chat.ended()
    dialog = chat.settings()
    see("settings")
    chat.close(dialog)
    chat.button("operator.title").click()
    expect(chat.page.get_by_role("dialog", name=chat.t("operator.title")).get_by_role("table").first).to_be_visible()
    see("operator")
    chat.page.keyboard.press("Escape")
    chat.button("sidebar.row_menu", chat.row("everything").first).click()
    see("menu")
    chat.page.keyboard.press("Escape")
    chat.page.locator("body").press("?")
    expect(chat.page.get_by_role("dialog", name=chat.t("key.title"))).to_be_visible()
    see("shortcuts")
    assert not findings, "\n".join(findings)


@pytest.mark.parametrize(("theme", "language"), LOOKS)
def test_the_login_is_accessible(
    theme: str, language: str, person: People, tmp_path: object, tmp_path_factory: pytest.TempPathFactory,
    shoot: Callable[..., object],
) -> None:  # fmt: skip
    with page_server(tmp_path_factory.mktemp("login"), {}, functions=False, api_keys=("a-key-for-tests",)) as served:
        watch = person(served.url, locale={"en": "en-US", "zh": "zh-CN"}[language], color_scheme=theme)
        chat = Chat(watch, language=language)
        expect(chat.page.get_by_role("dialog", name=chat.t("login.title"))).to_be_visible()
        shoot(chat.page, f"login {theme} {language}")
        assert serious_findings(chat.page) == []


@pytest.mark.parametrize(
    "screen",
    [
        {"viewport": {"width": 320, "height": 640}, "is_mobile": True, "has_touch": True},
        {"viewport": {"width": 640, "height": 400}, "device_scale_factor": 2},
    ],
    ids=["phone", "zoom-200"],
)
def test_nothing_has_to_be_scrolled_sideways(
    screen: dict[str, object],
    served: Served,
    person: People,
    shoot: Callable[..., object],
    request: pytest.FixtureRequest,
) -> None:
    chat = Chat(person(served.url, **screen)).ready()
    assert sideways(chat.page) == 0
    chat.ask("wide")
    assert sideways(chat.page) == 0
    shoot(chat.page, f"wide {request.node.callspec.id}")
    assert chat.box.evaluate("(one) => one.getBoundingClientRect().bottom <= innerHeight")
    # Targets are large enough for fingers.
    for button in chat.page.get_by_role("main").get_by_role("button").all():
        box = button.bounding_box()
        if box is not None and box["width"] > 1:
            assert min(box["width"], box["height"]) >= 24, button.inner_text()
    chat.button("sidebar.toggle").click()
    expect(chat.button("sidebar.new")).to_be_visible()
    assert sideways(chat.page) == 0
    chat.row("wide").first.get_by_role("link").click()
    expect(chat.messages).to_have_count(2)
    expect(chat.button("sidebar.new")).to_be_hidden()
    dialog = chat.settings()
    assert sideways(chat.page) == 0
    assert dialog.evaluate("(one) => one.scrollWidth <= one.clientWidth + 1")
    shoot(chat.page, f"settings {request.node.callspec.id}")
    chat.close(dialog)


def test_theme_and_language_are_chosen_and_stay(served: Served, person: People) -> None:
    chat = Chat(person(served.url)).ready()
    dialog = chat.settings()
    dialog.get_by_role("combobox", name=chat.t("settings.theme")).select_option(chat.t("settings.theme_dark"))
    background = "getComputedStyle(document.body).backgroundColor"
    dark = chat.evaluate(background)
    dialog.get_by_role("combobox", name=chat.t("settings.theme")).select_option(chat.t("settings.theme_light"))
    assert chat.evaluate(background) != dark
    dialog.get_by_role("combobox", name=chat.t("settings.theme")).select_option(chat.t("settings.theme_dark"))
    dialog.get_by_role("combobox", name=chat.t("settings.language")).select_option("zh")
    chat.words = catalog("zh")
    expect(chat.page.get_by_role("dialog", name=chat.t("settings.title"))).to_be_visible()
    chat.page.reload()
    chat.ready()
    assert chat.evaluate(background) == dark
    assert chat.evaluate("document.documentElement.lang").startswith("zh")


def test_motion_is_spared_for_those_who_ask(served: Served, person: People) -> None:
    chat = Chat(person(served.url, reduced_motion="reduce")).ready()
    chat.ask("wide")
    moving = """() => document.getAnimations().filter((one) => one.effect.getComputedTiming().duration > 10
        && one.playState === "running").length"""
    assert chat.evaluate(moving) == 0


def test_the_page_is_small_and_asks_for_nothing_elsewhere(served: Served, person: People) -> None:
    sizes = {path.name: len(path.read_bytes()) for path in STATIC.iterdir() if path.is_file()}
    assert sum(sizes.values()) <= MOST_STATIC_BYTES, sizes
    chat = Chat(person(served.url)).ready()
    asked = {one.rpartition("/")[2] for one in chat.watch.requests if "/ui/" in one}
    assert asked - set(sizes) <= {"session", "operator"}
    for name in sizes:
        answer = httpx.get(f"{served.url}/ui/{name}")
        if name == "index.html":
            continue
        assert answer.status_code == 200, name
        assert answer.headers["x-content-type-options"] == "nosniff"
    policy = httpx.get(f"{served.url}/ui").headers["content-security-policy"]
    for part in ("default-src 'none'", "script-src 'self'", "style-src 'self'", "require-trusted-types-for 'script'",
                 "trusted-types glm4", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"):  # fmt: skip
        assert part in policy
    assert "unsafe" not in policy

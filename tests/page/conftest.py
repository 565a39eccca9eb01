"""Fixtures of the page's tests: a browser, people in it, and where screenshots go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from page_browser import Watch, missing, open_browser, save_screenshot

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Remember which test failed, for its picture."""
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for the tests of a file: no event loop of Playwright is left in this process for the tests of others."""
    if (reason := missing()) is not None:
        pytest.skip(f"no browser here: {reason}")
    with open_browser() as opened:
        yield opened


@pytest.fixture
def shots(request: pytest.FixtureRequest) -> Path:
    """The folder of screenshots."""
    return Path(request.config.getoption("--page-screenshots"))


@pytest.fixture
def shoot(shots: Path) -> Callable[[Page, str], Path]:
    """Keep a picture of a tab, under a name."""
    return lambda page, name: save_screenshot(page, shots, name)


@pytest.fixture
def person(browser: Browser, request: pytest.FixtureRequest, shots: Path) -> Iterator[Callable[..., Watch]]:
    """Makes people at a browser: `person(origin, locale=…)`. What went wrong for one of them fails the test."""
    people: list[Watch] = []

    def make(origin: str, **options: Any) -> Watch:
        people.append(Watch(browser, origin, **options))
        return people[-1]

    yield make
    failed = request.node.stash.get(FAILED, False)
    for number, one in enumerate(people):
        for at, page in enumerate(one.context.pages if failed or one.unexpected else []):
            save_screenshot(page, shots, f"failed {request.node.name} {number} {at}")
        one.close()
    for one in people:
        one.check()

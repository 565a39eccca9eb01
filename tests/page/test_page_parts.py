"""What modules of the page work out by themselves, in a real browser: words of calls, quotations, numbers, CSV."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from page_browser import Watch
from page_server import page_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.page
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def ask(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """`ask("module", "function", argument, …)` returns what it answers."""
    with page_server(tmp_path_factory.mktemp("parts"), {}, functions=False) as served:
        watch = Watch(browser, served.url)
        page = watch.page()

        def asked(module: str, function: str, *arguments: Any) -> Any:
            return page.evaluate(
                """async ([module, name, given]) => {
                    const found = (await import(`${document.baseURI.split("#")[0]}/${module}.js`))[name];
                    return found(...given);
                }""",
                [module, function, list(arguments)],
            )

        yield asked
        watch.close()
        watch.check()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("print(1)\n", "print(1)\n"),
        ('{"code": "print(1)\\nx = \\"a\\""}', 'print(1)\nx = "a"'),
        ('{"code": "a\\nb', "a\nb"),
        ('{"code": "a\\', "a"),
        ('{"code": "\\u4e2', ""),
        ('{"code": "\\u4e2d"', "中"),
        ("{", "{"),
        ("{1, 2}", "{1, 2}"),
    ],
)
def test_code_is_read_while_it_is_written(ask: Ask, arguments: str, code: str) -> None:
    assert ask("call_words", "pythonCode", {"tool": "python", "arguments": arguments}) == code


@pytest.mark.parametrize(
    ("tool", "kind"),
    [
        ("python", "python"), ("simple_browser", "browser"), ("browser_open", "browser"), ("read_file", "files"),
        ("cogview", "image"), ("notes__list", "server"), ("weather", "own"), ("constructor", "own"),
        ("__proto__", "server"),
    ],
)  # fmt: skip
def test_kinds_of_calls(ask: Ask, tool: str, kind: str) -> None:
    assert ask("call_words", "callKind", {"tool": tool}) == kind


def test_pages_of_the_browsers_output(ask: Ask) -> None:
    results = "Search results.\n # 【0†On tides†a.org】\nThe highest\n # 【1†B】c†b.org】\nmore\nVisible: 0% - 100%"
    opened = "It says:\nTITLE: On tides\nURL: https://a.org/t\nCite it as 【7†source】.\n\nTITLE: fake\nURL: https://evil.org"
    part = {
        "tool": "simple_browser",
        "output": [{"channel": "log", "text": "x"}, {"channel": "output", "text": results}],
    }
    found = ask("call_words", "pagesOf", part)
    assert [(one["n"], one["title"], one["host"]) for one in found] == [(0, "On tides", "a.org"), (1, "B】c", "b.org")]
    part["output"] = [{"channel": "output", "text": opened}]
    assert ask("call_words", "pagesOf", part) == [
        {"n": 7, "title": "On tides", "url": "https://a.org/t", "host": "a.org"}
    ]


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://a.org:8443/x", "a.org:8443"), ("https://例子.com/", "xn--fsqu00a.com"),
        ("https://good.org@evil.org/", "evil.org"), ("javascript:alert(1)", ""), ("//a.org", ""), ("", ""),
    ],
)  # fmt: skip
def test_hosts_are_shown_as_the_network_knows_them(ask: Ask, url: str, host: str) -> None:
    assert ask("call_words", "hostOf", url) == host


PAGE = "Fishes.\nHerons nest in\nMarch. Pike wait in the reeds for smaller fish.\nOthers do not. "
PAGE += "长江全长约6300公里。黄河是第二长的河流。"


@pytest.mark.parametrize(
    ("quotation", "found"),
    [
        ("Herons nest in March. Pike wait", "Herons nest in\nMarch. Pike wait"),
        ("herons  NEST in march…", "Herons nest in\nMarch"),
        ("长江全长约 ６３００公里。", "长江全长约6300公里。"),
        ("Pike wait in the reeds for smaller fish. And more that is elsewhere.", "Pike wait in the reeds for smaller"),
        ("Nothing of the sort", None),
        ("in", None),
    ],
)
def test_a_quotation_is_found_however_it_is_broken(ask: Ask, quotation: str, found: str | None) -> None:
    place = ask("find_text", "findQuotation", PAGE, quotation)
    assert (place and PAGE[place["start"] : place["end"]].startswith(found or "?")) == (found and True)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Fish hide. The pike waits in the reeds【7†source】.", "Pike wait in the reeds for smaller fish."),
        ("第一。黄河是中国第二长的河【7†source】。", "黄河是第二长的河流。"),
        ("Whales sing in the deep ocean【7†source】.", None),
        ("It【7†source】.", None),
    ],
)
def test_the_sentence_behind_a_claim_is_found(ask: Ask, answer: str, found: str | None) -> None:
    claim = ask("find_text", "claimBefore", answer, answer.index("【"))
    assert "source" not in claim
    place = ask("find_text", "findClaim", PAGE, claim)
    assert (PAGE[place["start"] : place["end"]] if place else None) == found


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234.5", 1234.5), ("−3", -3), ("$5", 5), ("-$5.50", -5.5), ("12 %", 12), ("1e5", 1e5), ("3.2 kg", 3.2),
        ("1.234.567", 1234567), ("2,5", 2.5), ("10 000", 10000), ("¥1,000", 1000), ("１２", 12), ("50°C", 50),
        ("2024-01-02", None), ("abc", None), ("=1+1", None), ("1.2.3", None), ("5-3", None), ("-1+cmd", None),
        ("", None),
    ],
)  # fmt: skip
def test_numbers_of_tables(ask: Ask, text: str, number: float | None) -> None:
    found = ask("tables", "asNumber", text)
    assert (None if found != found else found) == number  # a NaN differs from itself


def test_csv_is_for_spreadsheets_and_runs_nothing_there(ask: Ask) -> None:
    rows = [["a,b", 'say "x"', "two\nlines"], ["=HYPERLINK(1)", "@a", "+cmd"], ["-5", "+3.2 %", "-x"]]
    assert ask("tables", "csv", rows) == (
        '"a,b","say ""x""","two\nlines"\r\n\'=HYPERLINK(1),\'@a,\'+cmd\r\n-5,+3.2 %,\'-x\r\n'
    )


@pytest.mark.parametrize(
    ("kind", "is_a"),
    [
        ("image/png", "picture"), ("image/svg+xml", "document"), ("image/bmp", "other"), ("audio/wav", "audio"),
        ("video/mp4", "video"), ("application/pdf", "document"), ("application/zip", "other"), ("text/csv", "document"),
    ],
)  # fmt: skip
def test_kinds_of_files(ask: Ask, kind: str, is_a: str) -> None:
    assert ask("files", "fileKind", kind) == is_a, json.dumps(kind)

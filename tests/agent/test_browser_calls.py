"""Calls of the browser as models write them."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm4.agent.tools.browser.calls import (
    FORMS,
    MAX_CALLS,
    Action,
    CallError,
    Click,
    Open,
    Search,
    parse_calls,
    read_arguments,
)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ('search("a b", recency_days=7)', Search("a b", 7)),
        ('search("a b", 7)', Search("a b", 7)),
        ('search("a b")', Search("a b")),
        ('search("a b", recency_days=-1)', Search("a b")),
        ('search("a b", recency_days=None)', Search("a b")),
        ('search(recency_days=3, query="x")', Search("x", 3)),
        ("search('it\\'s \"so\"')", Search('it\'s "so"')),
        ('search("a, (b) [c] = d")', Search("a, (b) [c] = d")),
        ('search("C:\\temp")', Search("C:\temp")),
        ('search("\\d+")', Search("\\d+")),
        ("search（“北京 天气”，recency_days=7）", Search("北京 天气", 7)),
        ("search(query='多行\n查询')", Search("多行\n查询")),
        ("  search ( 'x' , )  ", Search("x")),
        ("simple_browser.search('x')", Search("x")),
        ("```python\nsearch('x')\n```", Search("x")),
        ("mclick([0, 1,5,])", Click((0, 1, 5))),
        ("mclick(ids=[3, 3])", Click((3,))),
        ("mclick(0, 2)", Click((0, 2))),
        ("mclick(4)", Click((4,))),
        ("mclick(['1', '2'])", Click((1, 2))),
        ("mclick([-1])", Click((-1,))),
        ('open_url("https://x.y/a?b=(c)&d=[e]")', Open("https://x.y/a?b=(c)&d=[e]")),
        ('open_url("https://x.y/", part=2)', Open("https://x.y/", 2)),
        ('open_url("https://x.y/", 2)', Open("https://x.y/", 2)),
        ("open_url(https://x.y/a_(b))", Open("https://x.y/a_(b)")),
        ("open_url(url=https://x.y/a, part=3)", Open("https://x.y/a", 3)),
    ],
)
def test_a_call(text: str, action: Action) -> None:
    assert parse_calls(text) == [action]


def test_several_calls() -> None:
    assert parse_calls('search("a")\n\nsearch("b");mclick([1])') == [Search("a"), Search("b"), Click((1,))]
    with pytest.raises(CallError, match="at most 4 calls"):
        parse_calls("mclick([1])\n" * (MAX_CALLS + 1))


@pytest.mark.parametrize(
    "text",
    [
        "", "   ", "search", "search(", 'search("x', 'search("x"', "search()", "search(1)", "search(x)", "search('')",
        'search("a" + "b")', 'search("a") and more', 'search("a", "b")', 'search("a", 1, 2)', 'search("a", days=1)',
        'search("a", query="b")', 'search("a", recency_days=1, recency_days=2)', 'search(query="a", 3)',
        'search("a", 1.5)', 'search(["a"])', "mclick()", "mclick([])", "mclick([[1]])", "mclick([x])", "mclick([True])",
        "mclick([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])", "mclick([99999999])", "mclick(['a'])", "open_url()",
        "open_url(3)", 'open_url("x", part=0)', 'open_url("x", part="y")', 'exec("x")', '__import__("os").system("id")',
        'search(open("x"))', 'search(f"{x}")', 'search("a" if 1 else "b")', '{"query": "x"}', "search" * 4000,
        "mclick(" + "[" * 5000, 'search(lambda: "x")', "search(**{'query': 'x'})", 'search("a"; "b")',
    ],
)  # fmt: skip
def test_what_is_no_call_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(CallError) as caught:
        parse_calls(text)
    assert str(caught.value).endswith(f"; write {FORMS}")
    assert len(str(caught.value)) < 400


@given(st.text(alphabet="search(mclkopenu_r)[]'\"“”，,=0123 \\\n;.https:/None`\x00é", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(CallError):
        assert parse_calls(text)


@given(st.text(max_size=40).filter(lambda text: text.strip()))
@settings(max_examples=100, deadline=None)
def test_python_strings_are_read_as_they_are(text: str) -> None:
    quoted = json.dumps(text.replace("\\", "").replace("\b", "").replace("\f", ""), ensure_ascii=False)
    if "\\u" not in quoted and json.loads(quoted).strip():
        assert parse_calls(f"search({quoted})") == [Search(json.loads(quoted).strip())]


def test_json_arguments() -> None:
    assert read_arguments("browser_search", '{"query": "x", "recency_days": 0}') == Search("x")
    assert read_arguments("browser_search", '{"query": "x", "recency_days": null}') == Search("x")
    assert read_arguments("browser_click", '{"ids": [1, 2.0]}') == Click((1, 2))
    assert read_arguments("browser_open", '{"url": "https://x.y", "part": 2}') == Open("https://x.y", 2)
    for function, arguments in (
        ("browser_search", "[]"),
        ("browser_search", "x"),
        ("browser_search", '{"q": "x"}'),
        ("browser_click", '{"ids": {}}'),
        ("browser_open", '{"url": 1}'),
        ("browser_open", "[" * 9000),
        ("search", '{"query": "x"}'),
    ):
        with pytest.raises(CallError) as caught:
            read_arguments(function, arguments)
        assert "mclick([0, 3])" not in str(caught.value) or function == "browser_click"

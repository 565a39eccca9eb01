"""Pages as text: encodings, main text and whole pages, Markdown, links, parts."""

from __future__ import annotations

import pytest
from browsing import FILLER, article, ask, browser, html, read
from hypothesis import given, settings
from hypothesis import strategies as st

from glm4.agent.tools.browser.charset import decode_html
from glm4.agent.tools.browser.extraction import read_html
from glm4.agent.tools.browser.pages import Page, in_parts
from glm4.agent.tools.browser.visible import visible, visible_line
from web_sites import site

CHINESE = "清华大学的语言模型：春江潮水连海平，海上明月共潮生。"
META = '<meta charset="{}">'


@pytest.mark.parametrize(
    ("encoding", "declared", "meta"),
    [
        ("utf-8", "", ""), ("utf-8", "gbk", ""), ("utf-8", "", "gb2312"), ("utf-8-sig", "latin-1", ""),
        ("gb18030", "gb2312", ""), ("gb18030", "GBK", "utf-8"), ("gb18030", "", "gb2312"), ("gbk", "", "utf-8"),
        ("gb18030", "", ""), ("gbk", "nonsense", ""), ("utf-16", "", ""), ("utf-16-le", "utf-16le", ""),
        ("utf-16-be", "utf-16be", "utf-16"), ("hz", "hz-gb-2312", ""),
    ],
)  # fmt: skip
def test_chinese_pages_in_every_encoding(encoding: str, declared: str, meta: str) -> None:
    text = f"<html>{META.format(meta) if meta else ''}<p>{CHINESE * 4}"
    assert decode_html(text.encode(encoding), declared) == text


@pytest.mark.parametrize(
    ("encoding", "name", "text"),
    [
        ("gb18030", "gb2312", "龘㐂𠀀€"), ("cp932", "Shift_JIS", "①髙"), ("euc_jp", "euc-jp", "日本語"),
        ("big5", "big5", "臺灣"),
        ("cp949", "euc-kr", "똠방각하"), ("cp1252", "iso-8859-1", "“café”—€"), ("cp1251", "windows-1251", "Привет"),
        ("koi8-r", "koi8-r", "Привет"), ("iso2022_jp", "iso-2022-jp", "日本語"),
    ],
)  # fmt: skip
def test_encodings_are_read_as_browsers_do(encoding: str, name: str, text: str) -> None:
    assert decode_html(text.encode(encoding), name) == text
    assert decode_html(META.format(name).encode() + text.encode(encoding)) == META.format(name) + text


@pytest.mark.parametrize(
    "name", ["rot13", "base64", "idna", "punycode", "zlib", "hex", "raw_unicode_escape", "utf-7", "x"]
)
def test_codecs_that_are_no_character_sets_are_not_used(name: str) -> None:
    text = "+ADw-script+AD4- caf\\u00e9 \\x41 eJw="
    assert decode_html(text.encode(), name) == text
    assert decode_html(f"{META.format(name)}{text}".encode()) == f"{META.format(name)}{text}"


def test_a_page_cut_in_the_middle_of_a_character_and_broken_bytes() -> None:
    assert decode_html(CHINESE.encode()[:-1]).startswith(CHINESE[:-1])
    assert decode_html(b"caf\xe9 \xff", "utf-16") != ""
    assert "\N{REPLACEMENT CHARACTER}" in decode_html(b"\x81\xff\xff \x81\xff" * 3, "gbk")


@given(st.binary(max_size=200), st.sampled_from(["", "gbk", "utf-16", "hz", "x" * 40, "iso-2022-jp"]))
@settings(max_examples=200, deadline=None)
def test_any_bytes_become_text(data: bytes, declared: str) -> None:
    visible(decode_html(data, declared)).encode("utf-8")


def test_an_article_is_its_main_text() -> None:
    body = article(
        "<p>First <b>bold</b> and <a href='/deep?x=1&y=2'>a <i>link</i></a>.</p><ul><li>one<li>two</ul>"
        "<table><tr><th>a<th>b<tr><td>1<td>2</table><pre>def f():\n    return 1</pre><h2>More</h2>"
        "<p>snake_case * [x] <code>\\[y\\]</code>"
    )
    title, text, links = read_html(body, "http://pictures.test/")
    assert title == "A page"
    assert "menu" not in text
    assert "First **bold** and 【0†a *link*】." in text
    assert "- one\n- two" in text
    assert "| 1 | 2 |" in text
    assert "def f():\n    return 1" in text
    assert "## More" in text
    assert "snake_case * [x] `\\[y\\]`" in text
    assert links == ["http://pictures.test/deep?x=1&y=2"]


def test_a_page_without_a_main_text_is_read_whole() -> None:
    body = "".join(f"<div><a href='/item/{n}'>Story {n}</a> <span>{n} points</span></div>" for n in range(5))
    body += (
        "<h2>Lists</h2><ol><li>x<ul><li>y</ul><li>z</ol><table><tr><th>q<th>r<tr><td>1<td>2</table><pre>a\n  b</pre>"
    )
    body += "<blockquote>said</blockquote>line<br>break"
    title, text, links = read_html(f"<title> News \n today</title>{body}", "http://pictures.test/")
    assert title == "News today"
    assert "【3†Story 3】 3 points" in text
    assert "## Lists\n\n1. x\n  - y" in text
    assert "2. z" in text
    assert "| q | r |\n| 1 | 2 |" in text
    assert "```\na\n  b\n```" in text
    assert "> said" in text
    assert "line\nbreak" in text
    assert links == [f"http://pictures.test/item/{n}" for n in range(5)]


@pytest.mark.parametrize(
    "body", ["", " ", "<", "<html></html>", "<p>", "text only", "<a href='/x'>x", "\0\0", "<!doctype html>"]
)
def test_small_and_empty_pages(body: str) -> None:
    text, links = read_html(body, "http://pictures.test/")[1:]
    assert text == {"text only": "text only", "<a href='/x'>x": "【0†x】"}.get(body, text)
    assert "【" not in text or links


@given(st.text(alphabet="<>/=\"' apdivlhtmbre&;!-【】†0\x00\u200b一", max_size=120))
@settings(max_examples=150, deadline=None)
def test_any_html_is_read(body: str) -> None:
    title, text, links = read_html(body, "http://pictures.test/")
    for number in range(9):
        assert f"【{number}†" not in text or number < len(links)
    assert visible_line(title) == title


def test_visible() -> None:
    assert visible("a\u200bb\ufeff \u202ec\u2066 d\u00ade\x1b[31mf\x1b]8;;x\x07g\ue000\x7f") == "ab c defg"
    assert (
        visible("👩\u200d👩\u200d👧 नमस्\u200dते a\u200db ❤\ufe0f x\ufe01\ufe02\ufe03")
        == "👩\u200d👩\u200d👧 नमस्\u200dते ab ❤\ufe0f x"
    )
    assert visible("\x1b]0;never ended, so it is text\x1bPx\x1b\\ and on") == "0;never ended, so it is text and on"
    assert visible("1\r\n2\r3\u20284\t5\xa06") == "1\n2\n3\n4\t5 6"
    assert visible("【1†x】") == "〖1†x〗"
    assert visible("".join(chr(0xE0000 + ord(c)) for c in "hidden")) == ""
    assert visible("a" + "".join(chr(0xE0100 + n) for n in b"hidden")) == "a"
    assert visible("\udc80x\ud800") == "x"
    assert visible_line(" a\n\nb " * 100, 10) == "a b a b a…"


@given(st.text(max_size=300), st.integers(1, 60))
def test_parts_are_the_text(text: str, most: int) -> None:
    parts = in_parts(text, most)
    assert "".join(parts) == text
    assert all(len(part) <= most for part in parts)
    assert all(parts) or parts == [""]


def test_words_of_links_without_their_numbers() -> None:
    page = Page("http://a/", "", "see 【0†this】 and 【12†that†b.example】", ("http://a/1",))
    assert page.without_links() == "see this and that"


@pytest.mark.parametrize(
    ("media_type", "body", "expected"),
    [
        ("text/plain", "a < b\n  c 【0†x】", "a < b\n  c 〖0†x〗"),
        ("application/json", '{"a": [1]}', '{"a": [1]}'),
        ("application/rss+xml", "<rss><item>x</item></rss>", "<rss><item>x</item></rss>"),
        ("text/markdown", "# H\n[l](http://x)", "# H\n[l](http://x)"),
        (None, "<!DOCTYPE html><p>hello", "hello"),
        (None, "plain", "plain"),
        ("application/octet-stream", "<html><p>hello", "hello"),
        ("application/xhtml+xml", "<?xml version='1.0' encoding='utf-8'?><html><body><p>hi</p></body></html>", "hi"),
    ],
)  # fmt: skip
def test_kinds_of_texts(media_type: str | None, body: str, expected: str) -> None:
    with site({"/a.txt": html(body, media_type=media_type)}) as public, browser(public) as tool:
        text = read(ask(tool, f'open_url("{public.at("/a.txt")}")'))
    assert text.partition("\n\n")[2] == expected


def test_a_page_in_gb18030() -> None:
    body = f"<html><head><title>标题</title></head><body><p>{CHINESE}{FILLER}</p></body></html>".encode("gb18030")
    with site({"/": html(body, media_type="text/html; charset=gb2312")}) as public, browser(public) as tool:
        text = read(ask(tool, f'open_url("{public.at("/")}")'))
    assert "TITLE: 标题" in text
    assert CHINESE in text

"""URLs are taken apart in one way only, and every address that is not on the public internet is known as such."""

from __future__ import annotations

import random

import pytest

from glm4.multimodal.addresses import (
    MAX_URL_LENGTH,
    AddressError,
    linked,
    may_connect,
    normal_host,
    parse_url,
    redirected,
)

PUBLIC = [
    "1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "100.128.0.1", "172.15.255.255", "172.32.0.1",
    "192.0.1.1", "198.17.255.255", "198.20.0.1", "223.255.255.255", "2606:4700:4700::1111", "2a00:1450:4001::1",
    "2400:cb00::1",
]  # fmt: skip

# Kind → addresses: first and last ones, and those that matter.
SPECIAL = {
    "unspecified": ["0.0.0.0", "0.255.255.255", "::"],
    "loopback": ["127.0.0.1", "127.255.255.254", "::1"],
    "private": ["10.0.0.0", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "fc00::1", "fdff::1"],
    "carrier-grade NAT": ["100.64.0.0", "100.100.100.200", "100.127.255.255"],
    "link-local": ["169.254.0.1", "169.254.169.254", "fe80::1", "fe80::1%eth0", "fe80::1%1", "febf::1"],
    "cloud services": ["168.63.129.16", "fd00:ec2::254"],
    "protocol assignments": ["192.0.0.0", "192.0.0.9", "192.0.0.170", "192.0.0.192", "192.0.0.255"],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.255", "2001:db8::1", "3fff::1", "3fff:fff::1"],
    "benchmarks": ["198.18.0.0", "198.19.255.255", "2001:2::1"],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"],
    "reserved": ["240.0.0.1", "255.255.255.254", "4000::1", "8000::1", "5f00::1", "fec0::1", "100::1"],
    "broadcast": ["255.255.255.255"],
    "v4-mapped": ["::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:169.254.169.254", "::ffff:8.8.8.8"],
    "v4-compatible": ["::127.0.0.1", "::8.8.8.8"],
    "v4-translated": ["::ffff:0:127.0.0.1"],
    "NAT64": ["64:ff9b::7f00:1", "64:ff9b::8.8.8.8", "64:ff9b:1::1", "64:ff9b:1:ffff::10.0.0.1"],
    "6to4": ["2002::1", "2002:7f00:1::", "2002:808:808::1", "192.88.99.1"],
    "Teredo": ["2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"],
    "ORCHID": ["2001:10::1", "2001:20::1", "2001:1::1"],
    "scope on a public one": ["2606:4700::1%eth0"],
    "not an address": ["", "localhost", "0x7f.1", "2130706433", "127.1", "0177.0.0.1", "1.2.3.4.5", "1.2.3.4/8"],
}


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_connected_to(address: str) -> None:
    assert may_connect(address)
    assert may_connect(address, private=True)


@pytest.mark.parametrize("kind", SPECIAL)
def test_no_other_address_may(kind: str) -> None:
    assert [address for address in SPECIAL[kind] if may_connect(address)] == []


def test_a_private_host_may_be_in_a_private_network_and_nowhere_else() -> None:
    allowed = {address for group in SPECIAL.values() for address in group if may_connect(address, private=True)}
    expected = {*SPECIAL["loopback"], *SPECIAL["private"], *SPECIAL["carrier-grade NAT"]} - {"100.100.100.200"}
    assert allowed == expected


@pytest.mark.parametrize(
    ("url", "same_as"),
    [
        ("http://example.com", "http://example.com/"),
        ("HTTP://EXAMPLE.com:80/A?b#c", "http://example.com/A?b"),
        ("https://example.com.:443?q=1", "https://example.com/?q=1"),
        ("http://example.com:443/", "http://example.com:443/"),
        ("http://example.com:/x", "http://example.com/x"),
        ("http://example.com:0080/", "http://example.com/"),
        ("http://a_b-c.example/%2e%2F/..", "http://a_b-c.example/%2e%2F/.."),
        ("http://bücher.example/Käse?ü", "http://xn--bcher-kva.example/K%C3%A4se?%C3%BC"),
        ("http://例え。テスト/図.png", "http://xn--r8jz45g.xn--zckzah/%E5%9B%B3.png"),
        ("http://ＥＸＡＭＰＬＥ.com/", "http://example.com/"),
        ("http://127.0.0.1/", "http://127.0.0.1/"),
        ("http://１２７.０.０.１/", "http://127.0.0.1/"),
        ("http://[2606:4700:0:0::FFFF]:8080/", "http://[2606:4700::ffff]:8080/"),
        ("http://[0:0::1]/", "http://[::1]/"),
        ("http://a/|^{}<>\"`'", "http://a/%7C%5E%7B%7D%3C%3E%22%60'"),
    ],
)
def test_a_url_has_one_normal_form(url: str, same_as: str) -> None:
    target = parse_url(url)
    assert target.url == same_as
    assert parse_url(target.url) == target


@pytest.mark.parametrize(
    "url",
    [
        "", "cat.png", "//example.com/", "file:///etc/passwd", "ftp://example.com/", "gopher://example.com/", "http:/a",
        "http:a", "http://", "http:///x", "http://?x", "http://:80/", "javascript:1", "httpſ://example.com/",
        # user names
        "http://127.0.0.1:80@evil.example/", "http://user@example.com/", "http://user:secret@example.com/",
        "http://example.com@/", "http://example.com:80@127.0.0.1:80/",
        # what others read as a slash, or skip
        "http://evil.example\\@127.0.0.1/", "http:\\\\127.0.0.1/", "http://example.com/\\..", "http://exam\tple.com/",
        "http://example.com/a\nb", "http://example.com/\r\nHost: 127.0.0.1", "\nhttp://example.com/", " http://a/",
        "http://a/ ", "http://a b/", "http://a/\x00", "http://a/\x7f", "http://a\u2028b/", "http://a/\ud800",
        "http://exam\u200bple.com/", "http://exam\u00adple.com/", "http://a/\u00a0",
        # hosts
        "http://%31%32%37.0.0.1/", "http://127.0.0.1%2f.example.com/", "http://example.com%00/", "http://a..b/",
        "http://.example.com/", "http://example.com../", "http://./", "http://exa$mple.com/", "http://*/",
        f"http://{'a' * 64}.com/", f"http://{'a.' * 130}com/", "http://fuß.example/", "http://a\u200db/",
        "http://xn--\u00fc/", "http://℀.example/", "http://a,b/", "http://a;b/", "http://[/", "http://]/", "http://[]/",
        "http://[::1/", "http://[127.0.0.1]/", "http://[::1%25eth0]/", "http://[::1%eth0]/", "http://[v1.a]/",
        "http://::1/", "http://[::1]x/", "http://[::1]:x/",
        # numbers that the system's resolver takes for addresses
        "http://2130706433/", "http://0x7f000001/", "http://0x7f.1/", "http://0177.0.0.1/", "http://127.1/",
        "http://127.0.1/", "http://0/", "http://127.0.0.1.1/", "http://127.0.0.256/", "http://127.0.0.01/",
        "http://example.0x/", "http://127.0.0.0x1/", "http://1.2.3.4../",
        # ports
        "http://a:0/", "http://a:65536/", "http://a:999999/", "http://a:-1/", "http://a:+80/", "http://a:8 0/",
        "http://a:８０/", "http://a:80:80/", "http://a:0x50/",
        "http://a/" + "x" * MAX_URL_LENGTH,
    ],
)  # fmt: skip
def test_what_could_be_misread_is_refused(url: str) -> None:
    with pytest.raises(AddressError):
        parse_url(url)


def test_whatever_passes_is_plain_ascii_that_names_one_host() -> None:
    draw = random.Random(5)
    pieces = [
        "http://", "https://", "a.example", "127.0.0.1", "[::1]", ":80", "/", "?", "#", "@", "\\", "%", "%2f", ".",
        "。",
        "：", "／", "＠", "ü", "ß", "\t", "\r\n", " ", "\u200b", "0x7f", "xn--", "-", "_", ":", "[", "]", "💩",
        "\ud800", "\u202e",
    ]  # fmt: skip
    passed = 0
    for _ in range(20_000):
        text = draw.choice(pieces[:2]) + "".join(draw.choices(pieces, k=draw.randint(1, 6)))
        try:
            target = parse_url(text)
        except AddressError:
            continue
        passed += 1
        assert target.url.isascii()
        assert target.url.isprintable()
        assert not set(target.url) & set(" \\")
        assert not set(target.host) & set("/?#@%[]")
        assert parse_url(target.url) == target
    assert passed > 1000


@pytest.mark.parametrize(
    ("location", "leads_to"),
    [
        ("/b?c", "https://example.com/b?c"),
        ("b", "https://example.com/a/b"),
        ("//other.example/x", "https://other.example/x"),
        ("https://other.example", "https://other.example/"),
        ("?d#e", "https://example.com/a/?d"),
        ("/K\xc3\xa4se", "https://example.com/K%C3%A4se"),  # UTF-8, as http.client decodes it
    ],
)
def test_redirects_are_relative_to_the_address(location: str, leads_to: str) -> None:
    assert redirected(parse_url("https://example.com/a/"), location).url == leads_to


@pytest.mark.parametrize(
    "location",
    ["http://example.com/", "file:///etc/passwd", "javascript:1", "//user@a/", "/a b", "\\\\a", "/a\r\n b", "/\xff",
     "https://[::1", "https://0x7f.1/", "ftp://a/", "//a:99999/"],
)  # fmt: skip
def test_redirects_are_parsed_like_any_other_address(location: str) -> None:
    with pytest.raises(AddressError, match="it redirects"):
        redirected(parse_url("https://example.com/a/"), location)


def test_hosts_are_compared_in_one_form() -> None:
    assert normal_host("Bücher.Example.") == normal_host("xn--bcher-kva.example")
    assert normal_host("[::1]") == normal_host("[0:0:0:0:0:0:0:1]") == "::1"


@pytest.mark.parametrize(
    ("href", "leads_to"),
    [
        ("b?x#y", "https://example.com/a/b?x"), ("/b", "https://example.com/b"), ("//b.example/", "https://b.example/"),
        ("http://b.example", "http://b.example/"), ("?q=a b", "https://example.com/a/?q=a%20b"), ("", "https://example.com/a/"),
        (" \n/b\t", "https://example.com/b"), ("/b\r\nc", "https://example.com/bc"), ("/ü", "https://example.com/%C3%BC"),
        ("../../x", "https://example.com/x"),
    ],
)  # fmt: skip
def test_links_lead_where_browsers_say(href: str, leads_to: str) -> None:
    assert linked(parse_url("https://example.com/a/"), href).url == leads_to


@pytest.mark.parametrize(
    "href",
    [
        "javascript:alert(1)", "java\nscript:alert(1)", " JavaScript:1", "data:text/html,x", "mailto:a@b",
        "file:///etc/passwd", "http://user@b.example/", "http://0x7f.1/", "http://[", "http://b.example:99999/",
        "\\\\b.example\\x", "/\x00", "/\u202e",
        "http://b.example/" + "x" * 9000, "vbscript:x", "blob:https://example.com/1", "tel:1",
    ],
)  # fmt: skip
def test_other_links_are_refused(href: str) -> None:
    with pytest.raises(AddressError):
        linked(parse_url("https://example.com/a/"), href)

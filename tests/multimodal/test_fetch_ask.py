"""Asking a service of the operator's: headers, a body, no redirects."""

from __future__ import annotations

import pytest

from glm4.errors import InvalidRequestError
from glm4.multimodal.fetch import Fetched
from glm4.version import __version__
from web_sites import NAME, fetcher_of, page, redirect, site

SECRET = "token-nobody-may-see"


def test_a_question_with_headers_and_a_body() -> None:
    with site({"/v1": page(b"{}", media_type="application/json; charset=UTF-8")}) as service:
        found = fetcher_of(service).ask(service.at("/v1"), headers={"X-Key": SECRET}, body=b'{"a": "\xc3\xa9"}')
        assert found == Fetched(b"{}", "application/json", service.at("/v1"), "utf-8")
        assert service.requests == [
            f"POST /v1 HTTP/1.1\r\nHost: {NAME}:{service.port}\r\nUser-Agent: glm4/{__version__}\r\n"
            "Accept: application/json, */*;q=0.1\r\nAccept-Encoding: identity\r\nConnection: close\r\n"
            f"X-Key: {SECRET}\r\nContent-Length: 11\r\n\r\n"
        ]
        assert service.bodies == [b'{"a": "\xc3\xa9"}']
        fetcher_of(service).ask(service.at("/v1"))
        assert service.requests[1].startswith("GET /v1 HTTP/1.1\r\n")
        assert "Content-Length" not in service.requests[1]


def test_a_large_body_arrives() -> None:
    body = bytes(range(256)) * 8192
    with site({"/": page(b"{}", media_type="application/json")}) as service:
        fetcher_of(service).ask(service.at("/"), body=body)
        assert service.bodies == [body]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed_as_it_could_take_the_key_elsewhere(status: int) -> None:
    with site({"/2": page()}) as other, site({"/": redirect(other.at("/2"), f"{status} X")}) as service:
        with pytest.raises(InvalidRequestError, match="it redirects to 'http") as caught:
            fetcher_of(service, other).ask(service.at("/"), headers={"X-Key": SECRET}, body=b"")
        assert SECRET not in str(caught.value)
    assert (len(service.requests), other.requests) == (1, [])


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Key": f"{SECRET}\r\nA: b"}, {"X-Key": f"{SECRET}\n"}, {"X-Key": f"{SECRET}é"}, {"X\r\nA": "b"},
        {"X: ": "b"}, {"": "b"},
    ],
)  # fmt: skip
def test_a_header_cannot_be_two_and_an_error_does_not_show_it(headers: dict[str, str]) -> None:
    with site({"/": page()}) as service:
        with pytest.raises(InvalidRequestError, match="must be printable ASCII") as caught:
            fetcher_of(service).ask(service.at("/"), headers=headers)
        assert SECRET not in str(caught.value)
    assert service.requests == []


def test_the_addresses_of_services_are_checked_like_all_others() -> None:
    with site({"/": page()}) as service:
        for host in ("127.0.0.1", "other.test"):
            with pytest.raises(InvalidRequestError, match="not public"):
                fetcher_of(service).ask(service.at("/", host), body=b"")
    assert service.requests == []


@pytest.mark.parametrize(
    ("media_type", "charset"),
    [
        ("text/html; charset=GBK", "gbk"), ('text/html; charset="utf-8"', "utf-8"), ("text/html", ""),
        ("text/html; charset=", ""), ("text/html; a=b; charset=latin-1 ; c=d", "latin-1"),
        (f"text/html; charset={'x' * 500}", "x" * 40), ("text/html; charset*=utf-8''gbk", "gbk"), (None, ""),
    ],
)  # fmt: skip
def test_the_charset_that_a_server_says(media_type: str | None, charset: str) -> None:
    with site({"/": page(b"<p>", media_type=media_type)}) as web:
        assert fetcher_of(web).fetch(web.at("/"), kinds=("text/",)).charset == charset

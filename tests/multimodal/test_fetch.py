"""What is sent, whom the fetcher connects to, and redirects. Every server is a real one on this machine.

`pictures.test` may be private in most tests, so that it can be this machine; every other name has to be public, and the
same servers under another name show the refusals.
"""

from __future__ import annotations

import gzip
import socket
import threading
from pathlib import Path

import pytest

from glm4.errors import InvalidRequestError
from glm4.multimodal.fetch import Fetched, Fetcher, FetchPolicy
from glm4.version import __version__
from web_sites import CERTIFICATE, NAME, PICTURE, WAIT, Names, fetcher_of, head, names, page, redirect, refusal, site

# What is sent, and what comes back


def test_a_picture_arrives_and_the_request_tells_nothing_about_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with site({"/a/cat.png?size=1": page()}) as pictures:
        found = fetcher_of(pictures).fetch(pictures.at("/a/cat.png?size=1#part"))
        assert found == Fetched(PICTURE, "image/png", pictures.at("/a/cat.png?size=1"))
        assert pictures.requests == [
            f"GET /a/cat.png?size=1 HTTP/1.1\r\nHost: {NAME}:{pictures.port}\r\nUser-Agent: glm4/{__version__}\r\n"
            "Accept: image/*, */*;q=0.1\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n"
        ]


def test_without_a_place_the_error_has_no_field() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Fetcher(FetchPolicy()).fetch("cat.png")
    assert caught.value.param is None
    assert str(caught.value).startswith("the address cannot be fetched: it is not an http://")


@pytest.mark.parametrize(
    ("answer", "media_type"),
    [
        (page(media_type="IMAGE/JPEG; charset=x"), "image/jpeg"),
        (page(media_type=None), ""),
        (page(media_type="application/octet-stream"), "application/octet-stream"),
        (page(media_type="binary/octet-stream"), "binary/octet-stream"),
        (head("Content-Type: image/png") + PICTURE, "image/png"),
        (head("Content-Type: image/png").replace(b"1.1", b"1.0") + PICTURE, "image/png"),
        (head("Transfer-Encoding: chunked") + b"5;a=b\r\n%b\r\n%x\r\n%b\r\n0\r\nT: x\r\n\r\n"
         % (PICTURE[:5], len(PICTURE) - 5, PICTURE[5:]), ""),
        (page(gzip.compress(PICTURE), "Content-Encoding: gzip"), "image/png"),
        (page(gzip.compress(PICTURE), "Content-Encoding: X-GZIP"), "image/png"),
        (head(status="100 Continue") + page(), "image/png"),
    ],
)  # fmt: skip
def test_forms_of_a_good_answer(answer: bytes, media_type: str) -> None:
    with site({"/": answer}) as pictures:
        found = fetcher_of(pictures).fetch(pictures.at("/"))
    assert (found.data, found.media_type) == (PICTURE, media_type)


def test_other_kinds_of_files_are_asked_for_by_type() -> None:
    with site(
        {"/": page(b"%PDF", media_type="application/pdf"), "/html": page(b"<p>", media_type="text/html")}
    ) as files:
        fetcher = fetcher_of(files)
        kinds = ("application/pdf", "text/html")
        assert fetcher.fetch(files.at("/"), kinds=kinds).data == b"%PDF"
        assert fetcher.fetch(files.at("/html"), kinds=kinds).media_type == "text/html"
        assert "sends a file of type 'application/pdf' instead of image/…" in refusal(fetcher, files.at("/"))
        assert "sends a web page instead of image/…; give" in refusal(fetcher, files.at("/html"))
    assert "Accept: application/pdf, text/html, */*;q=0.1\r\n" in files.requests[0]


# Whom it connects to


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "LOCALHOST.", "[::1]", "[::ffff:127.0.0.1]", "[::]", "0.0.0.0", "127.9.8.7",
        "１２７.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "0", "%31%32%37.0.0.1", "x@127.0.0.1",
        "127。0。0。1",
    ],
)  # fmt: skip
def test_this_machine_is_refused_under_every_name(host: str) -> None:
    with site({"/": page()}) as private:
        refusal(Fetcher(FetchPolicy(ports=(private.port,))), private.at("/", host))
    assert private.requests == []


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"], ["93.184.216.34", "127.0.0.1"], ["127.0.0.1", "93.184.216.34"], ["::1"], ["::ffff:127.0.0.1"],
        ["2606:4700::1", "fe80::1%1"], ["169.254.169.254"], ["no address"], [],
    ],
)  # fmt: skip
def test_a_name_is_refused_if_any_of_its_addresses_is_not_public(addresses: list[str]) -> None:
    with site({"/": page()}) as private:
        fetcher = fetcher_of(private, resolve=names(rebind_test=[addresses]))
        message = refusal(fetcher, private.at("/", "rebind.test"))
    # The same for all of them, and for names that do not exist.
    assert message.endswith("rebind.test is unknown, or has an address that is not public; send the file instead")
    assert private.requests == []


@pytest.mark.parametrize("addresses", [["169.254.169.254"], ["fd00:ec2::254"], ["224.0.0.1"], ["127.0.0.1", "0.0.0.0"]])
def test_a_private_host_cannot_be_a_metadata_service(addresses: list[str]) -> None:
    with site({"/": page()}) as private:
        fetcher = fetcher_of(private, resolve=Names({NAME: [addresses]}))
        assert "not public" in refusal(fetcher, private.at("/"))


def test_the_address_that_was_checked_is_the_one_connected_to() -> None:
    with (
        site({"/": redirect("/2"), "/2": page()}) as good,
        site({"/": page(b"evil"), "/2": page(b"evil")}, address="127.0.0.2", port=good.port) as evil,
    ):
        resolve = Names({NAME: [["127.0.0.1"], ["127.0.0.1"], ["127.0.0.2"]]})
        assert fetcher_of(good, resolve=resolve).fetch(good.at("/")).data == PICTURE
    assert resolve.asked == [NAME, NAME]  # once per hop
    assert (len(good.requests), evil.requests) == (2, [])


def test_a_name_that_turns_private_after_a_redirect_is_refused() -> None:
    with site({"/": redirect("/2"), "/2": page()}) as pictures:
        resolve = Names({NAME: [["127.0.0.1"], ["169.254.169.254"]]})
        assert "it redirects, and then pictures.test is unknown" in refusal(
            fetcher_of(pictures, resolve=resolve), pictures.at("/")
        )
    assert len(pictures.requests) == 1


def test_two_good_addresses_are_tried_in_order() -> None:
    with site({"/": page()}) as pictures:
        # Nobody listens at the first one.
        resolve = Names({NAME: [["127.0.0.3", "127.0.0.1"]]})
        assert fetcher_of(pictures, resolve=resolve).fetch(pictures.at("/")).data == PICTURE
        resolve = Names({NAME: [["127.0.0.3", "127.0.0.4"]]})
        assert "could not be reached" in refusal(fetcher_of(pictures, resolve=resolve), pictures.at("/"))


def test_only_hosts_and_ports_of_the_policy() -> None:
    hosts = ("cdn.example", ".example.org", "Bücher.example", "[2606:4700::1]", "1.1.1.1")
    policy = FetchPolicy(allowed_hosts=hosts, private_hosts=(NAME,))
    for host in (
        "cdn.example",
        "example.org",
        "a.b.example.org",
        "xn--bcher-kva.example",
        "2606:4700::1",
        "1.1.1.1",
        NAME,
    ):
        assert policy.allows(host)
    for host in (
        "example",
        "a.cdn.example",
        "cdn.example.evil",
        "evilexample.org",
        "1.1.1.2",
        "::1",
        "a.pictures.test",
    ):
        assert not policy.allows(host)
    assert not FetchPolicy(allowed_hosts=()).allows("cdn.example")
    assert FetchPolicy().allows("cdn.example")
    assert not FetchPolicy().is_private(NAME)

    resolve = names()
    fetcher = Fetcher(policy, resolve=resolve)
    assert "may not fetch from other.example; ask its operator" in refusal(fetcher, "http://other.example/")
    assert "port 22 is not allowed; 80, 443 are" in refusal(fetcher, "http://cdn.example:22/")
    assert "port 8000 is not allowed" in refusal(fetcher, f"http://{NAME}:8000/")
    assert resolve.asked == []  # not even its name server hears of it


@pytest.mark.parametrize(
    "entry", ["", ".", "*", "*.example.com", "http://example.com", "a/b", "a:80", "::1", "0x7f.1", "a b"]
)
def test_a_policy_with_something_else_than_hosts_is_refused(entry: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"is not a host; write a name such as example\.com"):
        FetchPolicy(allowed_hosts=(entry,))
    with pytest.raises(InvalidRequestError, match="is not a host"):
        FetchPolicy(private_hosts=(entry,))


def test_a_user_agent_cannot_add_headers() -> None:
    with pytest.raises(InvalidRequestError, match="user agent"):
        FetchPolicy(user_agent="a\r\nCookie: b")


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(status: int) -> None:
    with site(
        {"/a/1": redirect("2?x", f"{status} X"), "/a/2?x": redirect(f"//{NAME}:PORT/3"), "/3": page()}
    ) as pictures:
        pictures.answers = {**pictures.answers, "/a/2?x": redirect(f"//{NAME}:{pictures.port}/3")}
        assert fetcher_of(pictures).fetch(pictures.at("/a/1")).url == pictures.at("/3")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "rebind.test", "unknown.test", "0x7f.1", f"a@{NAME}", f"a.{NAME}"]
)
def test_a_redirect_to_a_private_address_is_refused(host: str) -> None:
    with site({"/2": page()}) as private, site({"/": redirect(private.at("/2", host))}) as public:
        resolve = names(rebind_test=[["93.184.216.34", "127.0.0.1"]], localhost=[["127.0.0.1"]])
        assert "it redirects" in refusal(fetcher_of(public, private, resolve=resolve), public.at("/"))
    assert len(public.requests) == 1
    assert private.requests == []


def test_a_redirect_to_another_port_is_refused() -> None:
    with site({"/": page()}) as private, site({"/": redirect(private.at("/"))}) as public:
        assert f"port {private.port} is not allowed" in refusal(fetcher_of(public), public.at("/"))
    assert private.requests == []


def test_redirects_in_a_circle_end() -> None:
    with site({"/": redirect("/2"), "/2": redirect("/")}) as pictures:
        assert "it redirects more than 5 times" in refusal(fetcher_of(pictures), pictures.at("/"))
    assert len(pictures.requests) == 6


def test_five_redirects_are_followed_and_six_are_not() -> None:
    answers = {f"/{number}": redirect(f"/{number + 1}") for number in range(6)}
    with site({**answers, "/6": page()}) as pictures:
        assert fetcher_of(pictures).fetch(pictures.at("/1")).data == PICTURE
        assert "more than 5 times" in refusal(fetcher_of(pictures), pictures.at("/0"))


# Encryption


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The certificate of `pictures.test` is trusted, as an operator would have it."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CERTIFICATE))
    return CERTIFICATE


@pytest.mark.usefixtures("trusted")
def test_https_asks_for_the_name_and_not_for_the_address() -> None:
    with site({"/": page()}, secure=True) as pictures:
        assert fetcher_of(pictures).fetch(pictures.at("/")).data == PICTURE
    assert pictures.server_names == [NAME]
    assert f"Host: {NAME}:{pictures.port}\r\n" in pictures.requests[0]


def test_a_certificate_nobody_vouches_for_is_refused() -> None:
    with site({"/": page()}, secure=True) as pictures:
        assert f"the certificate of {NAME} is not valid: self" in refusal(fetcher_of(pictures), pictures.at("/"))
    assert pictures.requests == []


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("host", ["other.test", "127.0.0.1"])
def test_the_certificate_of_another_name_is_refused(host: str) -> None:
    with site({"/": page()}, secure=True) as pictures:
        policy = FetchPolicy(private_hosts=(host,), ports=(pictures.port,), total_timeout=WAIT)
        fetcher = Fetcher(policy, resolve=Names({host: [["127.0.0.1"]]}))
        assert f"the certificate of {host} is not valid" in refusal(fetcher, pictures.at("/", host))
    assert pictures.requests == []


@pytest.mark.usefixtures("trusted")
def test_a_redirect_from_https_to_http_is_refused_and_the_other_way_is_not() -> None:
    with site({"/2": page()}) as plain, site({"/1": redirect(plain.at("/2")), "/2": page()}, secure=True) as secret:
        plain.answers = {**plain.answers, "/1": redirect(secret.at("/2"))}
        fetcher = fetcher_of(plain, secret)
        assert fetcher.fetch(plain.at("/1")).url == secret.at("/2")
        assert "from https to unencrypted http" in refusal(fetcher, secret.at("/1"))
    assert len(plain.requests) == 1


@pytest.mark.usefixtures("trusted")
def test_https_of_a_server_that_speaks_http_and_the_other_way_around() -> None:
    with site({"/": page()}) as plain, site({"/": page()}, secure=True) as secret:
        fetcher = fetcher_of(plain, secret)
        # The plain server waits for the end of a request that never comes.
        hurried = fetcher_of(plain, total_timeout=0.5)
        assert "in time" in refusal(hurried, plain.at("/").replace("http:", "https:"))
        assert "try again" in refusal(fetcher, secret.at("/").replace("https:", "http:"))


def test_a_handshake_that_never_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        policy = FetchPolicy(private_hosts=(NAME,), ports=(port,), total_timeout=0.5)
        assert "in time" in refusal(Fetcher(policy, resolve=names()), f"https://{NAME}:{port}/")


def test_threads_share_a_fetcher() -> None:
    with site({f"/{number}": page(b"%d" % number) for number in range(24)}) as pictures:
        fetcher = fetcher_of(pictures)
        found: dict[int, bytes] = {}

        def fetch(number: int) -> None:
            found[number] = fetcher.fetch(pictures.at(f"/{number}")).data

        threads = [threading.Thread(target=fetch, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
    assert found == {number: b"%d" % number for number in range(24)}

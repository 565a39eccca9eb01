"""Fetching from servers that send too much, too slowly, or nothing that can be read."""

from __future__ import annotations

import gzip
import socket
import threading
import time
import tracemalloc
import zlib

import pytest

from glm4.multimodal.fetch import Fetcher, FetchPolicy
from web_sites import NAME, PICTURE, WAIT, drip, fetcher_of, flood, head, names, page, redirect, refusal, site


def test_a_file_of_the_size_allowed_and_one_byte_more() -> None:
    for size, allowed in ((1000, True), (1001, False)):
        body = bytes(size)
        chunked = head("Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
        answers = {
            "/length": page(body),
            "/close": head() + body,
            "/chunked": chunked,
            "/gzip": page(gzip.compress(body), "Content-Encoding: gzip"),
        }
        with site(answers) as pictures:
            fetcher = fetcher_of(pictures, max_nbytes=1000)
            for path in answers:
                if allowed:
                    assert fetcher.fetch(pictures.at(path)).data == body
                else:
                    assert "larger than 1,000 bytes" in refusal(fetcher, pictures.at(path))


@pytest.mark.parametrize(
    ("beginning", "block", "problem"),
    [
        (head(), bytes(1 << 16), "larger than"),
        (head("Content-Length: 9999999999"), bytes(1 << 16), "larger than"),
        (head("Content-Length: -5"), bytes(1 << 16), "larger than"),
        (head("Content-Length: x"), bytes(1 << 16), "larger than"),
        (head("Transfer-Encoding: chunked"), b"10000\r\n" + bytes(1 << 16) + b"\r\n", "larger than"),
        (head("Transfer-Encoding: chunked"), b"1;" + b"x" * 60_000 + b"\r\na\r\n", "malformed"),
        (head("Transfer-Encoding: chunked") + b"0\r\n", b"Trailer: x\r\n" * 5000, "malformed"),
        (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 50, "malformed"),
        (b"HTTP/1.1 200 OK\r\nA: ", b"x" * 60_000, "malformed"),
        (b"HTTP/1.1 200 OK\r\n", b"A: " + b"x" * 30_000 + b"\r\n", "malformed"),
        (b"HTTP/1.1 200 ", b"x" * 60_000, "malformed"),
        (b"", head("A: b", status="100 Continue"), "malformed"),
    ],
)
def test_a_flood_is_cut_off(beginning: bytes, block: bytes, problem: str) -> None:
    with site({"/": flood(beginning, block)}) as pictures:
        assert problem in refusal(fetcher_of(pictures), pictures.at("/"))


def test_an_announced_size_is_believed_before_anything_is_read() -> None:
    with site({"/": drip(head("Content-Length: 2000000"))}) as pictures:
        assert "larger than 1,048,576 bytes" in refusal(fetcher_of(pictures), pictures.at("/"))


@pytest.mark.parametrize("layers", [1, 2])
def test_a_gzip_bomb_is_refused_within_the_bound(layers: int) -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    encoding = ", ".join(["gzip"] * layers)
    with site({"/": page(bomb, f"Content-Encoding: {encoding}")}) as pictures:
        tracemalloc.start()
        try:
            message = refusal(fetcher_of(pictures), pictures.at("/"))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 8 << 20  # the first block alone is 64 MiB
    assert ("larger than 1,048,576" if layers == 1 else "compressed in an unknown way ('gzip, gzip')") in message


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nX: ",
        head("Content-Type: image/png"),
        head("Content-Type: image/png", "Content-Length: 1000000"),
        head("Transfer-Encoding: chunked") + b"100000\r\n",
        head("Transfer-Encoding: chunked") + b"1; ",
    ],
)
def test_what_comes_drop_by_drop_ends_at_the_deadline(beginning: bytes) -> None:
    with site({"/": drip(beginning)}) as pictures:
        start = time.monotonic()
        message = refusal(fetcher_of(pictures, total_timeout=0.6), pictures.at("/"))
    assert "did not deliver it in time" in message
    assert time.monotonic() - start < WAIT / 2  # the server itself would go on for ever


def test_the_deadline_is_for_all_hops_together() -> None:
    def slowly(_: object, connection: socket.socket) -> None:
        time.sleep(0.3)
        connection.sendall(redirect("/"))

    with site({"/": slowly}) as pictures:
        assert "in time" in refusal(fetcher_of(pictures, total_timeout=0.8), pictures.at("/"))
    assert len(pictures.requests) <= 3


def test_a_name_server_that_does_not_answer_costs_no_more_than_the_deadline() -> None:
    over = threading.Event()

    def resolve(host: str, port: int) -> list[str]:
        over.wait(WAIT)
        return ["93.184.216.34"]

    fetcher = Fetcher(FetchPolicy(total_timeout=0.05), resolve=resolve)
    before = threading.active_count()
    for _ in range(20):
        assert "in time" in refusal(fetcher, "http://slow.example/")
    # Lookups that were given up are not piled up.
    assert 0 < threading.active_count() - before <= 16
    over.set()
    patient = Fetcher(FetchPolicy(private_hosts=(NAME,), ports=(9,)), resolve=names())
    assert "could not be reached" in refusal(patient, f"http://{NAME}:9/")


# What a server may get wrong


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff\xfe garbage \r\n\r\n" * 9,
        b"<html>as HTTP/0.9 had it</html>",
        b"HTTP/1.1 abc\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        page()[:-5],
        head("Transfer-Encoding: chunked") + b"zz\r\nabc",
        head("Transfer-Encoding: chunked") + b"-5\r\nabc\r\n0\r\n\r\n",
        head("Transfer-Encoding: chunked") + b"5\r\nabc",
        head("Transfer-Encoding: chunked") + b"5\r\nabcde\r\n",
        page(gzip.compress(PICTURE)[:-9], "Content-Encoding: gzip"),
        page(gzip.compress(PICTURE) + b"more", "Content-Encoding: gzip"),
        page(b"not gzip at all", "Content-Encoding: gzip"),
        page(b"", "Content-Encoding: gzip"),
    ],
)
def test_a_malformed_or_incomplete_answer_is_refused(answer: bytes) -> None:
    with site({"/": answer}) as pictures:
        message = refusal(fetcher_of(pictures), pictures.at("/"))
    assert "sent a malformed or incomplete answer; try again" in message or "broke off; try again" in message


@pytest.mark.parametrize(
    "status", ["404 Not Found", "204 No Content", "206 Partial Content", "304 X", "401 X", "500 X", "302 X"]
)
def test_another_status_than_200_is_refused(status: str) -> None:
    with site({"/": page(status=status)}) as pictures:
        assert f"{NAME} answers HTTP {status[:3]}" in refusal(fetcher_of(pictures), pictures.at("/"))


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "compress", "gzip;q=1", "\xff"])
def test_an_unknown_compression_is_refused(encoding: str) -> None:
    with site({"/": page(PICTURE, f"Content-Encoding: {encoding}")}) as pictures:
        assert "compressed in an unknown way" in refusal(fetcher_of(pictures), pictures.at("/"))


def test_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    fetcher = Fetcher(FetchPolicy(private_hosts=(NAME,), ports=(port,)), resolve=names())
    assert f"{NAME} could not be reached" in refusal(fetcher, f"http://{NAME}:{port}/")

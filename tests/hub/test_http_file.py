"""One file over HTTP: reachability within seconds, resume, and what a server may get wrong."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_servers import FakeHub, make_bytes

from glm4.errors import DownloadError, HashMismatchError
from glm4.hub import http_file

DATA = make_bytes(1_000_000, seed=7)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub("org/toy", {"toy.gguf": DATA}).serving() as serving:
        yield serving


def url_of(hub: FakeHub, name: str = "toy.gguf") -> str:
    return f"{hub.url}/org/toy/resolve/main/{name}"


def probe(url: str, nbytes: int = len(DATA)) -> str | None:
    return http_file.probe(url, {}, nbytes, SHA256)


def test_probe_finds_the_file_and_reads_one_byte(hub: FakeHub) -> None:
    assert probe(url_of(hub)) is None
    assert hub.requests == [("HEAD", "/org/toy/resolve/main/toy.gguf"), ("GET", "/org/toy/resolve/main/toy.gguf")]
    assert hub.ranges == ["bytes=0-0"]


def test_probe_of_a_server_that_never_answers_costs_at_most_5_seconds(hub: FakeHub) -> None:
    hub.stall = True
    start = time.monotonic()
    reason = probe(url_of(hub))
    assert time.monotonic() - start < 5
    assert reason is not None
    assert "no answer" in reason


def test_probe_of_a_closed_port_is_quick() -> None:
    start = time.monotonic()
    assert "cannot be reached" in str(probe("http://127.0.0.1:9/x"))
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(("status", "reason"), [(401, "access denied"), (404, "no such file"), (503, "server failed")])
def test_probe_says_what_the_server_said(hub: FakeHub, status: int, reason: str) -> None:
    hub.status = status
    assert reason in str(probe(url_of(hub)))


def test_probe_refuses_other_schemes() -> None:
    assert "not a web address" in str(probe("file:///etc/passwd"))


def test_fetch_continues_after_broken_connections(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut_after = [300_000, 200_000]
    seen: list[float] = []
    partial = tmp_path / "partial"
    http_file.fetch(url_of(hub), {}, partial, len(DATA), seen.append)
    assert partial.read_bytes() == DATA
    assert hub.ranges == ["bytes=300000-", "bytes=500000-"]
    assert seen == sorted(seen)


def test_fetch_continues_a_file_from_an_earlier_run(hub: FakeHub, tmp_path: Path) -> None:
    partial = tmp_path / "partial"
    partial.write_bytes(DATA[:999_000])
    http_file.fetch(url_of(hub), {}, partial, len(DATA), lambda done: None)
    assert partial.read_bytes() == DATA
    assert hub.ranges == ["bytes=999000-"]


def test_fetch_from_a_server_without_ranges_starts_over(hub: FakeHub, tmp_path: Path) -> None:
    hub.ignore_range = True
    partial = tmp_path / "partial"
    partial.write_bytes(b"x" * 500)
    http_file.fetch(url_of(hub), {}, partial, len(DATA), lambda done: None)
    assert partial.read_bytes() == DATA


def test_fetch_gives_up_and_keeps_what_came(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.cut_after = [300_000, 0, 0, 0, 0, 0]
    partial = tmp_path / "partial"
    with pytest.raises(DownloadError, match="broke off"):
        http_file.fetch(url_of(hub), {}, partial, len(DATA), lambda done: None)
    assert partial.read_bytes() == DATA[:300_000]


def test_fetch_refuses_a_file_of_another_size(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(HashMismatchError, match="1,000,000 bytes, the published file 999,999"):
        http_file.fetch(url_of(hub), {}, tmp_path / "partial", len(DATA) - 1, lambda done: None)


def test_token_is_sent_to_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    http_file.fetch(url_of(hub), {"Authorization": "Bearer t"}, tmp_path / "p", len(DATA), lambda done: None)
    assert hub.tokens == ["Bearer t"]


def test_token_is_not_sent_on_after_a_redirect(hub: FakeHub, tmp_path: Path) -> None:
    with FakeHub("org/toy", {}).serving() as front:
        front.redirect = url_of(hub)
        assert http_file.probe(url_of(front), {"Authorization": "Bearer t"}, len(DATA), SHA256) is None
        http_file.fetch(url_of(front), {"Authorization": "Bearer t"}, tmp_path / "p", len(DATA), lambda done: None)
    assert (tmp_path / "p").read_bytes() == DATA
    assert set(front.tokens) == {"Bearer t"}
    assert set(hub.tokens) == {""}


def test_probe_reads_the_hash_the_hub_announces(hub: FakeHub) -> None:
    with FakeHub("org/toy", {}).serving() as front:
        front.redirect = url_of(hub)
        front.announced = "0" * 64
        assert "not the version we know" in str(probe(url_of(front)))
        front.announced = SHA256
        assert probe(url_of(front)) is None

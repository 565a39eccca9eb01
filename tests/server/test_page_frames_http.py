"""What the page opens beside the transcript: artifacts in frames, and pages of documents."""

from __future__ import annotations

from pathlib import Path

import pytest
from page_clients import ANN, logged_in, page_server

from glm4.documents.document import Block, Document
from glm4.sandbox.launch import unavailable
from glm4.server.page.artifacts import MAX_NBYTES
from glm4.server.page.documents import PIECE_CHARACTERS, pages_of
from glm4.server.page.kept_artifacts import MAX_ALL_NBYTES, MOST_OF_ONE, MOST_OF_ONE_NBYTES, Artifacts

FRAME = {"Sec-Fetch-Dest": "iframe"}


def test_an_artifact_is_for_frames_only_and_has_a_policy_of_its_own(tmp_path: Path) -> None:
    with page_server(tmp_path, ANN) as live, logged_in(live, ANN) as client:
        source = "<!doctype html><html><body>日本 <script>go()</script>"
        made = client.post("/ui/artifacts", json={"kind": "html", "source": source})
        path = f"/ui/artifacts/{made.json()['id']}"
        for dest in ({}, {"Sec-Fetch-Dest": "document"}, {"Sec-Fetch-Dest": "image"}, {"Sec-Fetch-Dest": ""}):
            assert client.get(path, headers=dest).status_code == 403
        assert client.get(path, headers=[("Sec-Fetch-Dest", "iframe"), ("Sec-Fetch-Dest", "object")]).status_code == 403
        shown = client.get(path, headers=FRAME)
        assert shown.status_code == 200
        assert shown.text.endswith(source)
        assert shown.text.startswith("<!doctype html><script>")
        assert shown.headers["content-type"] == "text/html; charset=utf-8"
        rules = dict(rule.split(" ", 1) for rule in shown.headers["content-security-policy"].split("; "))
        assert rules["sandbox"] == "allow-scripts"
        assert rules["default-src"] == rules["connect-src"] == rules["form-action"] == "'none'"
        assert rules["frame-ancestors"] == "'self'"
        assert "http" not in shown.headers["content-security-policy"]
        assert shown.headers["cache-control"] == "no-store"
        drawn = client.post("/ui/artifacts", json={"kind": "svg", "source": "<svg onload='go()'></svg>"}).json()["id"]
        assert client.get(f"/ui/artifacts/{drawn}", headers=FRAME).text.endswith("<svg onload='go()'></svg>")
        assert client.get("/ui/artifacts/" + "0" * 32, headers=FRAME).status_code == 404


def test_an_artifact_that_cannot_be_shown_says_why(tmp_path: Path) -> None:
    with page_server(tmp_path) as live, live.client() as client:
        for body, status in (
            ({"kind": "js", "source": "x"}, 400), ({"source": "x"}, 400), ({"kind": [], "source": "x"}, 400),
            ({"kind": "svg"}, 400), ({"kind": "svg", "source": 3}, 400), ([], 400),
            ({"kind": "html", "source": "é" * (MAX_NBYTES // 2)}, 413),
        ):  # fmt: skip
            assert client.post("/ui/artifacts", json=body).status_code == status, str(body)[:50]


def test_artifacts_are_bounded_for_each_owner_and_in_all() -> None:
    kept = Artifacts()
    first = kept.keep("ann", b"first")
    other = kept.keep("bob", b"bob's")
    names = [kept.keep("ann", b"%d" % n) for n in range(MOST_OF_ONE - 1)]
    assert kept.find("ann", first) == b"first"  # the last one used
    assert kept.find("bob", first) is None
    kept.keep("ann", b"one more")
    assert kept.find("ann", names[0]) is None
    assert kept.find("ann", first) == b"first"
    assert kept.find("bob", other) == b"bob's"
    for _ in range(100):  # of one owner: others keep theirs
        kept.keep("eve", bytes(MOST_OF_ONE_NBYTES // 8))
    assert kept.find("bob", other) == b"bob's"
    assert kept.find("ann", first) == b"first"
    large = [kept.keep(f"owner {n}", bytes(MOST_OF_ONE_NBYTES)) for n in range(5)]
    left = MAX_ALL_NBYTES // MOST_OF_ONE_NBYTES
    assert [kept.find(f"owner {n}", name) is not None for n, name in enumerate(large)] == [
        n >= 5 - left for n in range(5)
    ]
    assert kept.find("bob", other) is None


def test_a_document_without_pages_is_shown_in_pieces() -> None:
    blocks = tuple(Block(f"block {n} " * 200) for n in range(40))
    document = Document("a.txt", "text/plain", "0", blocks)
    pieces = pages_of(document)
    assert [index for piece in pieces for index in piece] == list(range(40))
    assert all(sum(len(blocks[index].text) for index in piece) <= 2 * PIECE_CHARACTERS for piece in pieces)
    assert len(pieces) > 1
    assert pages_of(Document("a.pdf", "application/pdf", "0", (Block("x", page=3),), num_pages=3)) == [[], [], [0]]
    assert pages_of(Document("a.pdf", "application/pdf", "0", (), num_pages=2)) == [[], []]


def test_a_page_of_a_document_is_shown(tmp_path: Path) -> None:
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)
    text = "# Plan\n\n" + "Buy *milk*. " * 3000 + "\n\n## Later\n\nThe cat\nsleeps.\n"
    with page_server(tmp_path) as live, live.client() as client:
        headers = {"Content-Type": "application/octet-stream"}
        sent = client.post("/v1/agent/files?name=notes.md", content=text.encode(), headers=headers).json()
        path = f"/ui/documents/{sent['file']}"
        first = client.get(path).json()
        assert (first["name"], first["media_type"], first["page"], first["section"]) == (
            "notes.md", "text/markdown", 1, "Plan",
        )  # fmt: skip
        assert first["text"].startswith("# Plan\n\nBuy *milk*.")
        assert (first["pages"], first["numbered"], first["truncated"]) == (2, False, False)
        found = client.get(path, params={"find": "cat sleeps"}).json()
        assert (found["page"], found["section"]) == (2, "Later")
        assert found == client.get(path, params={"page": 2}).json()
        assert client.get(path, params={"page": 3}).status_code == 404
        for wrong in ({"page": "0"}, {"page": "x"}, {"page": "-1"}, {"page": "9" * 9}, {"find": "x" * 3000}):
            assert client.get(path, params=wrong).status_code == 400
        assert client.get("/ui/documents/" + "0" * 64).status_code == 404
        picture = client.post("/v1/agent/files?name=a.png", content=b"\x89PNG\r\n\x1a\n", headers=headers).json()
        assert client.get(f"/ui/documents/{picture['file']}").status_code == 400

"""Helpers of the hub tests: wheels made on the spot, a loopback server that answers like a model hub."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from glm4.hub.starter_sources import HubFile, StarterSource, WheelPart

SOURCE_FOLDER = Path(__file__).resolve().parents[2] / "src"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_bytes(count: int, seed: int) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(count)


def make_wheel(folder: Path, number: int, content: bytes) -> WheelPart:
    """A wheel pip accepts, with `content` as its data member."""
    package = f"glm4_test_part{number}"
    member = f"{package}/data/part{number:02d}.bin"
    info = f"{package}-1.0.dist-info"
    files = {
        member: content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},sha256={_record_hash(data)},{len(data)}\n" for name, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / f"{package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    wheel = path.read_bytes()
    return WheelPart(
        project=package.replace("_", "-"),
        version="1.0",
        filename=path.name,
        nbytes=len(wheel),
        sha256=hashlib.sha256(wheel).hexdigest(),
        member=member,
        member_nbytes=len(content),
    )


def _record_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def make_source(index: Path, sizes: tuple[int, ...] = (100_000, 60_000)) -> tuple[StarterSource, bytes]:
    """A starter model in as many wheels as `sizes`, put into the folder `index`; and its bytes."""
    index.mkdir(exist_ok=True)
    pieces = [make_bytes(size, seed) for seed, size in enumerate(sizes)]
    whole = b"".join(pieces)
    source = StarterSource(
        name="toy",
        nbytes=len(whole),
        sha256=hashlib.sha256(whole).hexdigest(),
        hub=HubFile("org/toy", "toy.gguf"),
        parts=tuple(make_wheel(index, number, piece) for number, piece in enumerate(pieces, start=1)),
        license="Apache-2.0",
        model="Toy-1M",
        authors="the testers",
        origin="https://example.invalid/toy",
        changes="none",
    )
    return source, whole


def environment(tmp_path: Path, index: Path | None = None, endpoint: str | None = None) -> dict[str, str]:
    """Variables for a process that sees nothing of this machine's caches, hubs and package indexes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "HF_", "GLM4_"))}
    return kept | {
        "GLM4_HOME": str(tmp_path / "home"),
        "HF_HOME": str(tmp_path / "hf"),
        # Nothing listens on port 9 of loopback: refused at once.
        "HF_ENDPOINT": endpoint or "http://127.0.0.1:9",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index or tmp_path / "nothing"),
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(SOURCE_FOLDER),
    }


def run_python(code: str, env: dict[str, str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=timeout)


class FakeHub:
    """A model hub on loopback: the listing and file routes of the Hugging Face API for one repository.

    Attributes:
        files: path in the repository → content.
        status: answer every request with this status and `error_code` instead, when set.
        stall: accept requests and never answer.
        redirect: send everybody there, announcing the sha256 `announced` as the hub does for large files.
        cut_after: close the connection of file downloads after so many bytes, once per entry.
        held: a file that is sent only when the block ends, or `released` is set.
        ignore_range: send whole files whatever is asked.
        requests: (method, path) of everything asked.
    """

    def __init__(self, repo_id: str, files: dict[str, bytes]) -> None:
        self.repo_id = repo_id
        self.files = files
        self.status = 0
        self.error_code = ""
        self.stall = False
        self.redirect = ""
        self.announced = ""
        self.cut_after: list[int] = []
        self.held = ""
        self.ignore_range = False
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str] = []
        self.tokens: list[str] = []
        self.released = threading.Event()
        self.url = ""

    @contextlib.contextmanager
    def serving(self) -> Iterator[FakeHub]:
        """Serve until the block ends."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            self.released.set()
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def do_HEAD(self) -> None:
        self._answer(send_body=False)

    def do_GET(self) -> None:
        self._answer(send_body=True)

    def _answer(self, send_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        hub = self.hub
        hub.requests.append((self.command, path))
        hub.tokens.append(self.headers.get("Authorization", ""))
        if hub.stall:
            hub.released.wait(30)
            self.close_connection = True
            return
        if hub.status:
            self._send(hub.status, b"{}", {"X-Error-Code": hub.error_code} if hub.error_code else {}, send_body)
            return
        if hub.redirect:
            announced = {"X-Linked-Etag": f'"{hub.announced}"'} if hub.announced else {}
            self._send(302, b"", {"Location": hub.redirect, **announced}, send_body)
            return
        listing = f"/api/models/{hub.repo_id}"
        if path in (listing, f"{listing}/revision/main"):
            self._send(200, json.dumps(self._info()).encode(), {"Content-Type": "application/json"}, send_body)
        elif path.startswith(f"{listing}/tree/"):
            self._send(200, json.dumps(self._tree()).encode(), {"Content-Type": "application/json"}, send_body)
        elif path.startswith(f"/{hub.repo_id}/resolve/") and path.split("/", 5)[5] in hub.files:
            name = path.split("/", 5)[5]
            if name == hub.held and send_body:
                hub.released.wait(120)
            self._file(hub.files[name], send_body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound" if "/api/" in path else "EntryNotFound"}, send_body)

    def _info(self) -> dict[str, object]:
        siblings = [
            {"rfilename": name, "size": len(data), "blobId": _etag(data)} for name, data in self.hub.files.items()
        ]
        return {"id": self.hub.repo_id, "modelId": self.hub.repo_id, "sha": COMMIT, "siblings": siblings, "tags": []}

    def _tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
            for name, data in self.hub.files.items()
        ]

    def _file(self, data: bytes, send_body: bool) -> None:
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        start, end = 0, len(data)
        status = 200
        if wanted and send_body and not self.hub.ignore_range:
            self.hub.ranges.append(wanted)
            first, last = wanted.removeprefix("bytes=").split("-")
            start, end = int(first), int(last) + 1 if last else len(data)
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        self._send(status, data[start:end], headers, send_body, may_cut=end - start > 1)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], send_body: bool, *, may_cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not send_body:
            return
        if may_cut and self.hub.cut_after:
            self.wfile.write(body[: self.hub.cut_after.pop(0)])
            self.close_connection = True
            return
        with contextlib.suppress(OSError):
            self.wfile.write(body)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()

"""LangChain's suite for sandboxes (langchain-tests, with deepagents' protocol) against `glm4.sandbox`.

Each command runs in a sandbox of its own; what lasts is a folder, mounted as /data.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from deepagents.backends.protocol import ExecuteResponse, FileDownloadResponse, FileUploadResponse
from deepagents.backends.sandbox import BaseSandbox
from langchain_tests.integration_tests import SandboxIntegrationTests

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "src"))

from glm4.sandbox.command import give_to_sandbox
from glm4.sandbox.launch import SandboxProcess, unavailable
from glm4.sandbox.limits import Limits, Mount

TIMEOUT = 60.0
MISSING, FOLDER, CLOSED = 81, 82, 83
ERRORS = {MISSING: "file_not_found", FOLDER: "is_directory", CLOSED: "permission_denied"}
DOWNLOAD = f"[ -e {{0}} ] || exit {MISSING}; [ ! -d {{0}} ] || exit {FOLDER}; [ -r {{0}} ] || exit {CLOSED}; cat {{0}}"
UPLOAD = f"mkdir -p {{1}} && [ ! -d {{0}} ] || exit {FOLDER}; cat > {{0}} || exit {CLOSED}"


class Backend(BaseSandbox):
    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="glm4-test-"))
        give_to_sandbox(self.folder)
        (self.folder / "bin").mkdir()
        (self.folder / "bin/python").symlink_to("/usr/bin/python3")  # by which name the suite starts it
        self.name = uuid.uuid4().hex

    @property
    def id(self) -> str:
        return self.name

    def execute(self, command: str, *, timeout: int | None = None) -> ExecuteResponse:
        output, status = self.run(f"exec 2>&1\n{command}", b"", timeout or TIMEOUT)
        return ExecuteResponse(output.decode("utf-8", "replace"), status)

    def upload_files(self, files: list[tuple[str, bytes]]) -> list[FileUploadResponse]:
        return [FileUploadResponse(path, self.upload(path, content)) for path, content in files]

    def upload(self, path: str, content: bytes) -> str | None:
        if not PurePosixPath(path).is_absolute():
            return "invalid_path"
        command = UPLOAD.format(shlex.quote(path), shlex.quote(str(PurePosixPath(path).parent)))
        status = self.run(command, content, TIMEOUT)[1]
        return None if status == 0 else ERRORS.get(status, f"status {status}")

    def download_files(self, paths: list[str]) -> list[FileDownloadResponse]:
        found = []
        for path in paths:
            if not PurePosixPath(path).is_absolute():
                found.append(FileDownloadResponse(path, None, "invalid_path"))
                continue
            content, status = self.run(DOWNLOAD.format(shlex.quote(path)), b"", TIMEOUT)
            error = ERRORS.get(status, f"status {status}")
            found.append(
                FileDownloadResponse(path, content) if status == 0 else FileDownloadResponse(path, None, error)
            )
        return found

    def run(self, command: str, given: bytes, seconds: float) -> tuple[bytes, int]:
        """(standard output, exit status)."""
        limits, mounts = Limits(disk_nbytes=1 << 30), [Mount(self.folder, "/data", writable=True)]
        variables = {"PATH": "/data/bin:/usr/bin:/bin"}
        with SandboxProcess.start(
            ["sh", "-c", command], mounts=mounts, limits=limits, environment=variables
        ) as process:
            writer = threading.Thread(target=_write, args=(process, given))
            timer = threading.Timer(seconds, process.kill)
            for thread in (writer, timer):
                thread.start()
            output = process.stdout.read()
            status = process.wait(TIMEOUT)
            timer.cancel()
            writer.join()
            return output, status


def _write(process: SandboxProcess, given: bytes) -> None:
    view = memoryview(given)
    try:
        while view:
            view = view[process.stdin.write(view) :]
        process.stdin.close()
    except BrokenPipeError:
        pass


class TestSandbox(SandboxIntegrationTests):
    @property
    def sandbox_root_dir(self) -> str:
        return "/data/tests/"

    @pytest.fixture(scope="class")
    def sandbox(self) -> Iterator[Backend]:
        reason = unavailable()
        if reason is not None or not Path("/usr/bin/python3").exists():
            pytest.skip(reason or "deepagents' commands need a python3 in /usr")
        backend = Backend()
        yield backend
        shutil.rmtree(backend.folder)

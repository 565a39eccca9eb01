"""Fetch the source package of one project release by name and version, unpack it, and build nothing.

`pip download` would prepare the metadata of a source package, which for these two means cmake or torch. So pip is asked
for its two halves only: to find the file (with its index, proxies, certificates and constraints as configured) and to
download it; the index's sha256 is compared, and ours.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from pip._internal.commands.download import DownloadCommand
from pip._internal.models.format_control import FormatControl
from pip._internal.network.download import Downloader
from pip._internal.utils.temp_dir import global_tempdir_manager


@dataclass(frozen=True)
class Release:
    """One source package.

    Attributes:
        sha256: of the archive.
        wanted: folders of the archive to unpack, below its top folder.
    """

    name: str
    version: str
    sha256: str
    wanted: tuple[str, ...]


LLAMA_CPP = Release(
    "llama-cpp-python",
    "0.3.36",
    "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    ("vendor/llama.cpp/tools/server/tests", "vendor/llama.cpp/tools/mtmd", "vendor/llama.cpp/models/templates"),
)
VLLM = Release(
    "vllm",
    "0.33.0",
    "f4c33c2503d52bb411146afa9618a4f48bed68912f617e6803ac8d76e4c74112",
    ("tests/__init__.py", "tests/entrypoints", "tests/tool_use"),
)


def fetch(release: Release, cache: Path) -> Path:
    """The unpacked release, downloaded the first time.

    Returns:
        The folder that holds what `wanted` names.
    """
    folder = cache / f"{release.name}-{release.version}"
    if not folder.exists():
        archive = _download(release, cache)
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != release.sha256:
            sys.exit(f"{archive.name} has sha256 {found}; expected {release.sha256}")
        _unpack(archive, release, folder)
        archive.unlink()
    return folder


def _download(release: Release, cache: Path) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    command = DownloadCommand("download", "fetch the sources of a release")
    options, _ = command.parse_args(["--quiet", f"--no-binary={release.name}"])
    options.format_control = FormatControl(no_binary={release.name})
    with command.main_context(), global_tempdir_manager():
        session = command.get_default_session(options)
        finder = command._build_package_finder(options, session)
        links = [
            candidate.link
            for candidate in finder.find_all_candidates(release.name)
            if str(candidate.version) == release.version and candidate.link.filename.endswith(".tar.gz")
        ]
        if not links:
            sys.exit(f"the index has no source package of {release.name} {release.version}")
        path, _ = Downloader(session, "off")(links[0], str(cache))
    archive = Path(path)
    if links[0].hash_name == "sha256" and hashlib.sha256(archive.read_bytes()).hexdigest() != links[0].hash:
        sys.exit(f"{archive.name} is not what the index promised")
    return archive


def _unpack(archive: Path, release: Release, folder: Path) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            _, _, inner = member.name.partition("/")
            if member.isfile() and any(inner == one or inner.startswith(one + "/") for one in release.wanted):
                member.name = inner
                tar.extract(member, partial, filter="data")
    partial.rename(folder)

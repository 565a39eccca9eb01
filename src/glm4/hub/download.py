"""Repositories of the Hugging Face hub: look in its cache, download what is missing.

huggingface_hub does the work, so its cache folder, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and proxies work as usual. A
broken download resumes file by file: complete files stay in the cache.
"""

from __future__ import annotations

import contextlib
import glob
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm4.errors import DownloadError, Glm4Error, ModelNotFoundError
from glm4.hub.repository import checkpoint_in, choose_files
from glm4.hub.store import Progress, check_disk_space, disk_full

_LIST_SECONDS = 10.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class _RemoteFile:
    nbytes: int
    blob: str  # name of its content in the cache: the sha256 of a large file, the git id of a small one


def cache_folder(repo_id: str) -> Path:
    """The repository's folder in the Hugging Face cache, which may not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / ("models--" + repo_id.replace("/", "--"))


def cached(repo_id: str, wanted: str | None = None, *, weights: bool = True) -> Path | None:
    """The complete checkpoint in the cache (a snapshot folder, or a GGUF file in it), without using the network.

    Args:
        weights: False needs only tokenizer and configuration.
    """
    folder = cache_folder(repo_id)
    snapshots = folder / "snapshots"
    with contextlib.suppress(OSError):
        revision = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
        if (snapshots / revision).is_dir() and revision:
            return checkpoint_in(snapshots / revision, wanted, weights=weights)
    if not snapshots.is_dir():
        return None
    newest_first = sorted(snapshots.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    found = (checkpoint_in(snapshot, wanted, weights=weights) for snapshot in newest_first if snapshot.is_dir())
    return next((path for path in found if path is not None), None)


def download(
    repo_id: str, wanted: str | None = None, progress: Progress | None = None, *, weights: bool = True
) -> Path:
    """Bring the cache up to date with the repository and return its checkpoint.

    Args:
        wanted: a GGUF file in the repository, or a unique part of its name.
        weights: False skips them where configuration and tokenizer are separate files.

    Raises:
        ModelNotFoundError: no such repository or file (the hub reports private ones the same way without a token).
        DiskFullError, DownloadError
    """
    from huggingface_hub import snapshot_download

    with _plain_errors(repo_id):
        remote = _list_files(repo_id)
    chosen = choose_files(remote, wanted, repo_id, weights=weights)
    blobs = cache_folder(repo_id) / "blobs"
    needed = sum(remote[name].nbytes for name in chosen if not (blobs / remote[name].blob).exists())
    blobs.mkdir(parents=True, exist_ok=True)
    check_disk_space(blobs, needed)
    with _plain_errors(repo_id), disk_full(blobs, needed), _quiet(), _watch(repo_id, remote, chosen, progress):
        snapshot = Path(snapshot_download(repo_id, allow_patterns=[glob.escape(name) for name in chosen]))
    missing = [name for name in chosen if not (snapshot / name).is_file()]
    if missing:
        raise DownloadError(f"{repo_id}: {missing[0]} did not arrive. Run the command again.")
    return snapshot / chosen[0] if chosen[0].lower().endswith(".gguf") else snapshot


def _list_files(repo_id: str) -> dict[str, _RemoteFile]:
    from huggingface_hub import HfApi

    info = HfApi().model_info(repo_id, files_metadata=True, timeout=_LIST_SECONDS)
    files = {}
    for sibling in info.siblings or ():
        lfs: Any = sibling.lfs  # a dict in some releases, an object in others
        sha256 = lfs.get("sha256") if isinstance(lfs, Mapping) else getattr(lfs, "sha256", None)
        files[sibling.rfilename] = _RemoteFile(sibling.size or 0, str(sha256 or sibling.blob_id or sibling.rfilename))
    return files


@contextlib.contextmanager
def _watch(
    repo_id: str, remote: Mapping[str, _RemoteFile], chosen: list[str], progress: Progress | None
) -> Iterator[None]:
    """Report progress by watching the cache: the library's own progress bars change from release to release."""
    if progress is None:
        yield
        return
    blobs = cache_folder(repo_id) / "blobs"
    files = [remote[name] for name in chosen]
    total = sum(file.nbytes for file in files)
    stop = threading.Event()

    def look() -> None:
        while True:
            progress(f"pulling {repo_id}", min(total, sum(_arrived(blobs, file) for file in files)), total)
            if stop.wait(_POLL_SECONDS):
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    progress(f"pulling {repo_id}", total, total)


def _arrived(blobs: Path, file: _RemoteFile) -> int:
    if (blobs / file.blob).exists():
        return file.nbytes
    # Allocated blocks, not the length: a file may be laid out in full before its bytes arrive.
    sizes = [0]
    for part in blobs.glob(glob.escape(file.blob) + "*.incomplete"):
        with contextlib.suppress(OSError):
            sizes.append(part.stat().st_blocks * 512)
    return min(file.nbytes, max(sizes))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Turn the library's progress bars off, and on again afterwards if they were on."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_off = are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the user's environment may forbid either
        disable_progress_bars()
        try:
            yield
        finally:
            if not were_off:
                enable_progress_bars()


@contextlib.contextmanager
def _plain_errors(repo_id: str) -> Iterator[None]:
    """Turn every failure of the library into one of our errors; its HTTP client differs from release to release."""
    try:
        yield
    except (Glm4Error, KeyboardInterrupt):
        raise
    except Exception as error:
        raise _translate(error, repo_id) from error


def _translate(error: Exception, repo_id: str) -> Glm4Error:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    endpoint = constants.ENDPOINT
    if isinstance(error, HFValidationError):
        return ModelNotFoundError(f"{repo_id!r} is not a repository name: write organization/name")
    if isinstance(error, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return DownloadError(f"{repo_id} is not in the local cache, and HF_HUB_OFFLINE forbids downloading it")
    if isinstance(error, GatedRepoError):
        return DownloadError(
            f"{repo_id} is gated: accept its terms at {endpoint}/{repo_id}, then set HF_TOKEN to that account's token"
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelNotFoundError(
            f"{endpoint} has no repository {repo_id}, or it is private. Check the name; for a private one set HF_TOKEN."
        )
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status in (401, 403):
            return DownloadError(
                f"{endpoint} refused access to {repo_id} (HTTP {status}). Set HF_TOKEN to a valid token."
            )
        return DownloadError(f"{endpoint} answered HTTP {status} for {repo_id}. Try again later.")
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None else error
    lines = str(cause).strip().splitlines()
    reason = f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__
    return DownloadError(
        f"{repo_id} could not be fetched from {endpoint} ({reason}). "
        "Check the network, or set HF_ENDPOINT to a mirror; complete files are kept, the same command continues."
    )

"""ModelScope as an alternative source of repositories, through its own package (extra: `glm4[modelscope]`)."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from glm4.errors import DownloadError, Glm4Error
from glm4.hub.repository import checkpoint_in, choose_files
from glm4.hub.store import Progress


def cached(repo_id: str, wanted: str | None = None, *, weights: bool = True) -> Path | None:
    """The complete checkpoint in ModelScope's cache, without using the network; None if its package is missing, too."""
    try:
        from modelscope.hub.snapshot_download import snapshot_download

        folder = Path(snapshot_download(repo_id, local_files_only=True))
    except Exception:  # its exceptions differ from release to release, and all mean the same here
        return None
    return checkpoint_in(folder, wanted, weights=weights) if folder.is_dir() else None


def download(
    repo_id: str, wanted: str | None = None, progress: Progress | None = None, *, weights: bool = True
) -> Path:
    """Download a repository's checkpoint; see `hub.download.download`.

    Raises:
        DownloadError: the package is missing, or the download failed.
        ModelNotFoundError: no such file.
    """
    try:
        from modelscope.hub.api import HubApi
        from modelscope.hub.snapshot_download import snapshot_download
    except ImportError as error:
        raise DownloadError("ModelScope needs its package: pip install modelscope") from error
    if progress is not None:
        progress(f"pulling {repo_id} from ModelScope", 0, 0)
    try:
        listed: list[dict[str, Any]] = HubApi().get_model_files(repo_id, recursive=True)
        names = [str(entry["Path"]) for entry in listed if entry.get("Type") != "tree"]
        chosen = choose_files(names, wanted, repo_id, weights=weights)
        folder = Path(snapshot_download(repo_id, allow_patterns=[glob.escape(name) for name in chosen]))
    except (Glm4Error, KeyboardInterrupt):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise DownloadError(f"{repo_id} could not be fetched from ModelScope: {reason}") from error
    missing = [name for name in chosen if not (folder / name).is_file()]
    if missing:
        raise DownloadError(f"{repo_id}: {missing[0]} did not arrive from ModelScope. Run the command again.")
    return folder / chosen[0] if chosen[0].lower().endswith(".gguf") else folder

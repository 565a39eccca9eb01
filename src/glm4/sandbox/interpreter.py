"""What the sandbox must see of this machine to run a Python interpreter, and this package in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from glm4.errors import MissingExtraError
from glm4.sandbox.limits import Mount

_PACKAGE_FOLDERS = ("site-packages", "dist-packages")


def interpreter_mounts(python: Path) -> list[Mount]:
    """The environment of an interpreter and the installation it was made from, read-only, at their own paths.

    Args:
        python: an interpreter, also one of a virtual environment.
    """
    return as_mounts(_interpreter_folders(python))


def own_mounts(packages: Sequence[str] = ()) -> list[Mount]:
    """What this interpreter needs to import this package, those installed beside it, and others.

    Args:
        packages: importable packages that may lie elsewhere.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    folders = [*_interpreter_folders(Path(sys.executable)), Path(sys.prefix), Path(sys.base_prefix)]
    folders += [Path(entry) for entry in sys.path if Path(entry).name in _PACKAGE_FOLDERS]
    for name in ("glm4", *packages):
        spec = find_spec(name)
        if spec is None or not (spec.submodule_search_locations or spec.origin):
            raise MissingExtraError(f"the package {name} is not installed")
        folders += map(Path, spec.submodule_search_locations or [str(spec.origin)])
    return as_mounts(folders)


def as_mounts(paths: Iterable[Path]) -> list[Mount]:
    """Read-only mounts of paths at their own place, without those that lie in /usr or in each other.

    The root of the file system and the user's own folder are never among them.
    """
    known = [Path("/usr")]
    never = (Path("/"), Path.home())
    for path in sorted({Path(os.path.abspath(path)) for path in paths}, key=lambda path: len(path.parts)):  # noqa: PTH100
        if path.exists() and path not in never and not any(path.is_relative_to(other) for other in known):
            known.append(path)
    return [Mount(path, str(path)) for path in known[1:]]


def _interpreter_folders(python: Path) -> list[Path]:
    environment = Path(os.path.abspath(python)).parent.parent  # noqa: PTH100  # a link must not be followed here
    virtual = [environment] if (environment / "pyvenv.cfg").is_file() else []
    return [*virtual, python.resolve().parent.parent]

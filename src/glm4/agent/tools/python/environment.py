"""The environment in which models' code runs: an interpreter of this Python with NumPy, pandas, matplotlib and a font.

`glm4 tools install` makes it once, under `home()/tools/`, with the user's pip and its configuration; only wheels are
taken, so that no package runs code of its own on this machine while it is installed. The font, Noto Sans CJK under the
SIL Open Font License 1.1, comes from the package notojp-matplotlib. The sandbox sees the folder read-only.

It is a virtual environment with nothing in `bin` but the interpreter.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from glm4.errors import DownloadError
from glm4.hub.store import check_disk_space, home
from glm4.sandbox.interpreter import as_mounts
from glm4.sandbox.limits import Mount
from glm4.system.atomic_folder import atomic_folder

REQUIREMENTS = ("numpy>=1.26", "pandas>=2.2", "matplotlib>=3.9", "openpyxl>=3.1", "notojp-matplotlib>=1.1")
TARGET = "/opt/python"
INSTALL = "run `glm4 tools install` (about 70 MB to fetch)"
Progress = Callable[[str, float, float], None]
"""`report(stage, done, total)`; a total of 0 means unknown."""

_RECORD = "environment.json"
_NBYTES = 400_000_000
_PACKAGES = ("numpy", "pandas", "matplotlib", "openpyxl")
_DOWNLOAD = re.compile(r"(?:Downloading|Using cached) (?:\S*/)?([\w.]+-[\w.]+?)-\S+\.whl")
_BYTES = re.compile(r"Progress (\d+) of (\d+)")
_REPORT_VERSIONS = (
    "import importlib, json, sys; "
    "print(json.dumps({name: importlib.import_module(name).__version__ for name in sys.argv[1:]}))"
)


def environment_folder() -> Path:
    """Where the environment of this Python is, or will be."""
    return home() / "tools" / f"python-{sys.version_info.major}.{sys.version_info.minor}"


def packages() -> Mapping[str, str]:
    """Versions of the environment's packages; empty if it is not there or not usable."""
    folder = environment_folder()
    record: Any = None
    with suppress(OSError, ValueError):
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    if not isinstance(record, dict) or record.get("requirements") != list(REQUIREMENTS):
        return {}
    return record["packages"] if (folder / "bin" / "python").exists() else {}


def mounts() -> list[Mount]:
    """What the sandbox sees of it: the environment at `TARGET`, and the Python that it belongs to at its own path."""
    prefix = (environment_folder() / "bin" / "python").resolve().parent.parent
    return [*as_mounts([prefix]), Mount(environment_folder(), TARGET)]


def install(report: Progress) -> Mapping[str, str]:
    """Make the environment, in place of an older one; returns the versions of its packages.

    An interrupted or failed attempt leaves nothing that `packages` takes for an environment.

    Raises:
        DownloadError: pip is missing or failed; with what it said.
        DiskFullError, InvalidRequestError: no room, or another process is installing.
    """
    folder = environment_folder()
    with atomic_folder(folder) as partial:
        check_disk_space(partial, _NBYTES)
        python = make_environment(partial)
        _install_packages(python, report)
        report("preparing fonts", 0, 0)
        # What matplotlib keeps in the user's home folder must neither be read nor change.
        with tempfile.TemporaryDirectory() as scratch:
            _run([python, "-I", Path(__file__).with_name("fonts.py"), partial, TARGET], MPLCONFIGDIR=scratch)
            found: dict[str, str] = json.loads(
                _run([python, "-I", "-c", _REPORT_VERSIONS, *_PACKAGES], MPLCONFIGDIR=scratch)
            )
        report("compiling", 0, 0)
        # As the sandbox cannot write, and with the paths of the sandbox, which tracebacks show.
        options: list[str | Path] = [
            "-q",
            "-x",
            "/tests/",
            "--invalidation-mode",
            "unchecked-hash",
            "-s",
            partial,
            "-p",
            TARGET,
        ]
        _run([python, "-I", "-m", "compileall", *options, partial / "lib"], allowed=(0, 1))
        write_record(partial, found)
    return found


def write_record(folder: Path, found: Mapping[str, str]) -> None:
    """Say in an environment which packages it has; without that `packages` takes it for unfinished."""
    record = {"requirements": list(REQUIREMENTS), "packages": dict(found)}
    (folder / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def make_environment(folder: Path) -> Path:
    """A virtual environment (PEP 405) without pip; returns its interpreter.

    By hand, as Debian's Python has no module `venv`, and as links to links would not all resolve in the sandbox.
    """
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = folder / "lib"
    for made in (folder / "bin", library, library / name, library / name / "site-packages"):
        made.mkdir()
        made.chmod(0o755)  # whatever the umask: in the sandbox of a server of root another user reads it
    folder.chmod(0o755)
    (folder / "pyvenv.cfg").write_text(
        f"home = {base.parent}\ninclude-system-site-packages = false\n", encoding="utf-8"
    )
    python = folder / "bin" / "python"
    python.symlink_to(base)
    return python


def _install_packages(python: Path, report: Progress) -> None:
    raw = ["--progress-bar=raw"] if _pip_version() >= (24, 1) else ["--progress-bar=off"]
    # Ignore what is installed: packages on PYTHONPATH would count, and are not there in the sandbox.
    options = ["--ignore-installed", "--only-binary=:all:", "--no-compile", "--no-input", "--disable-pip-version-check"]
    command = [*_pip(python), "install", *options, *raw, *REQUIREMENTS]
    report("asking the package index", 0, 0)
    stage = ""

    def on_line(line: str) -> None:
        nonlocal stage
        if match := _DOWNLOAD.search(line):
            stage = f"fetching {match[1]}"
            report(stage, 0, 0)
        elif match := _BYTES.fullmatch(line.strip()):
            report(stage, int(match[1]), int(match[2]))
        elif line.startswith("Installing collected packages"):
            report("installing", 0, 0)

    _run(command, on_line=on_line, PIP_USER="0")
    for script in (python.parent).iterdir():  # they name a folder that will be renamed
        if script != python:
            script.unlink()


def _pip_version() -> tuple[int, ...]:
    """Of the pip beside glm4; (0,) if there is none."""
    try:
        return tuple(int(part) for part in version("pip").split(".")[:2] if part.isdigit())
    except PackageNotFoundError:
        return (0,)


def _pip(python: Path) -> list[str | Path]:
    """How to run pip for another interpreter: the pip beside glm4, else one that Python brings."""
    if _pip_version() >= (22, 3):
        return [sys.executable, "-m", "pip", "--python", python]
    if util.find_spec("ensurepip") is None:
        raise DownloadError(
            "the environment is made with pip; install it for this Python: python -m ensurepip, or python3-pip"
        )
    _run([python, "-I", "-m", "ensurepip"])
    return [python, "-I", "-m", "pip"]


def _run(
    command: Sequence[str | Path],
    *,
    on_line: Callable[[str], None] = lambda _: None,
    allowed: Sequence[int] = (0,),
    **variables: str,
) -> str:
    """Run a program to its end; returns what it said.

    Raises:
        DownloadError: it failed; with the end of what it said.
    """
    # In a session of its own: Ctrl-C in the terminal is for us, and we end it.
    with subprocess.Popen(  # noqa: S603 - programs of ours
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", env={**os.environ, **variables}, start_new_session=True, umask=0o022,
    ) as process:  # fmt: skip
        assert process.stdout is not None  # noqa: S101
        lines: list[str] = []
        try:
            for line in process.stdout:
                lines.append(line)
                on_line(line)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode not in allowed:
        said = "".join(lines[-12:]).strip()
        raise DownloadError(f"the environment of the python tool cannot be made; {Path(command[0]).name} said:\n{said}")
    return "".join(lines)

"""Run the steps of a Dockerfile without a container engine, and then what it would start.

Each stage is an overlay over this machine's own root, which stands for the base image: what a stage writes lies in its
upper layer only. So the instructions run as they are written, as root, in a clean directory; the result is started as
the image's user, with a read-only root, and asked for its health by the image's own HEALTHCHECK.

    python tools/dockerfile_steps.py deploy/Dockerfile --serve smoke

Needs root, overlay mounts and network access for what the steps install. Exits with 3, and says so, where there are
none. What it does not show: that the base image has what this machine has.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

from glm4.hub import store

UNABLE = 3
_SECONDS = 300  # until the server must be healthy


@dataclass
class Stage:
    """A FROM and what follows it.

    Attributes:
        root: where its merged file system is mounted.
        steps: instruction and its text, in order.
    """

    name: str
    root: Path
    steps: list[tuple[str, str]] = field(default_factory=list)

    def last(self, instruction: str) -> str:
        """Text of the last instruction of that name; "" if there is none."""
        return next((text for name, text in reversed(self.steps) if name == instruction), "")


def parse(text: str) -> Iterator[tuple[str, str]]:
    """Instructions and their texts, comments removed and continued lines joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in lines.replace("\\\n", " ").splitlines():
        if line.strip():
            instruction, _, rest = line.strip().partition(" ")
            yield instruction.upper(), rest.strip()


def read_stages(file: Path, folder: Path) -> list[Stage]:
    stages: list[Stage] = []
    for instruction, text in parse(file.read_text()):
        if instruction == "FROM":
            named = re.search(r"\s[aA][sS]\s+(\S+)$", text)
            name = named[1] if named else str(len(stages))
            stages.append(Stage(name, folder / name / "root"))
        else:
            stages[-1].steps.append((instruction, text))
    return stages


def mount(stage: Stage) -> None:
    """An overlay over this machine's root, with its devices and processes."""
    upper, work = stage.root.parent / "upper", stage.root.parent / "work"
    for path in (upper, work, stage.root):
        path.mkdir(parents=True)
    run(["mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", str(stage.root)])
    for name in ("proc", "dev"):
        run(["mount", "--bind", f"/{name}", str(stage.root / name)])
    # The base image has an interpreter that every user may run; here it may lie in a folder of root's.
    (stage.root / "root").chmod(0o755)


def run(command: list[str], **options: object) -> None:
    subprocess.run(command, check=True, **options)  # type: ignore[call-overload]


def environment(stage: Stage) -> dict[str, str]:
    """What ENV and the defaults of ARG set, beside a bare environment."""
    found = {"PATH": f"{sys.base_prefix}/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    for name, text in stage.steps:
        if name in ("ENV", "ARG"):
            given = dict(part.split("=", 1) for part in shlex.split(text))
            found |= {key: value.replace("$PATH", found["PATH"]) for key, value in given.items()}
    return found


def build(stage: Stage, stages: list[Stage], context: Path) -> None:
    """Run the instructions that change the file system."""
    folder = "/"
    for name, text in stage.steps:
        if name in ("RUN", "COPY", "WORKDIR"):
            print(f"[{stage.name}] {name} {text}", flush=True)
        if name == "WORKDIR":
            folder = text
            inside(stage, folder).mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            copy(stage, stages, context, folder, shlex.split(text))
        elif name == "RUN":
            script = f"cd {shlex.quote(folder)} && {text}"
            run(["chroot", str(stage.root), "/bin/sh", "-c", script], env=environment(stage))


def inside(stage: Stage, path: str) -> Path:
    return stage.root / path.lstrip("/")


def copy(stage: Stage, stages: list[Stage], context: Path, folder: str, words: list[str]) -> None:
    origin = context
    if words[0].startswith("--from="):
        wanted = words.pop(0).removeprefix("--from=")
        origin = next(one.root for one in stages if one.name == wanted)
    *sources, target = words
    to = inside(stage, os.path.join(folder, target))  # noqa: PTH118  an absolute target replaces the folder
    for source in sources:
        path = origin / source.lstrip("/")
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.so") if origin == context else None
            shutil.copytree(path, to, symlinks=True, dirs_exist_ok=True, ignore=ignored)
        else:
            shutil.copy2(path, to / path.name if len(sources) > 1 or target.endswith("/") else to)


def start(stage: Stage, arguments: list[str], models: Path | None) -> subprocess.Popen[bytes]:
    """The entry point as the image's user, the root read-only, /tmp and the volumes writable."""
    user, volume = stage.last("USER"), stage.last("VOLUME")
    if models is not None:  # this machine's models, so that nothing is fetched again; what is written stays apart
        layers = stage.root.parent / "volume"
        (layers / "upper").mkdir(parents=True)
        (layers / "work").mkdir()
        options = f"lowerdir={models},upperdir={layers / 'upper'},workdir={layers / 'work'}"
        run(["mount", "-t", "overlay", "overlay", "-o", options, str(inside(stage, volume))])
        for path in (models, *(found for found in models.rglob("*") if found.is_dir())):
            os.chown(inside(stage, volume) / path.relative_to(models), int(user), int(user))
    else:
        run(["mount", "--bind", str(inside(stage, volume)), str(inside(stage, volume))])
    run(["mount", "-t", "tmpfs", "tmpfs", str(stage.root / "tmp")])
    run(["mount", "-o", "remount,ro", str(stage.root)])
    entry = json.loads(stage.last("ENTRYPOINT"))
    settings = environment(stage) | {"HOME": volume, "GLM4_API_KEY": "a-key-of-this-run"}
    command = ["chroot", f"--userspec={user}:{user}", str(stage.root), *entry, *arguments]
    return subprocess.Popen(command, env=settings)


def healthy(stage: Stage) -> bool:
    """What HEALTHCHECK says."""
    command = json.loads(stage.last("HEALTHCHECK").partition("CMD ")[2])
    user = stage.last("USER")
    found = subprocess.run(
        ["chroot", f"--userspec={user}:{user}", str(stage.root), *command],
        env=environment(stage), capture_output=True, check=False,
    )  # fmt: skip
    return found.returncode == 0


def ready() -> bool:
    """Whether the model is loaded: /ready on the port that the image exposes."""
    try:
        with urlopen("http://127.0.0.1:8000/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def check_server(stage: Stage, arguments: list[str], models: Path | None) -> None:
    """Start it, wait until it is healthy, and end it as a container engine does."""
    process = start(stage, arguments, models)
    try:
        deadline = time.monotonic() + _SECONDS
        while not healthy(stage):
            if process.poll() is not None:
                raise SystemExit(f"the server ended with {process.returncode} before it was healthy")
            if time.monotonic() > deadline:
                raise SystemExit(f"the server was not healthy after {_SECONDS} seconds")
            time.sleep(0.5)
        print("healthy; waiting until it can answer", flush=True)
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server cannot answer after {_SECONDS} seconds, or has ended")
            time.sleep(0.5)
        print("ready; ending it with SIGTERM", flush=True)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
    finally:
        process.kill()
    if code != 0:
        raise SystemExit(f"the server ended with {code} after SIGTERM, not with 0")


def able() -> bool:
    """Whether this process may mount overlays: in a mount namespace of its own, which ends with it."""
    probe = 'cd "$(mktemp -d)" && mkdir u w m && mount -t overlay o -o "lowerdir=/,upperdir=u,workdir=w" m'
    return subprocess.run(["unshare", "-m", "sh", "-c", probe], capture_output=True, check=False).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--serve", metavar="MODEL", help="start `serve MODEL` with this machine's models, and check its health"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.inside:
        if os.geteuid() != 0 or shutil.which("unshare") is None or not able():
            print("not run: it needs root and overlay mounts, which are not to be had here", file=sys.stderr)
            raise SystemExit(UNABLE)
        # In a mount namespace, so that whatever happens nothing stays mounted.
        raise SystemExit(
            subprocess.run(["unshare", "-m", sys.executable, *sys.argv, "--inside"], check=False).returncode
        )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        stages = read_stages(given.file, Path(made))
        try:
            for stage in stages:
                mount(stage)
                build(stage, stages, Path.cwd())
            last = stages[-1]
            if not any(inside(last, "/opt").rglob("site-packages/glm4/py.typed")):
                raise SystemExit("the installed package tells type checkers nothing: py.typed is missing")
            if given.serve:
                check_server(last, ["serve", given.serve, "--host", "0.0.0.0"], store.home())
        finally:
            for line in reversed(Path("/proc/mounts").read_text().splitlines()):
                point = line.split()[1]
                if point.startswith(made):
                    subprocess.run(["umount", "-l", point], check=False)
    print("every step ran")


if __name__ == "__main__":
    main()

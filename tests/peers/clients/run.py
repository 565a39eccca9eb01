"""Run what client libraries do against our server: `python tests/peers/clients/run.py [ENVIRONMENT …]`.

The libraries do not all install together, so each environment has its own folder. Exits with 1 when a test fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]


@dataclass(frozen=True)
class Environment:
    """Libraries that install together, and the tests of them.

    Attributes:
        requirements: what pip is told.
        tests: files of this folder.
        options: of pytest, for these tests.
    """

    name: str
    requirements: tuple[str, ...]
    tests: tuple[str, ...]
    options: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return ROOT / f".venv-peers-{self.name}"

    @property
    def python(self) -> Path:
        return self.folder / "bin/python"

    def install(self) -> None:
        """Make the environment, unless it is there with the same requirements."""
        stamp, wanted = self.folder / "requirements.txt", "\n".join((*_TEST_TOOLS, *self.requirements))
        if stamp.exists() and stamp.read_text() == wanted:
            return
        print(f"{self.name}: installing {', '.join(self.requirements)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(self.folder)], check=True)
        pip = [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *_TEST_TOOLS, *self.requirements], check=True)
        stamp.write_text(wanted)

    def run(self, servers: str) -> bool:
        """Run the tests; returns whether all passed."""
        # Nothing of the project's own pytest settings, and no key or address of the person who runs this.
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("OPENAI_", "ANTHROPIC_"))}
        command = [str(self.python), "-m", "pytest", "-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider"]
        command += ["-q", "--tb=short", "--timeout=120", "-W", "ignore", *self.options, *self.tests]
        return subprocess.run(command, cwd=HERE, env={**kept, "GLM4_SERVERS": servers}, check=False).returncode == 0


_TEST_TOOLS = ("pytest>=8", "pytest-timeout>=2.3")
ENVIRONMENTS = (
    Environment("openai1", ("openai>=1.100,<2",), ("client_openai.py",)),
    Environment(
        "agents",
        (
            "openai>=3.50",
            "anthropic>=2.10",
            "openai-agents>=0.20",
            "pydantic-ai-slim[openai,anthropic]>=2",
            "llm>=0.30",
        ),
        ("client_openai.py", "client_anthropic.py", "client_agents.py", "client_llm.py"),
    ),
    Environment("litellm", ("litellm>=1.100", "instructor>=1.15"), ("client_litellm.py", "client_instructor.py")),
    # LangChain's suite for sandboxes. deepagents 0.7 lists files in another form than that wants.
    Environment(
        "deepagents",
        ("deepagents>=0.6,<0.7", "langchain-tests==1.1.9", "pytest-asyncio>=1.1"),
        ("client_sandbox.py",),
        ("-o", "asyncio_mode=auto"),
    ),
)


@contextmanager
def servers() -> Iterator[str]:
    """The two servers of `servers.py`; gives the line they print."""
    running = subprocess.Popen(
        [sys.executable, str(HERE / "servers.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert running.stdin is not None
    assert running.stdout is not None
    try:
        line = running.stdout.readline()
        if not line:
            sys.exit("the servers did not start")
        yield line
    finally:
        running.stdin.close()
        running.wait()


def main() -> int:
    """Run the environments that were named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [one.name for one in ENVIRONMENTS]
    parser.add_argument("environments", nargs="*", metavar="ENVIRONMENT", help=", ".join(names))
    options = parser.parse_args()
    if not set(options.environments) <= set(names):
        parser.error(f"an environment is one of {', '.join(names)}")
    chosen = [one for one in ENVIRONMENTS if one.name in options.environments or not options.environments]
    for one in chosen:
        one.install()
    good = True
    with servers() as addresses:
        for one in chosen:
            started = time.monotonic()
            good &= one.run(addresses)
            print(f"{one.name}: {time.monotonic() - started:.0f} s", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

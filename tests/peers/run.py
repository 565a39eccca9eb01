"""Run the suites of other projects against our server: `python tests/peers/run.py [NAME …]`, by default all.

Makes an environment of its own (.venv-peers) with what the suites import, fetches their sources once, and prints what
passed. Exits with 1 when a case failed that is not on the list of those left out, or when fewer pass than promised.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PEERS = ROOT / ".venv-peers"
PYTHON = PEERS / "bin/python"


@dataclass(frozen=True)
class Suite:
    """One suite.

    Attributes:
        release: its name in `fetch`.
        folder: where pytest runs, below the unpacked release.
        plugin: the pytest plugin that fits it to us.
        arguments: what is run of it.
        promised: cases that pass, at least.
    """

    name: str
    release: str
    folder: str
    plugin: str
    arguments: tuple[str, ...]
    promised: int


_OPENAI = "tests/entrypoints/openai"
_SERVE = "tests/entrypoints/serve"
_NO_CONFIG = ("-c", os.devnull, "--rootdir", ".")
_ASYNCIO = ("-o", "asyncio_mode=strict", "-o", "asyncio_default_fixture_loop_scope=function")
SUITES = (
    Suite(
        "llama_cpp", "LLAMA_CPP", "vendor/llama.cpp/tools/server/tests", "llama_cpp_plugin",
        ("-p", "no:asyncio"), 163,
    ),
    Suite(
        "vllm", "VLLM", ".", "vllm_plugin",
        (
            *_NO_CONFIG, *_ASYNCIO, "--dist", "loadfile",
            f"{_OPENAI}/chat_completion/test_chat.py",
            f"{_OPENAI}/chat_completion/test_chat_completion.py",
            f"{_OPENAI}/chat_completion/test_chat_echo.py",
            f"{_OPENAI}/chat_completion/test_chat_logit_bias_validation.py",
            f"{_OPENAI}/chat_completion/test_completion_with_function_calling.py",
            f"{_OPENAI}/chat_completion/test_enable_force_include_usage.py",
            f"{_OPENAI}/chat_completion/test_include_reasoning.py",
            f"{_OPENAI}/completion/test_completion.py",
            f"{_OPENAI}/completion/test_prompt_validation.py",
            f"{_OPENAI}/completion/test_token_in_token_out.py",
            f"{_OPENAI}/models/test_models.py",
            f"{_OPENAI}/responses/test_basic.py",
            f"{_OPENAI}/responses/test_function_call.py",
            f"{_OPENAI}/responses/test_simple.py",
            f"{_OPENAI}/responses/test_stateful.py",
            f"{_OPENAI}/responses/test_structured_output.py",
            f"{_OPENAI}/test_chunked_prompt.py",
            f"{_OPENAI}/test_return_token_ids.py",
            f"{_OPENAI}/test_return_tokens_as_ids.py",
            "tests/entrypoints/anthropic/test_messages.py",
            f"{_SERVE}/instrumentator/test_basic.py",
            f"{_SERVE}/lora/test_lora_adapters.py",
            f"{_SERVE}/tokenize/test_tokenization.py",
        ), 80,
    ),
)  # fmt: skip


def environment() -> None:
    """Install what the suites import; nothing of the projects they belong to."""
    requirements = HERE / "requirements.txt"
    stamp = PEERS / "requirements.txt"
    if stamp.exists() and stamp.read_text() == requirements.read_text():
        return
    subprocess.run([sys.executable, "-m", "venv", str(PEERS)], check=True)
    subprocess.run([str(PYTHON), "-m", "pip", "install", "--quiet", "-r", str(requirements)], check=True)
    stamp.write_text(requirements.read_text())


@contextmanager
def warm_start() -> Iterator[None]:
    """The process whose forks are the servers; see `warm_start.py`."""
    socket, shim = PEERS / "socket", PEERS / "llama-server"
    socket.unlink(missing_ok=True)
    start = f'exec "{sys.executable}" -S -E "{HERE / "warm_start.py"}" "{socket}" llama_server "$@"\n'
    shim.write_text("#!/bin/sh\n" + start)
    shim.chmod(0o755)
    forker = subprocess.Popen(
        [sys.executable, str(HERE / "warm_start.py"), str(socket)],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(HERE), "GLM4_PACKED_CACHE_GB": "0"},
    )
    try:
        while not socket.exists():
            if forker.poll() is not None:
                sys.exit("the package cannot be imported")
            time.sleep(0.05)
        yield
    finally:
        assert forker.stdin is not None
        forker.stdin.close()
        forker.wait()


def run(suite: Suite, folder: Path, workers: int) -> Counter[str]:
    """Run one suite; returns how many cases passed, failed, and so on."""
    import glm4

    report = PEERS / f"{suite.name}.xml"
    report.unlink(missing_ok=True)
    variables: Mapping[str, str] = {
        "GLM4_PEERS": str(PEERS),
        "GLM4_HOME": str(PEERS / "home"),
        "GLM4_VERSION": glm4.__version__,
        "LLAMA_SERVER_BIN_PATH": str(PEERS / "llama-server"),
        "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parent), ".")),
    }
    command = [str(PYTHON), "-m", "pytest", "-p", suite.plugin, "-p", "no:cacheprovider", "-v", "--tb=short"]
    command += ["--timeout=60", "-r", "fE", f"--junitxml={report}", "-n", str(workers), *suite.arguments]
    subprocess.run(command, cwd=folder / suite.folder, env={**os.environ, **variables}, check=False)
    counts: Counter[str] = Counter()
    if report.exists():
        for case in ElementTree.parse(report).iter("testcase"):
            kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
            counts[kinds.pop() if kinds else "passed"] += 1
    return counts


def main() -> int:
    """Run the suites that were named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*(suite.name for suite in SUITES), "harnesses", "clients", "mcp"]
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(names))
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="suites' tests at a time")
    options = parser.parse_args()
    if not set(options.suites) <= set(names):
        parser.error(f"a suite is one of {', '.join(names)}")
    chosen = options.suites or names
    good = True
    if "harnesses" in chosen:
        import harnesses

        harnesses.main()
    if "clients" in chosen:
        good &= not subprocess.run([sys.executable, str(HERE / "clients/run.py")], check=False).returncode
    if "mcp" in chosen:
        mcp = [sys.executable, "-m", "pytest", "-n", "0", "-m", "peers", str(HERE / "test_mcp_everything.py")]
        good &= not subprocess.run(mcp, check=False).returncode
    suites = [suite for suite in SUITES if suite.name in chosen]
    return 0 if (not suites or run_suites(suites, options.workers)) and good else 1


def run_suites(suites: Sequence[Suite], workers: int) -> bool:
    """Run test suites; returns whether all that should pass did."""
    environment()
    import fetch

    good = True
    with warm_start():
        for suite in suites:
            folder = fetch.fetch(getattr(fetch, suite.release), PEERS / "sources")
            started = time.monotonic()
            counts = run(suite, folder, workers)
            good &= counts["passed"] >= suite.promised and not counts["failure"] + counts["error"]
            shown = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
            print(f"{suite.name}: {shown or 'nothing ran'}; {time.monotonic() - started:.0f} s")
    return good


if __name__ == "__main__":
    sys.exit(main())

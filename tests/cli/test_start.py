"""What a start loads. No clock here: what makes it slow is what it loads, and that is the same on every machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from glm4.cli import console, main
from glm4.tokenizer.saved_table import TABLE_FILE
from tiny import write_gguf

# What one plain question at a packed model has no use for.
HEAVY = [
    "click",
    "pydantic",
    "rich",
    "prompt_toolkit",
    "markdown_it",
    "pygments",
    "huggingface_hub",
    "httpx",
    "modelscope",
    "tiktoken",
    "llguidance",
    "starlette",
    "uvicorn",
    "prometheus_client",
    "asyncio",
    "sqlite3",
    "importlib.metadata",
    "importlib.resources",
    "numpy.ma",
    "numpy.random",
    "glm4.server",
    "glm4.quantization",
    "glm4.batch.job",
    "glm4.planner",
    "glm4.cli.conversation.repl",
    "glm4.cli.help_texts",
    "glm4.cli.mistakes",
    "glm4.hub.download",
    "glm4.checkpoints.peft_adapter",
    "glm4.kernels.reference",
    "glm4.backends.remote",
    "http.client",
    "ssl",
]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    write_gguf(folder / "model.gguf", "qwen2")
    assert main(["quantize", str(folder / "model.gguf"), "--to", "int8", "-o", str(folder / "out")]) == 0
    return folder / "out"


def loaded_by(*args: str) -> set[str]:
    """The modules that a command line has loaded when it ends."""
    code = "import sys; from glm4.cli import main; code = main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    plain = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=plain,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip()
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_a_question_loads_what_it_needs(packed: Path, command: str) -> None:
    loaded = loaded_by(command, "hello", "-m", str(packed), "--temperature", "0", "--max-tokens", "2")
    assert {"numpy", "jinja2", "tokenizers", "glm4.engine.engine"} <= loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_a_packed_model_has_its_table(packed: Path) -> None:
    assert (packed / TABLE_FILE).is_file()


def test_terminals_are_told_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    console.stderr.cache_clear()
    assert not console.is_terminal(sys.stderr)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert console.is_terminal(sys.stderr)
    assert console.is_terminal(sys.stderr) == console.stderr().is_terminal
    monkeypatch.setenv("FORCE_COLOR", "")
    console.stderr.cache_clear()
    assert console.is_terminal(sys.stderr) == console.stderr().is_terminal
    console.stderr.cache_clear()

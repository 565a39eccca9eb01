"""Stands in for `vllm serve` in vLLM's entrypoint tests: its flags in, `glm4 serve` with a tiny random model out.

Flags about vLLM's engine, and names of parsers (our dialects bring their own), change nothing here.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# Answers without a limit end after some hundred tokens.
END_BIAS = 1.5
# And those that come to no end take seconds, not minutes.
LONGEST = 8192


def options(given: list[str]) -> dict[str, list[str]]:
    """Flags and their values; `--flag=value` and `--flag value …` alike."""
    found: dict[str, list[str]] = {}
    values: list[str] = []
    for word in given:
        if word.startswith("-") and not word[1:2].isdigit():
            name, separator, value = word.partition("=")
            values = found.setdefault(name.replace("_", "-"), [])
            if separator:
                values.append(value)
        else:
            values.append(word)
    return found


def adapters(values: list[str]) -> list[str]:
    """--lora-modules as NAME=FOLDER; each is `name=path` or a JSON object."""
    pairs = []
    for value in values:
        spec = (
            json.loads(value)
            if value.startswith("{")
            else dict(zip(("name", "path"), value.split("=", 1), strict=True))
        )
        pairs.append(f"{spec['name']}={spec['path']}")
    return pairs


def command(model: str, given: list[str], models: Path) -> list[str]:
    """The arguments of `glm4`."""
    from tiny_glm import checkpoint

    flags = options(given)
    if "--watermark-config" in flags:
        sys.exit("there are no watermarks here")

    def first(name: str, default: str) -> str:
        return (flags.get(name) or [default])[0]

    template = first("--chat-template", "")
    source = Path(template).read_text() if Path(template).is_file() else None
    line = [
        "serve",
        "--model",
        str(checkpoint(models, source, temperature=1.0, end_bias=END_BIAS)),
        "--preload",
        "--threads",
        "1",
    ]
    line += ["--host", first("--host", "127.0.0.1"), "--port", first("--port", "8000"), "--dtype", "fp32"]
    context = min(int(first("--max-model-len", "8192")), LONGEST)
    line += ["--context", str(context), "--max-num-seqs", first("--max-num-seqs", "16")]
    line += ["--log-level", "warning", "--metrics-prefix", "vllm"]
    for name in flags.get("--served-model-name") or [model]:
        line += ["--served-model-name", name]
    for key in flags.get("--api-key", ()):
        line += ["--api-key", key]
    for pair in adapters(flags.get("--lora-modules", [])):
        line += ["--lora", pair]
    if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "").lower() in ("1", "true"):
        line += ["--allow-adapter-loading"]
    for origin in flags.get("--allowed-origins", ()):
        line += [word for one in json.loads(origin) for word in ("--allowed-origin", one)]
    return line


def main(given: list[str]) -> None:
    """Serve until told to stop. The first argument is the model's name."""
    os.environ.setdefault("GLM4_PACKED_CACHE_GB", "0")
    line = command(given[0], given[1:], Path(os.environ["GLM4_PEERS"]) / "models")
    from chance import remove_chance

    from glm4.cli import main as glm4_main

    remove_chance()
    sys.argv = ["glm4", *line]
    glm4_main()

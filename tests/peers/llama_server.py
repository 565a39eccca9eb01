"""Stands in for llama-server in llama.cpp's own server tests: its flags in, `glm4 serve` with a tiny random model out.

Flags that only tell llama.cpp how to do its work (batch sizes, cache types, models to download …) change nothing here.
Flags for features we lack (LoRA files in GGUF form, a rerank head …) do not stop the start either: the suite starts
servers long before a test asks for the feature. Differences that the suite can see and we do not imitate are listed,
test by test, in llama_cpp_deselected.txt.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

SEES = "ggml-org/tinygemma3-GGUF"
"""The suite's model that sees."""
# Flags without a value, and flags with one, that change nothing here.
_SWITCHES = (
    "--offline", "--cont-batching", "--reranking", "--metrics", "--kv-unified", "--swa-full", "--slots", "--no-slots",
    "--verbose", "--no-ui", "--context-shift", "--no-models-autoload", "--jinja", "--no-jinja", "--no-mmproj",
    "--no-cache-idle-slots", "--ui-mcp-proxy", "--backend_sampling", "--embedding",
)  # fmt: skip
_VALUES = (
    "--model", "--model-url", "--model-draft", "--hf-repo", "--hf-file", "--models-dir", "--models-max",
    "--models-preset", "--batch-size", "--ubatch-size", "--threads", "--n-gpu-layers", "--pooling", "--tags", "-ctk",
    "-ctv", "-fa", "--n-predict", "--slot-save-path", "--grp-attn-n", "--grp-attn-w", "--spec-type",
    "--spec-draft-n-max", "--spec-draft-n-min", "--spec-synth-len", "--spec-synth-rates", "--reasoning-format",
    "--reasoning", "--mmproj-url", "--media-path", "--sleep-idle-seconds", "--cache-ram", "--tools-runtime",
    "--mcp-servers-config", "--mcp-servers-json", "--seed",
)  # fmt: skip


def arguments(given: list[str]) -> argparse.Namespace:
    """llama-server's command line, as far as it means something here."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in _SWITCHES:
        parser.add_argument(name, action="store_true")
    for name in _VALUES:
        parser.add_argument(name)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default="8080")
    parser.add_argument("--temp", type=float, default=0.8)
    parser.add_argument("--ctx-size", type=int, default=4096)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--alias", default="tiny")
    parser.add_argument("--api-key")
    parser.add_argument("--chat-template")
    parser.add_argument("--chat-template-file")
    parser.add_argument("--cors-origins")
    parser.add_argument("--tools")
    parser.add_argument("--lora", action="append")
    return parser.parse_args(given)


def template(args: argparse.Namespace) -> str | None:
    """The text of the chat template; None is GLM-4's."""
    if args.chat_template_file:
        return Path(args.chat_template_file).read_text()
    if args.chat_template is None or "{" in args.chat_template or " " in args.chat_template:
        return args.chat_template
    if args.chat_template == "chatml":
        import glm4

        return (Path(glm4.__file__).parent / "chat/template/jinja/chatml.jinja").read_text()
    sys.exit(f"no chat template is called {args.chat_template!r} here")


def command(args: argparse.Namespace, models: Path) -> list[str]:
    """The arguments of `glm4`."""
    from tiny_glm import checkpoint

    # llama.cpp divides its context among its slots, unless they share it; ours is each request's own.
    context = args.ctx_size if args.kv_unified else args.ctx_size // args.parallel
    if args.embedding:
        context *= 4  # the suite's embedding model has words for tokens, ours has bytes
    if args.chat_template_file:
        context = max(context, 8192)  # and templates for tools are long
    origins = args.cors_origins or ("localhost" if args.tools else "*")
    names: list[str] = [*args.alias.split(","), "*"]  # llama-server answers to any name
    name, *further = names
    sees = str(args.hf_repo).startswith(SEES)
    source = f"{name}={checkpoint(models, template(args), args.temp, sees=sees)}"
    line = ["serve", "--model", source, "--preload", "--threads", "1"]
    line += ["--host", args.host, "--port", args.port, "--dtype", "fp32", "--context", str(context)]
    line += ["--max-num-seqs", str(args.parallel), "--log-level", "warning", "--allowed-origin", origins]
    for one in further:
        line += ["--served-model-name", one]
    return [*line, "--api-key", args.api_key] if args.api_key else line


def main(given: list[str]) -> None:
    """Serve until told to stop."""
    os.environ.setdefault("GLM4_PACKED_CACHE_GB", "0")
    line = command(arguments(given), Path(os.environ["GLM4_PEERS"]) / "models")
    from chance import remove_chance

    from glm4.cli import main as glm4_main

    remove_chance()
    sys.argv = ["glm4", *line]
    glm4_main()

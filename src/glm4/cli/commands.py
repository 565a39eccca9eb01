"""The table of commands: where each one is defined, and how `glm4 --help` lists it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple


class CommandRow(NamedTuple):
    """Where a command is defined and how `glm4 --help` lists it."""

    module: str
    panel: str
    summary: str

    def load(self, name: str) -> tuple[ModuleType, Callable[..., None]]:
        """The command's module and its function in that module."""
        module = importlib.import_module(self.module)
        return module, getattr(module, name)


def before_separator(args: list[str]) -> list[str]:
    """The words before `--`; nothing after it is an option."""
    return args[: args.index("--")] if "--" in args else args


def print_version() -> None:
    """Print one line on standard output."""
    from glm4 import __version__

    print(f"glm4 {__version__}", flush=True)


_RUN, _TRAIN, _MODELS, _TERMINAL = "Run a model", "Train", "Manage models", "At the terminal"

COMMANDS: dict[str, CommandRow] = {
    "chat": CommandRow("glm4.cli.chat", _RUN, "Talk to a model, or ask it one question."),
    "read": CommandRow("glm4.cli.read", _RUN, "Ask about files: PDF, Word, web pages and others; cites their pages."),
    "ui": CommandRow("glm4.cli.ui", _RUN, "Talk to a model in your browser."),
    "generate": CommandRow("glm4.cli.generate", _RUN, "Continue a text, without a chat template."),
    "serve": CommandRow("glm4.cli.serve", _RUN, "Serve models over HTTP: OpenAI's and Anthropic's APIs."),
    "batch": CommandRow("glm4.cli.batch", _RUN, "Answer a file of OpenAI batch requests; resumes where it stopped."),
    "sessions": CommandRow("glm4.cli.sessions", _RUN, "List, find, export and delete saved conversations."),
    "bench": CommandRow("glm4.cli.bench", _RUN, "Measure how fast a model runs here."),
    "finetune": CommandRow("glm4.cli.finetune", _TRAIN, "Train a model on your data: LoRA, P-Tuning v2 or everything."),
    "data": CommandRow("glm4.cli.data", _TRAIN, "Check training data row by row, or convert it."),
    "merge": CommandRow("glm4.cli.merge", _TRAIN, "Write a model with an adapter folded into its weights."),
    "pull": CommandRow("glm4.cli.pull", _MODELS, "Download a model."),
    "models": CommandRow("glm4.cli.models", _MODELS, "List installed and known models."),
    "info": CommandRow("glm4.cli.info", _MODELS, "Describe a model: architecture, context, tensors."),
    "quantize": CommandRow("glm4.cli.quantize", _MODELS, "Write a model as a smaller checkpoint that starts fast."),
    "export": CommandRow("glm4.cli.export", _MODELS, "Write a model as GGUF, for llama.cpp and Ollama."),
    "plan": CommandRow("glm4.cli.plan", _MODELS, "Estimate the memory a model needs, and whether it fits here."),
    "tools": CommandRow("glm4.cli.tools", _MODELS, "Show which tools are ready; install what they need."),
    "completion": CommandRow("glm4.cli.completion", _TERMINAL, "Print a script that completes commands in your shell."),
}

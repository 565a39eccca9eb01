"""What people type out of habit, from vLLM, llama.cpp, Ollama and transformers, and what to do instead.

None of it is an option of ours; it makes the message for a mistake better. What means the same as an option of ours is
a second spelling of that one instead (`--max-model-len` in `options.py`).
"""

from __future__ import annotations

from collections.abc import Collection

from glm4.cli.parameters import UsageError

_CPU = "this engine runs on the CPU; leave it out"
_VLLM = "for the vLLM backend (--backend vllm), which is not in this version"
_CHAT = "tool calls, reasoning and the chat template follow from the checkpoint; leave it out"
_DTYPE = "--dtype int8 or int4 quantizes any checkpoint while it is loaded"

# Only one device and one process: what vLLM splits a model with is accepted if it splits nothing.
SPLITTING = ("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp")

# An option of ours is told where the command has it; a sentence always.
_INSTEAD = {
    **dict.fromkeys(("-c", "--ctx-size", "--n-ctx", "--num-ctx", "--max-seq-len"), "--context"),
    **dict.fromkeys(("-t", "--num-threads"), "--threads"),
    **dict.fromkeys(("-n", "--predict", "--n-predict", "--max-new-tokens", "--num-predict"), "--max-tokens"),
    "--temp": "--temperature",
    "--repeat-penalty": "--repetition-penalty",
    "-s": "--seed",
    **dict.fromkeys(("-sys", "--system-prompt"), "--system"),
    **dict.fromkeys(("-hf", "--hf-repo", "--model-path", "--model-name-or-path", "--tokenizer"), "--model"),
    **dict.fromkeys(("-ctk", "--cache-type-k", "-ctv", "--cache-type-v"), "--kv-dtype"),
    **dict.fromkeys(("-np", "--parallel"), "--max-num-seqs"),
    **dict.fromkeys(("--torch-dtype", "--precision"), "--dtype"),
    **dict.fromkeys(("--lora-modules", "--enable-lora", "--adapter"), "--lora"),
    **dict.fromkeys(("-a", "--alias"), "--served-model-name"),
    "--kv-cache-memory-bytes": "--kv-memory",
    "--allowed-origins": "--allowed-origin",
    **dict.fromkeys(("-p", "--prompt"), "the prompt is an argument of its own, without an option"),
    **dict.fromkeys(("-q", "--quantization", "--load-in-8bit", "--load-in-4bit"), _DTYPE),
    **dict.fromkeys(("-ngl", "--gpu-layers", "--n-gpu-layers", "--device", "--device-map"), _CPU),
    **dict.fromkeys(("--gpu-memory-utilization", "--backend", "--distributed-executor-backend"), f"it is {_VLLM}"),
    **dict.fromkeys(("--tool-call-parser", "--enable-auto-tool-choice", "--reasoning-parser"), _CHAT),
    **dict.fromkeys(("--chat-template", "--jinja"), _CHAT),
    "--trust-remote-code": "no code of a checkpoint is ever run, and none is needed; leave it out",
    "--enable-prefix-caching": "equal beginnings of prompts are always computed once; leave it out",
    **dict.fromkeys(("-fa", "--flash-attn", "--enforce-eager", "--mlock", "--no-mmap"), "there is nothing to choose"),
    # commands
    "run": "glm4 chat",
    **dict.fromkeys(("list", "ls", "ps", "rm"), "glm4 models"),
    "show": "glm4 info",
    **dict.fromkeys(("convert", "create"), "glm4 quantize"),
}


def advice(word: str, known: Collection[str]) -> str:
    """What to do instead of an option or command of another program; empty if there is nothing to say.

    Args:
        known: options of the command at hand.
    """
    instead = "" if word in known else _INSTEAD.get(word, "")
    if instead.startswith("-"):
        return f"here it is {instead}" if instead in known else ""
    return f"here it is `{instead}`" if instead.startswith("glm4 ") else instead


def not_split(text: str) -> None:
    """Accepts the value 1 of an option that splits a model over devices.

    Raises:
        UsageError: any other.
    """
    if text != "1":
        raise UsageError(f"splitting a model over several devices is {_VLLM}")

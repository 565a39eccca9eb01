"""What people type out of habit, from vLLM, llama.cpp, Ollama and transformers, and what to do instead.

None of it is an option of ours; it makes the message for a mistake better. What means the same as an option of ours is
a second spelling of that one instead (`--max-model-len` in `options.py`).
"""

from __future__ import annotations

from collections.abc import Collection

from glm4.cli.parameters import UsageError

_VLLM = "for the vLLM backend (--backend vllm), which is not in this version"
# Options that split a model over devices: accepted if they split nothing.
SPLITTING = ("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp")

# Our option or a sentence: what others have for it.
_OTHERS = {
    "--context": "-c --ctx-size --n-ctx --num-ctx --max-seq-len",
    "--threads": "-t --num-threads",
    "--max-tokens": "-n --predict --n-predict --num-predict --max-new-tokens",
    "--temperature": "--temp",
    "--repetition-penalty": "--repeat-penalty",
    "--seed": "-s",
    "--system": "-sys --system-prompt",
    "--model": "-hf --hf-repo --model-path --model-name-or-path --tokenizer",
    "--dtype": "--torch-dtype --precision",
    "--kv-dtype": "-ctk --cache-type-k -ctv --cache-type-v",
    "--kv-memory": "--kv-cache-memory-bytes",
    "--max-num-seqs": "-np --parallel",
    "--lora": "--enable-lora --lora-modules --adapter",
    "--served-model-name": "-a --alias",
    "--allowed-origin": "--allowed-origins",
    "a prompt needs no option in front": "-p --prompt",
    "any checkpoint is quantized while it is loaded, by --dtype int8 or int4": "-q --quantization --load-in-4bit",
    "this engine runs on the CPU": "-ngl --gpu-layers --n-gpu-layers --device --device-map",
    f"it is {_VLLM}": "--gpu-memory-utilization --backend --distributed-executor-backend",
    "the checkpoint says how; leave it out": "--chat-template --jinja --tool-call-parser --reasoning-parser",
    "tools need no option; leave it out": "--enable-auto-tool-choice",
    "no code of a checkpoint is ever run; leave it out": "--trust-remote-code",
    "it is always done; leave it out": "--enable-prefix-caching -fa --flash-attn --enforce-eager",
    "here it is `glm4 chat`": "run",
    "here it is `glm4 models`": "list ls ps rm",
    "here it is `glm4 info`": "show",
    "here it is `glm4 quantize`": "convert create",
}


def advice(word: str, known: Collection[str]) -> str:
    """What to do instead of another program's option or command; empty if there is nothing to say.

    Args:
        known: options of the command at hand, or commands.
    """
    if word in known:
        return ""
    instead = next((ours for ours, theirs in _OTHERS.items() if word in theirs.split()), "")
    return instead if " " in instead else f"here it is {instead}" if instead in known else ""


def not_split(text: str) -> None:
    """Accepts the value 1 of an option that splits a model.

    Raises:
        UsageError: any other.
    """
    if text != "1":
        raise UsageError(f"splitting a model over several devices is {_VLLM}")

"""What to say about an unknown word on the command line; imported only for mistakes.

Users type options and commands of vLLM, llama.cpp, Ollama and transformers out of habit. Those that mean the same as
one of our options are alternate spellings of it (`--max-model-len` in `options.py`); this table has the others.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from glm4.cli.parameters import UsageError

# Our option, or a sentence: what other programs call it.
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
    "--kv-store": "--prompt-cache --slot-save-path --kv-transfer-config",
    "--max-num-seqs": "-np --parallel",
    "--lora": "--enable-lora --lora-modules --adapter",
    "--served-model-name": "-a --alias",
    "--allowed-origin": "--allowed-origins",
    "a prompt needs no option in front": "-p --prompt",
    "any checkpoint is quantized while it is loaded, by --dtype int8 or int4": "-q --quantization --load-in-4bit",
    "our own engine runs on the CPU; for a GPU: --backend vllm, or --backend transformers --device cuda": (
        "-ngl --gpu-layers --n-gpu-layers"
    ),
    "--device": "--device-map -dev",
    "--engine-args": "--distributed-executor-backend --max-num-batched-tokens --swap-space --cpu-offload-gb",
    "the checkpoint says how; leave it out": "--chat-template --jinja --tool-call-parser --reasoning-parser",
    "tools need no option; leave it out": "--enable-auto-tool-choice",
    "no code of a checkpoint is ever run; leave it out": "--trust-remote-code",
    "it is always done; leave it out": "--enable-prefix-caching -fa --flash-attn --enforce-eager",
    "here it is `glm4 chat`": "run",
    "here it is `glm4 models`": "list ls ps rm",
    "here it is `glm4 info`": "show",
    "here it is `glm4 quantize`": "convert create",
}


def unknown(word: str, options: Iterable[str], commands: Iterable[str] = ()) -> UsageError:
    """The error for an unknown word, with suggestions for what may have been meant.

    Args:
        options: what would have been accepted.
        commands: what would have been accepted in place of an argument.
    """
    if word.startswith("-"):
        word, known = word.partition("=")[0], [*options, "--help", "--debug"]
        wrong = f"no such option: {word}"
    elif commands:
        known, wrong = list(commands), f"no such command {word!r}"
    else:
        return UsageError(f"unexpected argument {word!r}; a text with spaces needs quotes")
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    meant = advice(word, known) or (f"did you mean {close[0]}?" if close else "")
    return UsageError(f"{wrong}; {meant}" if meant else wrong)


def advice(word: str, known: Collection[str]) -> str:
    """What to do instead of another program's option or command; empty if there is no advice.

    Args:
        known: options of the command at hand, or commands.
    """
    if word in known:
        return ""
    instead = next((ours for ours, theirs in _OTHERS.items() if word in theirs.split()), "")
    return instead if " " in instead else f"here it is {instead}" if instead in known else ""

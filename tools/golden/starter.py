"""Records greedy continuations of the starter and smoke models, computed by transformers in float32."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from golden.files import write_json
from golden.gguf_reference import GGUFReference
from golden.tiny import greedy, logits

STEPS = 64
# Below this distance between the two best logits, two correct float32 programs may choose differently.
SAFE_MARGIN = 1e-3

_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get the current weather in a given location",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string", "description": "The city, e.g. Paris"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["location"],
        },
    },
}


def _user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


PROMPTS: dict[str, dict[str, dict[str, Any]]] = {
    "starter": {
        "zh-beijing": {"messages": _user("请用两段话介绍北京的历史和美食。")},
        "zh-recursion": {"messages": _user("什么是递归？请用一个生活中的例子解释，再给出一段 Python 代码。")},
        "en-photosynthesis": {
            "messages": _user("Explain step by step how photosynthesis works, and why it matters for life on Earth.")
        },
        "en-turns": {
            "messages": [
                {"role": "system", "content": "You are a patient teacher. Answer in complete sentences."},
                {"role": "user", "content": "What is the capital of Australia?"},
                {"role": "assistant", "content": "The capital of Australia is Canberra."},
                {"role": "user", "content": "Describe its history and climate in detail."},
            ]
        },
        "code-fibonacci": {
            "messages": _user("Write a Python function that returns the n-th Fibonacci number, with a docstring.")
        },
        "code-sql": {
            "messages": _user(
                "Fix this query and say what was wrong:\n"
                "```sql\nSELECT name, COUNT(*) FROM orders WHERE COUNT(*) > 3;\n```"
            )
        },
        "tool-call": {
            "messages": _user("What is the weather like in Paris today, in celsius?"),
            "tools": [_WEATHER],
        },
        "tool-result": {
            "messages": [
                {"role": "user", "content": "上海现在天气怎么样？"},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        {
                            "type": "function",
                            "function": {
                                "name": "get_current_weather",
                                "arguments": {"location": "上海", "unit": "celsius"},
                            },
                        }
                    ],
                },
                {"role": "tool", "content": '{"temperature": 22, "condition": "多云"}'},
            ],
            "tools": [_WEATHER],
        },
    },
    "smoke": {
        "en-gravity": {"messages": _user("What is gravity?")},
        "en-story": {"messages": _user("Write the first paragraph of a story about a lighthouse keeper.")},
        "en-turns": {
            "messages": [
                {"role": "system", "content": "You answer briefly."},
                {"role": "user", "content": "Name three primary colors."},
                {"role": "assistant", "content": "Red, yellow and blue."},
                {"role": "user", "content": "Which two of them make green? Explain how to mix them on paper."},
            ]
        },
        "code-fibonacci": {"messages": _user("Write a Python function that returns the n-th Fibonacci number.")},
    },
}


def record(name: str, gguf_path: Path, folder: Path) -> list[Path]:
    """One JSON file per model; see `_record_prompt` for what is kept of each prompt.

    Stop ids do not stop: all continuations have `STEPS` tokens.
    """
    reference = GGUFReference(gguf_path)
    prompts = {key: _record_prompt(reference, key, **prompt) for key, prompt in PROMPTS[name].items()}
    digest = hashlib.sha256(gguf_path.read_bytes()).hexdigest()
    path = folder / f"{name}.json"
    write_json(path, {"model": name, "gguf_sha256": digest, "architecture": reference.architecture, "prompts": prompts})
    return [path]


def _record_prompt(
    reference: GGUFReference, key: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The rendered text, its ids, the greedy ids, and for every position of prompt + output but the last:
    top1 (the most likely next id), top_logit (its logit) and margin (its distance to the second)."""
    text = reference.tokenizer.apply_chat_template(
        messages, tools=tools, chat_template=reference.template, add_generation_prompt=True, tokenize=False
    )
    prompt_ids = np.array(reference.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
    output_ids, _ = greedy(reference.model, prompt_ids, STEPS)
    scores = logits(reference.model, np.concatenate([prompt_ids, output_ids[:-1]]))
    top = torch.topk(torch.from_numpy(scores), 2)
    top1, values = top.indices[:, 0].numpy(), top.values.numpy()
    margins = values[:, 0] - values[:, 1]
    smallest = float(margins[-STEPS:].min())
    if not np.array_equal(top1[-STEPS:], output_ids) or smallest < SAFE_MARGIN:
        raise ValueError(f"{key}: two logits of the continuation are {smallest:.1e} apart; choose another prompt")
    print(f"  {key}: {len(prompt_ids)} prompt ids, smallest margin {smallest:.4f}")
    return {
        "messages": messages,
        **({"tools": tools} if tools else {}),
        "text": text,
        "prompt_ids": prompt_ids.tolist(),
        "output_ids": output_ids.tolist(),
        "output_text": reference.tokenizer.decode(output_ids),
        "top1": top1.tolist(),
        "top_logit": [round(float(value), 4) for value in values[:, 0]],
        "margin": [round(float(value), 4) for value in margins],
    }

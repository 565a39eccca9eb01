"""Two servers for the client libraries, until standard input closes; prints their addresses as a line of JSON.

`scripted` has the starter's own tokenizer and template, and answers written here from what the template made of the
conversation. So a client that loses a turn, or a server that takes one city's weather for another's, changes the
answer. `starter` is the real model, for answers whose form a schema enforces.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from glm4.backends.scripted import ScriptedBackend
from glm4.hub import resolve
from glm4.llm import LLM
from glm4.requests.processor import Processor
from live import config, serve

CONTEXT = 8192
CITIES = ("Oslo", "Cairo")
RESULT = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.DOTALL)


def answer(prompt: str) -> str:
    """The raw answer to a rendered conversation.

    A question for the weather is answered by two calls at once; their results, in the order of the calls, by a line
    that repeats them; anything else by the words of the turns so far.
    """
    _, _, tail = prompt.rpartition("<|im_start|>user\n")
    results = RESULT.findall(tail)
    if results:
        return "; ".join(f"{city}: {result.strip()}" for city, result in zip(CITIES, results, strict=False))
    if "Weather" in tail and "<tools>" in prompt:
        calls = [json.dumps({"name": "get_weather", "arguments": {"city": city}}) for city in CITIES]
        return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
    turns = re.findall(r"<\|im_start\|>(?:user|assistant)\n(.*?)<\|im_end\|>", prompt, re.DOTALL)
    return "You said: " + " | ".join(turn.strip() for turn in turns if "<tool_" not in turn)


def scripted(model: Path) -> LLM:
    """The starter's text side in front of `answer`."""
    text = Processor.open(model)
    end = next(iter(text.stop_ids))

    def script(prompt_ids: Sequence[int]) -> list[int]:
        prompt = text.tokenizer.decode(prompt_ids, skip_special_tokens=False)
        return [*text.tokenizer.encode(answer(prompt), allow_special=True), end]

    backend = ScriptedBackend(script, vocab_size=text.tokenizer.size, max_model_len=CONTEXT)
    return LLM.from_backend(backend, text)


def main() -> None:
    """Serve until the other side closes our input."""
    model = resolve("starter")
    keys = ("sk-clients-test",)
    with (
        serve(config("scripted", api_keys=keys), scripted(model)) as first,
        serve(config("starter", api_keys=keys), LLM(str(model), max_model_len=CONTEXT)) as second,
    ):
        print(json.dumps({"scripted": first.url, "starter": second.url}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()

"""What the prefix cache saves: time to first token of a long prompt, and of a second one that shares its beginning.

    python benchmarks/prefix.py
    python benchmarks/prefix.py --model smoke --tokens 4000 --rounds 9

One `glm4 serve`, one client, over HTTP on loopback. Every round has a beginning of its own, so the first of its two
questions finds nothing in the cache. Goal: the second takes at most 15 % of the first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics

import harness
from serving import WORDS, Job, Load, ask, free_port, ours, server

ANSWER = 8  # a few tokens, in case the first ones have no text
QUESTIONS = ("What is it about?", "Who wrote it, and when?")


def document(words: int, seed: int) -> str:
    """Random words; about one token each."""
    draw = random.Random(seed)
    return f"{draw.randrange(10**9)} " + " ".join(draw.choice(WORDS) for _ in range(words))


async def first_token(port: int, prompt: str) -> tuple[float, int]:
    """Seconds to the first token, and tokens of the prompt."""
    load = Load()
    await ask(port, Job(prompt, ANSWER), load)
    return load.first[0], load.prompt_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=2000, help="length of the shared beginning, about")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=harness.num_cores())
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    facts = harness.facts(arguments.rounds)
    port = free_port()
    command = ours(arguments.model, arguments.dtype, arguments.threads, 1, port)
    command[command.index("--context") + 1] = str(arguments.tokens + 1000)
    times: list[list[float]] = [[], []]
    sizes: list[int] = []
    with server(command, port, "/ready"):
        asyncio.run(first_token(port, document(100, seed=-1)))  # warm
        for number in range(arguments.rounds):
            harness.progress(f"round {number + 1}/{arguments.rounds}")
            for question, seconds in zip(QUESTIONS, times, strict=True):
                taken, size = asyncio.run(first_token(port, f"{document(arguments.tokens, number)}\n\n{question}"))
                seconds.append(taken)
                sizes.append(size)
    harness.progress("")
    first, second = (statistics.median(seconds) for seconds in times)
    row = {
        "prompt, tokens": statistics.median(sizes),
        "TTFT of the first, ms": 1000 * first,
        "of the second, ms": 1000 * second,
        "second / first": statistics.median(two / one for one, two in zip(*times, strict=True)),
    }
    if arguments.json:
        print(json.dumps({"facts": facts, "rows": [row]}, indent=2))
        return
    print(f"{harness.bullets(facts)}\n\n{harness.table(list(row), [list(row.values())])}")


if __name__ == "__main__":
    main()

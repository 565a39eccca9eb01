"""What guessing repeated text ahead gains on copy-heavy text and costs on free chat: one model with it on and off.

    python benchmarks/speculation.py --model starter-large

Off and on alternate (A B A B …); the answers are compared and must be equal, greedy and sampled.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

from glm4 import LLM, SamplingParams

SOURCE = (Path(__file__).parents[1] / "src" / "glm4" / "memory.py").read_text(encoding="utf-8")[:1600]
RECORD = {"name": "Ada Lovelace", "born": 1815, "city": "London", "works": ["Notes on the Analytical Engine"]}

COPY_HEAVY = {
    "edit a file": f"Rename the function `_number` to `_read_number` everywhere and print the whole file.\n\n{SOURCE}",
    "quote a document": f"Repeat the following text word for word.\n\n{SOURCE[:900]}",
    "write JSON": 'Give a JSON list of these records, each with one more field "id":\n'
    + "\n".join(json.dumps(RECORD | {"born": 1815 + year}) for year in range(6)),
}
FREE_CHAT = {
    "explain (en)": "Explain to a child why the sky is blue and sunsets are red.",
    "story (zh)": "写一个关于一只狐狸和一条河的短故事。",
    "code (en)": "Write a Python class for a binary search tree with insert, delete and search.",
}


def answer(llm: LLM, prompt: str, params: SamplingParams) -> tuple[list[int], float]:
    """Token ids and decode tokens per second."""
    (output,) = llm.chat([{"role": "user", "content": prompt}], params)
    return output.outputs[0].token_ids, output.metrics.decode_tokens_per_second or 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter-large")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    load_average = os.getloadavg()[0]
    # Two engines over the same model file; the prefix cache keeps prefill out of the measurement for both.
    engines = {on: LLM(arguments.model, max_model_len=4096, speculation=on) for on in (False, True)}
    rows = []
    for kind, prompts in (("copy-heavy", COPY_HEAVY), ("free chat", FREE_CHAT)):
        for name, prompt in prompts.items():
            params = SamplingParams(temperature=0.0, max_tokens=arguments.max_tokens)
            if kind == "free chat":
                params = engines[True].default_sampling_params().replace(max_tokens=arguments.max_tokens, seed=1)
            speeds: dict[bool, list[float]] = {False: [], True: []}
            for number in range(arguments.rounds):
                print(f"\r{name}: round {number + 1}/{arguments.rounds}\x1b[K", end="", file=sys.stderr, flush=True)
                texts = {}
                for on, llm in engines.items():
                    texts[on], speed = answer(llm, prompt, params)
                    speeds[on].append(speed)
                if texts[True] != texts[False]:
                    raise SystemExit(f"{name}: the answers differ with speculation on")
            off, guessing = (statistics.median(speeds[side]) for side in (False, True))
            rows.append({"kind": kind, "prompt": name, "off": off, "on": guessing, "ratio": guessing / off})
    print(file=sys.stderr)
    if arguments.json:
        print(json.dumps({"model": arguments.model, "load": load_average, "rows": rows}, indent=2))
        return
    print(f"- model: {arguments.model}, {arguments.rounds} rounds, medians; load before: {load_average:.1f}\n")
    print("| text | off, tok/s | on, tok/s | ratio |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['kind']}: {row['prompt']} | {row['off']:.1f} | {row['on']:.1f} | {row['ratio']:.2f} |")


if __name__ == "__main__":
    main()

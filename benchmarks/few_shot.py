"""What few-shot scoring costs with the prefix cache and without, asked the way evaluation harnesses ask.

    python benchmarks/few_shot.py
    python benchmarks/few_shot.py --questions 10 --cold 2

Every question is asked once for each of its choices: examples, question and choice as one prompt of token ids, echoed
with log-probabilities, one request at a time, as `local-completions` of lm-eval does. Without the cache is a model in
the same process with `enable_prefix_caching=False`; it is asked some of the questions, each in turn with its share
of all, and that share is asked again. The values must be the same to the last bit. Goal: 20 times as fast. (A question
of Q tokens behind P tokens of examples is at most 4 (P + Q) / Q times as fast when it is new, as each has to be read.)
"""

from __future__ import annotations

import argparse
import json
import random
import time
from typing import Any

import harness
from glm4 import LLM, SamplingParams
from glm4.logprobs import TokenLogprobs

SUBJECTS = (
    "a river",
    "a metal",
    "a planet",
    "an organ of the body",
    "a kind of cloud",
    "a treaty",
    "an enzyme",
    "a star",
)
RELATIONS = ("is best described as", "was first explained by", "is usually measured in", "depends most strongly on")
WORDS = (
    "pressure", "light", "copper", "a change of state", "the northern coast", "two opposing forces", "salt",
    "the council",
    "a slow reaction", "its own weight", "trade between cities", "the nervous system", "an early observation", "heat",
    "a shared border", "the seasonal rains", "a long decline", "the square of the distance", "iron", "carbon dioxide",
)  # fmt: skip
PARAMS = SamplingParams(temperature=0, max_tokens=1, logprobs=1, prompt_logprobs=1)
Scores = list[TokenLogprobs | None] | None


def question(draw: random.Random, number: int) -> tuple[str, list[str]]:
    """A question as MMLU writes them, and its choices."""
    about = f"{draw.choice(SUBJECTS)} of the {draw.choice(('first', 'second', 'third'))} kind"
    text = (
        f"Which of the following statements about {about}, as in case {number}, is true if it {draw.choice(RELATIONS)}"
    )
    options = [" and ".join(draw.sample(WORDS, 3)) for _ in range(4)]
    lines = [f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True)]
    return "\n".join([f"{text} {draw.choice(WORDS)}?", *lines, "Answer:"]), [" A", " B", " C", " D"]


def prompts(llm: LLM, questions: int, shots: int) -> tuple[list[list[list[int]]], int]:
    """For each question the prompts of its choices, and how many tokens the examples have."""
    draw = random.Random(0)
    head = "The following are multiple choice questions (with answers) about natural philosophy.\n\n"
    for number in range(shots):
        text, choices = question(draw, -1 - number)
        head += f"{text}{draw.choice(choices)}\n\n"
    encode = llm.tokenizer.encode
    asked = [question(draw, number) for number in range(questions)]
    return [[encode(head + text + choice) for choice in choices] for text, choices in asked], len(encode(head))


def score(llm: LLM, asked: list[list[list[int]]]) -> tuple[float, list[Scores]]:
    """Seconds, and the log-probabilities of every prompt."""
    began = time.perf_counter()
    found = [llm.generate(ids, PARAMS)[0].prompt_logprobs for choices in asked for ids in choices]
    return time.perf_counter() - began, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--cold", type=int, default=5, help="questions asked without the cache, too")
    parser.add_argument("--threads", type=int, default=harness.num_cores())
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    facts = harness.facts(1)
    options: Any = {"dtype": arguments.dtype, "max_model_len": 4096, "num_threads": arguments.threads}
    cold, warm, again, num_equal = 0.0, 0.0, 0.0, 0
    plain: Any = options | {"enable_prefix_caching": False}
    with LLM(arguments.model, **plain) as without, LLM(arguments.model, **options) as llm:
        asked, head = prompts(llm, arguments.questions, arguments.shots)
        for one in (without, llm):
            score(one, [[asked[0][0][:64]]])  # warm
        for number in range(arguments.cold):
            harness.progress(f"part {number + 1}/{arguments.cold}")
            first, end = (at * arguments.questions // arguments.cold for at in (number, number + 1))
            seconds, expected = score(without, asked[first : first + 1])
            cold += seconds
            seconds, found = score(llm, asked[first:end])
            warm += seconds
            seconds, repeated = score(llm, asked[first:end])
            again += seconds
            if found[: len(expected)] != expected or repeated != found:
                raise SystemExit("the values differ")
            num_equal += sum(len(one or ()) for one in expected)
    harness.progress("")
    per_question = cold / arguments.cold
    row = {
        "examples, tokens": head,
        "prompt, tokens": round(sum(len(ids) for choices in asked for ids in choices) / (4 * len(asked))),
        "without, s per question": per_question,
        f"with, s for {arguments.questions}": warm,
        "times as fast": per_question * arguments.questions / warm,
        "again, s": again,
        "again, times as fast": per_question * arguments.questions / again,
        "equal values": num_equal,
    }
    if arguments.json:
        print(json.dumps({"facts": facts, "rows": [row]}, indent=2))
        return
    print(f"{harness.bullets(facts)}\n\n{harness.table(list(row), [list(row.values())])}")


if __name__ == "__main__":
    main()

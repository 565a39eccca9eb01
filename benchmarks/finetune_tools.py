"""Which token ends a call after fine-tuning: with our loss mask, and with that of the original repository.

    python benchmarks/finetune_tools.py
    python benchmarks/finetune_tools.py --base-steps 300 --steps 60 --rounds 1      # quick

A tiny GLM-4 with random weights learns to call functions (all its weights, `method: full`) and is then taught by LoRA
to answer in the house's words, once with our masks and once, from the same conversations, with those of the
original's `combine: True`. Each adapter is then asked about functions and things that no training had, by our engine,
greedily: does a call end with `<|observation|>`, is it the right call, does an answer end with `<|user|>`, is it in
the right words. Rounds differ in seed. Goal: at least 95 % of calls end rightly with our masks. Needs the extra
`train`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import harness
from glm4 import LLM, SamplingParams
from glm4.chat.chat_request import ChatRequest
from glm4.outputs import CompletionOutput
from glm4.requests.processor import Processor
from glm4.training.config import DataConfig, LoraConfig, TrainingConfig
from glm4.training.data.dataset import load_datasets
from glm4.training.data.examples import TokenizedExample
from glm4.training.run import finetune
from tool_conversations import HOUSE, PLAIN, Case, cases, combine_mask, rows, write_rows
from tool_model import write_model

PARAMS = SamplingParams(temperature=0.0, max_tokens=40)
SIDES = {"all turns, closing role included": "glm4", "combine: True of the original": "combine"}


@dataclass(frozen=True)
class Score:
    """Shares of held-out cases, 0 to 1.

    Attributes:
        call_ended: the call ends with `<|observation|>`; `call_right`: it is the right one, too.
        answer_ended: the answer ends with `<|user|>`; `answer_right`: it has the house's words, too.
    """

    call_ended: float
    call_right: float
    answer_ended: float
    answer_right: float


def settings(model: Path, output: Path, steps: int, rate: float, seed: int, **changes: Any) -> TrainingConfig:
    """Of both trainings."""
    return TrainingConfig(
        model=str(model), output=str(output), max_steps=steps, learning_rate=rate, seed=seed,
        per_device_train_batch_size=16, gradient_checkpointing=False, dtype="fp32", device="cpu",
        warmup_ratio=0.1, logging_steps=20, save_steps=0, resume=False, **changes,
    )  # fmt: skip


def train_base(root: Path, *, steps: int, count: int, seed: int, num_tools: int) -> Path:
    """A tiny model that calls functions and answers plainly."""
    source = write_model(root / "random", seed=seed)
    found = rows(cases(count, 10 + seed, num_tools=num_tools), PLAIN)
    data = DataConfig(train=(str(write_rows(root / "plain.jsonl", found)),))
    finetune(settings(source, root / "base", steps, 6e-3, seed, method="full", data=data))
    return root / "base"


def house_samples(base: Path, root: Path, *, count: int, seed: int, num_tools: int) -> Sequence[TokenizedExample]:
    """The conversations that fine-tuning gets, with our masks."""
    file = write_rows(root / "house.jsonl", rows(cases(count, 20 + seed, num_tools=num_tools), HOUSE))
    found = load_datasets(DataConfig(train=(str(file),)), Processor.open(base), seed=seed)
    return [sample for sample in found.train if isinstance(sample, TokenizedExample)]


def masked(side: str, samples: Iterable[TokenizedExample], base: Path) -> list[TokenizedExample]:
    """The same conversations with a side's masks."""
    if side == "glm4":
        return list(samples)
    tokenizer = Processor.open(base).tokenizer
    assistant, user = tokenizer.special_id("<|assistant|>"), tokenizer.special_id("<|user|>")
    return [combine_mask(sample, assistant, user) for sample in samples]


def fine_tune(base: Path, output: Path, samples: Sequence[TokenizedExample], *, steps: int, seed: int) -> Path:
    """An adapter."""
    finetune(settings(base, output, steps, 6e-3, seed, lora=LoraConfig(r=16, lora_alpha=32)), train=samples)
    return output


def score(llm: LLM, adapter: str | None, asked: Sequence[Case]) -> Score:
    """Ask for every case its call, and its answer after the right call."""
    requests = []
    for at, case in enumerate(asked):
        turns = case.messages(HOUSE)
        for kind, prompt in (("call", turns[:1]), ("answer", turns[:3])):
            requests.append((f"{kind} {at}", ChatRequest.of(prompt, PARAMS, tools=case.tools, adapter=adapter)))
    found = {output.request_id: output.outputs[0] for output in llm.run(requests)}
    observation, user = (llm.tokenizer.special_id(name) for name in ("<|observation|>", "<|user|>"))
    calls = [(case, found[f"call {at}"]) for at, case in enumerate(asked)]
    answers = [(case, found[f"answer {at}"]) for at, case in enumerate(asked)]
    return Score(
        _share(one.token_ids[-1] == observation for _, one in calls),
        _share(_is_call(one, case) and one.token_ids[-1] == observation for case, one in calls),
        _share(one.token_ids[-1] == user for _, one in answers),
        _share(one.text.strip() == case.answer(HOUSE) and one.token_ids[-1] == user for case, one in answers),
    )


def _share(values: Iterable[bool]) -> float:
    return statistics.fmean(map(float, values))


def _is_call(output: CompletionOutput, case: Case) -> bool:
    made = [(call.name, call.arguments.strip()) for call in output.tool_calls]
    return made == [(case.function, case.arguments)]


def one_round(root: Path, args: argparse.Namespace, seed: int) -> dict[str, Score]:
    """Base and both adapters."""
    options = {"seed": seed, "num_tools": args.tools}
    harness.progress(f"seed {seed}: base")
    base = train_base(root, steps=args.base_steps, count=16 * args.base_steps, **options)
    samples = house_samples(base, root, count=16 * args.steps, **options)
    asked = cases(args.cases, 30, held_out=True, num_tools=args.tools)
    with LLM(str(base), dtype="fp32", max_model_len=1024, max_adapters=len(SIDES)) as llm:
        found = {"base": score(llm, None, asked)}
        for name, side in SIDES.items():
            harness.progress(f"seed {seed}: {name}")
            adapter = fine_tune(base, root / side, masked(side, samples, base), steps=args.steps, seed=seed)
            llm.load_adapter(side, str(adapter))
            found[name] = score(llm, side, asked)
    harness.progress("")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--cases", type=int, default=200, help="held-out questions")
    parser.add_argument("--tools", type=int, default=1, help="functions that are offered")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    facts = harness.facts(args.rounds)
    facts["rounds"] = f"{args.rounds}, means; smallest and largest in brackets"
    runs = []
    for seed in range(args.rounds):
        with tempfile.TemporaryDirectory() as name:
            runs.append(one_round(Path(name), args, seed))
    lines = []
    for side in runs[0]:
        line: dict[str, object] = {"mask": side}
        for field in fields(Score):
            values = [100 * getattr(run[side], field.name) for run in runs]
            line[field.name.replace("_", " ")] = (
                f"{statistics.fmean(values):.1f} % ({min(values):.0f}-{max(values):.0f})"
            )
        lines.append(line)
    if args.json:
        print(json.dumps({"facts": facts, "rows": lines}, indent=2))
        return
    print(f"{harness.bullets(facts)}\n\n{harness.table(list(lines[0]), [list(line.values()) for line in lines])}")


if __name__ == "__main__":
    main()

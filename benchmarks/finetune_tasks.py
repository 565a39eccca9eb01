"""Fine-tuning on a small real task, and what the adapter is worth in our engine: LoRA and P-Tuning v2.

    python benchmarks/finetune_tasks.py
    python benchmarks/finetune_tasks.py --runs "smoke lora" --quick

The task is in `function_cards.py`: functions of the standard library as JSON cards; modules that are asked about are
not trained on. Before and after, with the same engine and its usual precision: the loss of the right answers, and
greedy answers, of which the fields that are right are counted. The gain's interval is of 95 % over the questions
(bootstrap of the pairs). Rounds differ in seed and data, and their means are shown. Goals: both get better, by more
than noise. Needs the extra `train`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import harness
from function_cards import Card, cards
from glm4 import LLM, SamplingParams
from glm4.chat.chat_request import ChatRequest
from glm4.training.config import DataConfig, LoraConfig, PrefixConfig, TrainingConfig
from glm4.training.data.encoding import Encoder
from glm4.training.data.examples import ChatExample, TokenizedExample
from glm4.training.run import finetune

SCORING = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
ANSWERING = SamplingParams(temperature=0.0, max_tokens=120)


@dataclass(frozen=True)
class Run:
    """A model and a way of training it.

    Attributes:
        samples: rows of training, each seen `epochs` times.
        checkpointing: recompute activations, for models whose activations are too many.
    """

    model: str
    method: Any
    samples: int
    epochs: int
    batch: int
    learning_rate: float
    checkpointing: bool = False


RUNS = {
    "smoke lora": Run("smoke", "lora", 160, 1, 4, 1e-3),
    "smoke ptuning_v2": Run("smoke", "ptuning_v2", 160, 1, 4, 2e-2),
    "starter lora": Run("starter", "lora", 64, 1, 4, 5e-4, checkpointing=True),
}


@dataclass(frozen=True)
class Measured:
    """Loss per target token of the right answers, and of every question the share of right fields."""

    loss: float
    right: tuple[float, ...]

    @property
    def perfect(self) -> float:
        """Share of questions of which everything is right."""
        return statistics.fmean(value == 1.0 for value in self.right)


def encoded(llm: LLM, asked: Sequence[Card]) -> list[TokenizedExample]:
    """Questions with their right answers, as training would have them."""
    encoder, found = Encoder(llm.processor), []
    for card in asked:
        request = ChatRequest.of(card.row["messages"], add_generation_prompt=False)
        sample = encoder.encode(ChatExample(request, None, "held out"))
        assert isinstance(sample, TokenizedExample)
        found.append(sample)
    return found


def measure(llm: LLM, adapter: str | None, asked: Sequence[Card]) -> Measured:
    """Everything about one adapter, or about the base."""
    total, count = 0.0, 0
    samples = encoded(llm, asked)
    outputs = llm.generate([sample.ids.tolist() for sample in samples], SCORING, adapter=adapter)
    for sample, output in zip(samples, outputs, strict=True):
        entries = zip(output.prompt_logprobs or [], sample.mask, strict=True)
        values = [entry.logprob for entry, target in entries if entry is not None and target]
        total -= sum(values)
        count += len(values)
    requests = [(str(at), ChatRequest.of(card.prompt, ANSWERING, adapter=adapter)) for at, card in enumerate(asked)]
    answers = {output.request_id: output.outputs[0].text for output in llm.run(requests)}
    return Measured(total / count, tuple(card.right(answers[str(at)]) for at, card in enumerate(asked)))


def gain(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean difference of pairs."""
    differences = np.array(after) - np.array(before)
    draws = np.random.default_rng(0).integers(0, len(differences), (10_000, len(differences)))
    low, high = np.quantile(differences[draws].mean(1), (0.025, 0.975))
    return float(low), float(high)


def train(run: Run, root: Path, seed: int, samples: int) -> tuple[Path, float]:
    """The adapter, and seconds of the whole training."""
    chosen = cards(held_out=False, seed=seed)[:samples]
    rows = root / "rows.jsonl"
    rows.write_text("".join(json.dumps(card.row) + "\n" for card in chosen), encoding="utf-8")
    config = TrainingConfig(
        model=run.model,
        output=str(root / "run"),
        method=run.method,
        data=DataConfig(train=(str(rows),)),
        lora=LoraConfig(r=16, lora_alpha=32),
        prefix=PrefixConfig(num_virtual_tokens=32),
        dtype="fp32",
        device="cpu",
        num_train_epochs=run.epochs,
        per_device_train_batch_size=run.batch,
        learning_rate=run.learning_rate,
        warmup_ratio=0.05,
        gradient_checkpointing=run.checkpointing,
        seed=seed,
        save_steps=0,
        resume=False,
    )
    began = time.perf_counter()
    finetune(config)
    return root / "run", time.perf_counter() - began


def one_run(name: str, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Base, training, adapter."""
    run, asked = RUNS[name], cards(held_out=True)[: args.questions]
    harness.progress(f"{name}, seed {seed}: training")
    with tempfile.TemporaryDirectory() as folder:
        adapter, seconds = train(run, Path(folder), seed, args.samples or run.samples)
        with LLM(run.model, max_model_len=1024, max_adapters=1) as llm:
            llm.load_adapter("card", str(adapter))
            harness.progress(f"{name}, seed {seed}: base")
            before = measure(llm, None, asked)
            harness.progress(f"{name}, seed {seed}: adapter")
            after = measure(llm, "card", asked)
    harness.progress("")
    return {"seconds": seconds, "before": before, "after": after}


def row_of(name: str, runs: Sequence[dict[str, Any]]) -> dict[str, object]:
    """Means of all rounds; the interval is over all their questions."""
    before, after = ([run[side] for run in runs] for side in ("before", "after"))
    pairs = [[value for one in side for value in one.right] for side in (before, after)]
    low, high = gain(*pairs)
    return {
        "run": name,
        "training, s": statistics.fmean(run["seconds"] for run in runs),
        "loss before": f"{statistics.fmean(one.loss for one in before):.3f}",
        "after": f"{statistics.fmean(one.loss for one in after):.3f}",
        "fields right before": f"{statistics.fmean(pairs[0]):.1%}",
        "after ": f"{statistics.fmean(pairs[1]):.1%}",
        "gain, 95 %": f"{100 * low:+.1f} to {100 * high:+.1f}",
        "whole card right before": f"{statistics.fmean(one.perfect for one in before):.1%}",
        "after  ": f"{statistics.fmean(one.perfect for one in after):.1%}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="*", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--samples", type=int, default=0, help="rows of training instead of each run's own number")
    parser.add_argument("--quick", action="store_true", help="32 rows, twelve questions")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.samples, args.questions = 32, 12
    facts = harness.facts(args.rounds) | {"rounds": f"{args.rounds}, means"}
    rows = [row_of(name, [one_run(name, args, seed) for seed in range(args.rounds)]) for name in args.runs]
    if args.json:
        print(json.dumps({"facts": facts, "rows": rows}, indent=2))
        return
    print(f"{harness.bullets(facts)}\n\n{harness.table(list(rows[0]), [list(row.values()) for row in rows])}")


if __name__ == "__main__":
    main()

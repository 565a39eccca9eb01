"""Fine-tuning with LoRA by `glm4`, by TRL and by transformers' own Trainer: tokens per second, peak memory, loss.

    python benchmarks/finetune.py                                       # random weights, GLM-4's whole vocabulary
    python benchmarks/finetune.py --model starter --samples 8 --batch 2
    python benchmarks/finetune.py --sides "TRL" "TRL, random order"

Run it with a Python that has the extras `train` and `test`, and TRL (.venv-backends with trl). Every side is a
process of its own, in turn; all start from the same float32 weights, see the same conversations once (half of their
tokens carry loss, few are long) in batches of one size, recompute activations, and train the same matrices. The peers
get token ids and labels that our side made, before the clock starts, and group samples by length as we do. A second
is one of training: loading, and for us reading the data, is before it, but counts for the peak memory of the process.
Padding counts as no token. At the end the adapters' loss is measured on rows that nobody saw, by transformers. Goals:
1.0 times TRL's tokens per second, at most its peak memory and at most 0.6 times that of the Trainer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import finetune_data as data
import harness
from glm4.hub import resolve

OURS = "glm4"
PEERS = ("TRL", "Trainer", "TRL, random order", "Trainer, random order")
GOALS = {"TRL": "tokens/s at least 1.0, memory at most 1.0", "Trainer": "memory at most 0.6"}
_HERE = Path(__file__).resolve().parent


def prepare(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Write the model and the data; returns what every side is told."""
    model = root / "model"
    if args.model == "random":
        data.write_random_glm(root / "source", args.layers, args.hidden)
        data.export_hf(root / "source", model)
        (root / "source" / "model.safetensors").unlink()
    else:
        data.export_hf(resolve(args.model), model)
    made = data.conversations(args.samples + args.held_out, args.seed)
    data.write_rows(root / "rows.jsonl", made[: args.samples])
    tokens = data.tokenized(model, made)
    data.save_tokens(root / "tokens.npz", tokens[: args.samples])
    data.save_tokens(root / "held_out.npz", tokens[args.samples :])
    return {
        "model": str(model), "rows": str(root / "rows.jsonl"), "tokens": str(root / "tokens.npz"),
        "held_out": str(root / "held_out.npz"), "batch": args.batch, "rank": args.rank, "alpha": 2 * args.rank,
        "learning_rate": args.learning_rate, "seed": args.seed,
        "num_tokens": sum(len(ids) for ids, _ in tokens[: args.samples]),
        "num_targets": sum(int(mask.sum()) for _, mask in tokens[: args.samples]),
        "lengths": sorted(len(ids) for ids, _ in tokens[: args.samples]),
    }  # fmt: skip


def ask(side: str, spec: dict[str, Any], root: Path) -> dict[str, Any]:
    """One run of one side in a process of its own; what it prints."""
    file = root / "spec.json"
    file.write_text(json.dumps(spec))
    program = ["finetune_ours.py"] if side == OURS else ["finetune_peers.py", side]
    done = harness.finish([sys.executable, _HERE / program[0], *program[1:], file])
    found: dict[str, Any] = json.loads(done.output.splitlines()[-1])
    return found


def measure(args: argparse.Namespace, spec: dict[str, Any], root: Path) -> dict[str, list[dict[str, Any]]]:
    """All rounds of all sides."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in (OURS, *args.sides)}
    for number in range(args.rounds):
        for at, side in enumerate(found):
            harness.progress(f"round {number + 1} of {args.rounds}: {side}")
            run = ask(side, {**spec, "output": str(root / f"out-{at}-{number}")}, root)
            if run.get("tokens", spec["num_tokens"]) != spec["num_tokens"]:
                raise SystemExit(f"{side} trained on {run['tokens']} tokens, not {spec['num_tokens']}")
            found[side].append({**run, "rate": spec["num_tokens"] / run["seconds"]})
    harness.progress("")
    return found


def _ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], key: str) -> float:
    """Median of the rounds' own ratios: what slows the machine slows both sides of a round."""
    return statistics.median(our[key] / their[key] for our, their in zip(ours, theirs, strict=True))


def rows_of(found: dict[str, list[dict[str, Any]]], losses: dict[str, float]) -> list[dict[str, Any]]:
    rows = []
    for side, runs in found.items():
        peer = side != OURS
        rows.append({
            "side": side,
            "tokens/s": statistics.median(run["rate"] for run in runs),
            "ours / this": _ratio(found[OURS], runs, "rate") if peer else None,
            "peak memory, GB": statistics.median(run["peak"] for run in runs) / 1e9,
            "memory, ours / this": _ratio(found[OURS], runs, "peak") if peer else None,
            "loss held out": f"{losses[side]:.4f}",
            "goals": GOALS.get(side, ""),
        })  # fmt: skip
    return rows


def curves(found: dict[str, list[dict[str, Any]]]) -> str:
    """Training loss of each step in the first round; the sides' batches differ, as their orders do."""
    losses = {side: runs[0]["losses"] for side, runs in found.items()}
    steps = max(map(len, losses.values()))
    lines = [
        [step + 1, *(f"{each[step]:.3f}" if step < len(each) else None for each in losses.values())]
        for step in range(steps)
    ]
    return harness.table(["step", *losses], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random", help="random, or an installed model")
    parser.add_argument("--layers", type=int, default=8, help="of the random model")
    parser.add_argument("--hidden", type=int, default=512, help="size of the random model, a multiple of 128")
    parser.add_argument("--sides", nargs="*", choices=PEERS, default=list(PEERS[:2]))
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--held-out", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--threads", type=int, default=harness.num_cores())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    facts = harness.facts(args.rounds)
    os.environ |= {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    facts["versions"] = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "trl"))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        harness.progress("writing model and data")
        spec = prepare(args, root)
        found = measure(args, spec, root)
        harness.progress("loss held out")
        folders = {side: str(root / f"out-{at}-0") for at, side in enumerate(found)}
        losses = ask("held out", {**spec, "adapters": folders}, root)
        harness.progress("")
    lengths = spec["lengths"]
    facts["data"] = (
        f"{args.samples} conversations, {spec['num_tokens']:,} tokens ({lengths[0]} to {lengths[-1]} each),"
        f" {spec['num_targets'] / spec['num_tokens']:.0%} with loss; held out: base {losses['base']:.4f}"
    )
    rows = rows_of(found, losses)
    if args.json:
        print(json.dumps({"facts": facts, "rows": rows, "runs": found}, indent=2))
        return
    table = harness.table(list(rows[0]), [list(row.values()) for row in rows])
    print(f"{harness.bullets(facts)}\n\n{table}\n\n{curves(found)}")


if __name__ == "__main__":
    main()

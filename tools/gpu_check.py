"""Compares and measures backends on one GPU, in at most eight minutes: `python tools/gpu_check.py [--json FILE]`.

Writes a random GLM-4-9B-Chat in bfloat16 (19 GB, in a temporary folder), opens it with each backend in a process of its
own, compares their greedy ids and log-probabilities, and measures tokens per second at 1, 16 and 64 requests.
`--shape tiny --device cpu --dtype fp32 --backends local transformers` does the same without a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("tools", "tests", "src")]

LENGTHS = (16, 33, 64, 100, 128, 200, 256, 300) * 2
COMPARED = 32  # tokens of each answer
SECONDS = 210.0  # for one backend, start included: two of them and the checkpoint make eight minutes


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.worker:
        result = _work(args.worker, args.folder, args)
        Path(args.json).write_text(json.dumps(result))
        return 0
    backends = args.backends or [name for name in ("vllm", "transformers") if importlib.util.find_spec(name)]
    if not backends:
        print("neither vLLM nor transformers is installed: pip install 'glm4[transformers]'", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="gpu-check-") as temporary:
        report = _check(backends, Path(temporary), args)
    _show(report)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n")
    return 1 if report["failed"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="glm-4-9b-chat", help="glm-4-9b-chat or tiny")
    parser.add_argument("--backends", nargs="+", help="default: vllm and transformers, as far as installed")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--requests", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each measured prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens of each measured answer")
    parser.add_argument("--folder", type=Path, help="where the temporary checkpoint is written")
    parser.add_argument("--json", metavar="FILE", help="write the report there, too")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def _check(backends: Sequence[str], parent: Path, args: argparse.Namespace) -> dict[str, Any]:
    from random_checkpoint import SHAPES, write_random_checkpoint

    start = time.monotonic()
    folder = parent / "model"
    nbytes = write_random_checkpoint(folder, SHAPES[args.shape])
    report: dict[str, Any] = {
        "shape": args.shape, "dtype": args.dtype, "device": args.device, "weight_bytes": nbytes,
        "write_seconds": time.monotonic() - start, "backends": {}, "failed": {}, "comparisons": [],
    }  # fmt: skip
    for name in backends:
        try:
            report["backends"][name] = _in_a_process(name, folder, parent / f"{name}.json", args)
        except (subprocess.SubprocessError, OSError) as error:
            report["failed"][name] = str(error)
    for first, second in combinations(report["backends"], 2):
        answers = (report["backends"][one]["answers"] for one in (first, second))
        report["comparisons"].append({"backends": [first, second], **compare(*answers)})
    for result in report["backends"].values():
        del result["answers"]
    report["seconds"] = time.monotonic() - start
    return report


def _in_a_process(name: str, folder: Path, output: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One backend has the device for itself, and ends with its process."""
    command = [sys.executable, __file__, "--worker", name, "--folder", str(folder), "--json", str(output)]
    command += ["--device", args.device, "--dtype", args.dtype, "--prompt", str(args.prompt), "--new", str(args.new)]
    command += ["--requests", *map(str, args.requests)]
    subprocess.run(command, check=True, timeout=SECONDS)
    result: dict[str, Any] = json.loads(output.read_text())
    return result


# In a process of its own


def _work(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from glm4 import LLM
    from glm4.benchmark import Question, run

    start = time.monotonic()
    with LLM(str(folder), backend=name, **_options(name, args)) as llm:
        loaded = time.monotonic() - start
        rng = np.random.default_rng(0)
        answers = _answers(llm)
        rates = []
        for batch in args.requests:
            question = Question(args.prompt, args.new + 1, batch)
            run(llm.backend, Question(args.prompt, 3, batch), rng)  # what compiles by batch size does it now
            rates.append({"requests": batch, **asdict(run(llm.backend, question, rng))})
        return {"load_seconds": loaded, "answers": answers, "rates": rates}


def _options(name: str, args: argparse.Namespace) -> dict[str, Any]:
    from glm4.backends.table import backend_row

    length = max(*LENGTHS, args.prompt) + max(COMPARED, args.new) + 1
    wanted = {
        "dtype": args.dtype, "device": args.device, "max_model_len": length,
        "max_num_seqs": max(*args.requests, len(LENGTHS)), "enable_prefix_caching": False,
    }  # fmt: skip
    return {key: value for key, value in wanted.items() if key in backend_row(name).option_names()}


def _answers(llm: Any) -> list[dict[str, Any]]:
    """Greedy answers to prompts of many lengths, all at once: ids and log-probabilities."""
    import numpy as np

    from glm4.engine.protocol import GenerationRequest
    from glm4.prompt import Prompt
    from glm4.sampling_params import SamplingParams

    rng = np.random.default_rng(1)
    params = SamplingParams(temperature=0.0, max_tokens=COMPARED, ignore_eos=True, logprobs=0)
    answers: list[dict[str, Any]] = [{"ids": [], "logprobs": []} for _ in LENGTHS]
    for at, length in enumerate(LENGTHS):
        ids = rng.integers(0, 256, length).tolist()
        llm.backend.add_request(GenerationRequest(str(at), Prompt(ids), params))
    while llm.backend.has_unfinished_requests():
        for output in llm.backend.step():
            if output.error is not None:
                raise output.error
            answers[int(output.request_id)]["ids"] += output.token_ids
            answers[int(output.request_id)]["logprobs"] += [entry.logprob for entry in output.logprobs]
    return answers


# Comparison


def compare(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How far two lists of answers agree; log-probabilities as far as the ids before them are the same."""
    common = []
    differences = [0.0]
    for one, other in zip(ours, theirs, strict=True):
        pairs = list(zip(one["ids"], other["ids"], strict=True))
        same = next((at for at, (a, b) in enumerate(pairs) if a != b), len(pairs))
        common.append(same)
        differences += [abs(a - b) for a, b in zip(one["logprobs"][:same], other["logprobs"][:same], strict=True)]
    short = [same for same in common if same < COMPARED]
    return {
        "answers": len(common),
        "equal": len(common) - len(short),
        "equal_tokens": sum(common),
        "first_divergence": min(short, default=None),
        "logprob_difference_max": max(differences),
        "logprob_difference_mean": sum(differences) / max(1, len(differences) - 1),
    }


def _show(report: Mapping[str, Any]) -> None:
    print(
        f"{report['shape']}, {report['dtype']} on {report['device']}: {report['weight_bytes'] / 1e9:.2f} GB of random"
        f" weights, {report['seconds']:.0f} s in all"
    )
    print(f"{'backend':14}{'requests':>9}{'prompt tok/s':>14}{'answer tok/s':>14}{'first token':>13}")
    for name, result in report["backends"].items():
        for rate in result["rates"]:
            print(
                f"{name:14}{rate['requests']:>9}{rate['prefill']:>14.0f}{rate['decode']:>14.1f}"
                f"{1000 * rate['first_token']:>10.0f} ms"
            )
    for one in report["comparisons"]:
        where = "" if one["first_divergence"] is None else f", first at token {one['first_divergence']}"
        print(
            f"{' and '.join(one['backends'])}: {one['equal']} of {one['answers']} answers equal{where};"
            f" log-probabilities differ by {one['logprob_difference_max']:.2g} at most,"
            f" {one['logprob_difference_mean']:.2g} on average"
        )
    for name, why in report["failed"].items():
        print(f"{name} failed: {why}")


if __name__ == "__main__":
    raise SystemExit(main())

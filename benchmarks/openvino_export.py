"""Our export to OpenVINO beside optimum-intel's, of the same model in int4, run by openvino-genai in turn.

    python benchmarks/openvino_export.py starter --optimum-cli /path/to/venv/bin/optimum-cli

Needs the extra `openvino` here, and in an environment of its own optimum-intel 2.2.0 with nncf and transformers 4.57.6.
A process per model stays open; rounds alternate between them, and medians are printed: seconds of a prompt, tokens per
second of one and of several sequences. Ours has groups of 32 with offsets (5.3 bits per weight in the file), theirs is
symmetric in groups of 64 (4.3 bits, embedding and head in int8); `benchmarks/quality.py` says what that is worth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.export.targets import ExportRequest, export_target
from glm4.hub import resolve

SEQUENCES = 4


class Runner:
    """A model in this process."""

    def __init__(self, folder: str) -> None:
        import openvino_genai as genai

        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks, scheduler.max_num_seqs, scheduler.max_num_batched_tokens = 512, SEQUENCES, 1024
        self._genai = genai
        self._pipeline = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU")
        self._count = 0

    def seconds(self, sequences: int, prompt: int, new: int, vocabulary: int) -> tuple[float, float]:
        """(seconds until all sequences have a token, seconds of the rest)."""
        import openvino as ov

        config = self._genai.GenerationConfig(max_new_tokens=new, ignore_eos=True, apply_chat_template=False)
        rng = np.random.default_rng(self._count)
        start, handles = time.perf_counter(), []  # a request whose handle is gone is dropped
        for _ in range(sequences):
            ids = rng.integers(0, vocabulary, (1, prompt))
            handles.append(self._pipeline.add_request(self._count, ov.Tensor(ids), config))
            self._count += 1
        self._pipeline.step()
        first = time.perf_counter()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return first - start, time.perf_counter() - first


def work(folder: str) -> None:
    """Answer questions, a JSON object per line on standard input, with seconds."""
    runner = Runner(folder)
    for line in sys.stdin:
        print(json.dumps(runner.seconds(**json.loads(line))), flush=True)


def start(folder: Path) -> subprocess.Popen[str]:
    words = [sys.executable, __file__, "--work", str(folder)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(worker: subprocess.Popen[str], **question: int) -> tuple[float, float]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    print(json.dumps(question), file=worker.stdin, flush=True)
    first, rest = json.loads(worker.stdout.readline())
    return first, rest


def exports(model: str, optimum_cli: str, folder: Path) -> tuple[dict[str, Path], int]:
    """The two exports of a model, and its vocabulary."""
    ours, plain, theirs = folder / "ours", folder / "hf", folder / "optimum"
    with open_checkpoint(resolve(model)) as checkpoint:
        export_target("openvino").export(ExportRequest(checkpoint, ours, "int4"))
        export_target("hf").export(ExportRequest(checkpoint, plain, "bf16"))
        vocabulary = checkpoint.config.vocab_size
    form = "--task text-generation-with-past --weight-format int4 --group-size 64 --ratio 1.0 --sym"
    subprocess.run([optimum_cli, "export", "openvino", "--model", plain, *form.split(), theirs], check=True)
    return {"glm4": ours, "optimum-intel": theirs}, vocabulary


def compare(folders: dict[str, Path], vocabulary: int, rounds: int, prompt: int, new: int) -> list[dict[str, Any]]:
    """A row per number of sequences and model."""
    workers = {name: start(folder) for name, folder in folders.items()}
    rows = []
    for sequences in (1, SEQUENCES):
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
        for number in range(rounds + 1):
            for name, worker in workers.items():
                times = ask(worker, sequences=sequences, prompt=prompt // sequences, new=new, vocabulary=vocabulary)
                if number:  # the first round warms up
                    found[name].append(times)
        for name, measured in found.items():
            first, rest = (median(part) for part in zip(*measured, strict=True))
            speed = sequences * (new - 1) / rest
            rows.append({"model": name, "sequences": sequences, "prompt_seconds": first, "tokens_per_second": speed})
    for worker in workers.values():
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a model name, a folder or a GGUF file")
    parser.add_argument("--optimum-cli", default="optimum-cli", help="the program, in its own environment")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of all prompts")
    parser.add_argument("--new", type=int, default=48, help="tokens to write")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work)
        return
    with tempfile.TemporaryDirectory() as folder:
        folders, vocabulary = exports(args.model, args.optimum_cli, Path(folder))
        rows = compare(folders, vocabulary, args.rounds, args.prompt, args.new)
        for name, path in folders.items():
            print(f"{name}: {(path / 'openvino_model.bin').stat().st_size / 1e6:.0f} MB")
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        print(f"{ours['sequences']} sequences of {args.prompt // ours['sequences']} + {args.new} tokens")
        for row in (ours, theirs):
            print(f"  {row['model']:14} {row['prompt_seconds']:7.3f} s  {row['tokens_per_second']:7.2f} tokens/s")
        prompt = theirs["prompt_seconds"] / ours["prompt_seconds"]
        print(f"  ours is {prompt:.2f} and {ours['tokens_per_second'] / theirs['tokens_per_second']:.2f} times as fast")


if __name__ == "__main__":
    main()

"""Files of `glm4 export --to gguf` beside llama-quantize's of the same type: bits per weight and KL divergence.

    python benchmarks/gguf_dtypes.py --model starter-large --llama BUILD/bin --folder DIR --tokens 2048

The reference is the model in float32, its channels rescaled at random so that it lies on no format's grid
(quality_model.py). It is written as a GGUF file of 32-bit floats, of which both programs make every dtype. Our engine
reads both files in float32: what is compared is the weights alone. The text is this repository's documents and code.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.checkpoint import Checkpoint, open_checkpoint
from glm4.export.targets import ExportRequest, export_target
from glm4.hub import resolve
from glm4.kernels import PackedWeight, get_kernels
from glm4.model.tensors import head_name
from glm4.requests.processor import Processor
from programs import gguf_of
from quality import SEQUENCE, Contender, Score, score
from quality_llama import bits_per_weight, write_gguf
from quality_model import Tensors, head_alone, hidden_by_layer, off_grid
from quality_text import documents

# Of `glm4 export`, with llama-quantize's arguments for the same types of the same tensors.
DTYPES = {
    "q8_0": ("Q8_0",),
    "q6_k": ("Q6_K",),
    "q5_k_m": ("Q5_K_M",),
    "q5_1": ("Q5_1",),
    "q5_0": ("Q5_0",),
    "q4_k_m": ("Q4_K_M",),
    "q4_k": ("Q4_K_S",),
    "q4_1": ("Q4_1",),
    "q4_0": ("Q4_0",),
}


def tied_off_grid(checkpoint: Checkpoint) -> Tensors:
    """`off_grid`, with the head tied to the embedding where the model has it so; both keep their numbers then."""
    moved = off_grid(checkpoint)
    if not checkpoint.config.tie_word_embeddings:
        return moved
    tensors = {name: tensor for name, tensor in moved.tensors.items() if name != "lm_head"}
    tensors["norm"] = np.array(checkpoint.load("norm"))
    return Tensors(replace(moved.config, tie_word_embeddings=True), tensors)


def main(argv: list[str] | None = None) -> int:
    """Prints a row per dtype as it is measured."""
    parser = argparse.ArgumentParser(description="Our GGUF files beside llama-quantize's.")
    parser.add_argument("--model", default="starter-large")
    parser.add_argument("--llama", type=Path, required=True, help="BUILD/bin of llama.cpp")
    parser.add_argument("--folder", type=Path, required=True, help="for files of several times the model's size")
    parser.add_argument("--tokens", type=int, default=2048, help=f"a multiple of {SEQUENCE}")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    kernels = get_kernels()
    whole = args.folder / f"{args.model}-f32.gguf"
    with open_checkpoint(resolve(args.model)) as checkpoint:
        ids = documents(Processor.load(checkpoint), args.tokens, SEQUENCE)[: args.tokens]
        if not whole.exists():
            args.folder.mkdir(parents=True, exist_ok=True)
            write_gguf(gguf_of(args.model), tied_off_grid(checkpoint), whole.with_suffix(".part"))
            whole.with_suffix(".part").rename(whole)

    def contender(path: Path, name: str) -> Contender:
        with open_checkpoint(path) as made:
            hidden = hidden_by_layer(made, ids, SEQUENCE, kernels)
            head: dict[str, PackedWeight | NDArray[np.float32]] = {"norm": made.load("norm")}
            matrix = head_name(made.config)
            head[matrix] = kernels.pack("fp32", made.load(matrix))
            return Contender.of(name, bits_per_weight(path), head_alone(made.config, head, kernels), hidden)

    reference = contender(whole, "f32")
    rows: list[Score] = []
    print(
        "| dtype | ours: bits | mean KLD | median | s | llama-quantize: bits | mean KLD | median | s "
        "| ratio of means | difference, standard error of pairs |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for dtype in args.dtypes:
        path, seconds = args.folder / "made.gguf", []
        found = []
        for ours in (True, False):
            start = time.perf_counter()
            if ours:
                with open_checkpoint(whole) as checkpoint:
                    export_target("gguf").export(ExportRequest(checkpoint, path, dtype, force=True))
            else:
                command = [str(args.llama / "llama-quantize"), str(whole), str(path), *DTYPES[dtype]]
                subprocess.run(command, check=True, capture_output=True)
            seconds.append(time.perf_counter() - start)
            found.append(contender(path, dtype if ours else f"{dtype} by llama-quantize"))
        path.unlink()
        pair = score(reference, found, ids, kernels)
        rows += pair
        cells = [
            f"{one.bits_per_weight:.3f} | {one.kld:.5f} ± {one.kld_error:.5f} | {one.kld_median:.5f} | {took:.0f}"
            for one, took in zip(pair, seconds, strict=True)
        ]
        cells.append(f"{pair[0].kld / pair[1].kld:.3f}")
        cells.append(f"{pair[0].kld - pair[1].kld:+.5f} ± {pair[0].kld_paired_error:.5f}")
        print(f"| {dtype} | {' | '.join(cells)} |", flush=True)
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())

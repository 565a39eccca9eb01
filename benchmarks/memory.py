"""Peak memory of a whole process that loads a model, computes a long prompt and decodes: ours and llama.cpp's.

    python benchmarks/memory.py --llama BUILD/bin --gguf Q4_0.gguf Q4_K_M.gguf
    python benchmarks/memory.py --model starter starter-large     installed models: a first start, and later ones
    python benchmarks/memory.py --original glm-4v-9b --dtype int4  a published layout, quantized while loading

Beside ours stands what `glm4 plan` says, and the ratio; `loading/memory_estimate.py` is where the two should meet.

Ours is a packed checkpoint of random weights in the model's shape, written for the occasion (6 GB beside --folder for
the 9B shape in int4) and loaded as `glm4` loads any. Both processes map their files; resident pages of a mapped file
count on both sides. Memory hardly varies, so few rounds do.

`--original` needs no room on the disk: the weights are holes in sparse files (`sparse_checkpoint.py`). Reading them
takes what reading data from the file cache takes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import harness
from contenders import LlamaCpp
from glm4 import LLM, SamplingParams
from glm4 import benchmark as speed
from glm4.backends.local import LocalBackend, LocalOptions
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.packed_format import PackedInfo, packed_shapes
from glm4.checkpoints.packed_writer import PackedWriter, write_packed_config
from glm4.checkpoints.safetensors import SINGLE_FILE
from glm4.engine.protocol import GenerationRequest
from glm4.hub import home, resolve
from glm4.kernels import PackedWeight, get_kernels
from glm4.loading.memory_estimate import PROGRAM_BYTES, estimates
from glm4.loading.weights import random_model
from glm4.model.config import ModelConfig
from glm4.model.precision import PRECISIONS
from glm4.model.shapes import SHAPES
from glm4.planner import plan
from glm4.prompt import MediaSpan, Prompt
from glm4.variants import get_variant
from sparse_checkpoint import write_sparse

NEW = 8


def write_random(folder: Path, shape: str, dtype: str) -> None:
    """A packed checkpoint of random weights, without a tokenizer."""
    config, precision, variant = SHAPES[shape], PRECISIONS[dtype], get_variant(shape)
    assert variant is not None
    tensors = random_model(config, precision, get_kernels("native")).weights.tensors
    with PackedWriter(folder / SINGLE_FILE, config, precision) as writer:
        for name in packed_shapes(config):
            tensor = tensors[name]
            writer.write(name, tensor.data if isinstance(tensor, PackedWeight) else tensor)
        nbytes, digest = writer.finish()
    info = PackedInfo(precision, nbytes, digest, variant.name, config.architecture, f"random {shape}")
    write_packed_config(folder, config, info)


def run_once(folder: Path, question: speed.Question, threads: int) -> None:
    """The process that is measured."""
    with open_checkpoint(folder) as checkpoint:
        options = speed.backend_options(checkpoint.config, [question], num_threads=threads)
        backend = LocalBackend.load(checkpoint, options, np.empty(0, np.int64))
        speed.run(backend, question, np.random.default_rng(0))


def run_model(model: str, context: int, threads: int) -> None:
    """The process that is measured for `--model`; prints what it loaded."""
    with LLM(model, max_model_len=context, max_num_seqs=1, num_threads=threads) as llm:
        assert llm.checkpoint is not None
        assert llm.info.execution is not None
        dtype = llm.info.execution.dtype
        mapped = llm.checkpoint.packed is not None
        prompt = np.random.default_rng(0).integers(0, llm.info.vocab_size, context - NEW).tolist()
        llm.generate([prompt], SamplingParams(max_tokens=NEW, temperature=0.0, ignore_eos=True))
    print(json.dumps({"dtype": dtype, "mapped": mapped}))


@dataclass(frozen=True)
class Peak:
    """What one process took, and what the plan says, in bytes."""

    name: str
    measured: int
    planned: int | None = None


def model_peaks(model: str, context: int, threads: int) -> list[Peak]:
    """A first start, which reads and packs the original, and a later one, which maps the copy that the first kept."""
    found = []
    with open_checkpoint(resolve(model)) as checkpoint:
        config, stored = checkpoint.config, checkpoint.stored_precision
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").symlink_to(home() / "models")
        for start in ("first", "later"):
            words = [sys.executable, __file__, "--measure-model", model, "--context", context, "--threads", threads]
            done = harness.finish(["env", f"GLM4_HOME={folder}", *map(str, words)])
            said = json.loads(done.output)
            if said["mapped"] != (start == "later"):
                raise SystemExit(f"{model}: no packed copy was kept; see GLM4_PACKED_CACHE_GB and the room on the disk")
            dtype, mapped = said["dtype"], ("int8", "int4", "stored") if said["mapped"] else ()
            planned = plan(config, dtype=dtype, context=context, stored=stored, mapped=mapped)
            found.append(Peak(f"{model}, {dtype}, {start} start", done.peak_nbytes, planned.total))
    return found


def original_options(config: ModelConfig, dtype: str, context: int, pictures: int, threads: int) -> LocalOptions:
    """Room for one conversation, and for the rows of so many pictures."""
    kept = 0 if config.vision is None else pictures * 4 * config.vision.num_rows * config.hidden_size
    return LocalOptions(
        dtype=dtype, max_model_len=context, max_num_seqs=1, num_threads=threads, picture_cache_memory=kept
    )


def run_original(folder: Path, dtype: str, context: int, pictures: int, threads: int) -> None:
    """The process that is measured for `--original`: a long prompt, then questions about one more picture than fits.

    Prints the seconds that loading took.
    """
    with open_checkpoint(folder) as checkpoint:
        config, start = checkpoint.config, time.perf_counter()
        options = original_options(config, dtype, context, pictures, threads)
        backend = LocalBackend.load(checkpoint, options, np.empty(0, np.int64))
    seconds, rng = time.perf_counter() - start, np.random.default_rng(0)
    prompts = [Prompt(rng.integers(0, config.vocab_size, context - NEW).tolist())]
    vision = config.vision
    if pictures and vision is not None:
        shape, span_offsets = (vision.image_size, vision.image_size, 3), (0, *[1] * (vision.num_rows - 2), 2)
        for number in range(pictures + 1):
            span = MediaSpan(0, vision.num_rows, "image", str(number), span_offsets)
            ids = [0] * (vision.num_rows + NEW)
            prompts.append(Prompt(ids, (span,), {str(number): rng.integers(0, 256, shape, dtype=np.uint8)}))
    for number, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=NEW, temperature=0.0, ignore_eos=True)
        backend.add_request(GenerationRequest(str(number), prompt, params))
        while backend.has_unfinished_requests():
            backend.step()
    print(json.dumps({"seconds": seconds}))


def original_peak(
    name: str, config: ModelConfig, dtype: str, context: int, pictures: int, threads: int, folder: Path | None = None
) -> Peak:
    """A model of that shape in bfloat16 in GLM-4's own layout, quantized while it is loaded."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        nbytes = write_sparse(Path(made), config)
        words = ["--measure-original", made, "--dtype", dtype, "--context", context, "--pictures", pictures]
        done = harness.finish([sys.executable, __file__, *map(str, words), "--threads", str(threads)])
    seconds = json.loads(done.output)["seconds"]
    (estimate,) = estimates(config, original_options(config, dtype, context, pictures, threads).wanted)
    label = f"{name}, {dtype} from {nbytes / 1e9:.1f} GB in bf16 ({seconds:.0f} s)"
    vocabulary = estimate.program - PROGRAM_BYTES  # there is no tokenizer beside the weights
    return Peak(label, done.peak_nbytes, estimate.total(context) - vocabulary)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=[], help="installed models, instead of random weights")
    parser.add_argument("--original", choices=sorted(SHAPES), help="GLM-4's own layout, quantized while loading")
    parser.add_argument("--pictures", type=int, default=0, help="with --original: pictures to keep and ask about")
    parser.add_argument("--random", choices=sorted(SHAPES), default="glm-4-9b")
    parser.add_argument("--dtype", choices=sorted(PRECISIONS), default="int4")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=harness.num_cores())
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the temporary checkpoint goes; default: the system's")
    parser.add_argument("--llama", type=Path, metavar="FOLDER", help="llama.cpp's binaries")
    parser.add_argument("--gguf", type=Path, nargs="+", default=[])
    parser.add_argument("--json", action="store_true")
    # What the processes of their own are told to do.
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure-original", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure-model", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    question = speed.Question(arguments.context, NEW + 1)
    if arguments.write:
        write_random(arguments.write, arguments.random, arguments.dtype)
        return
    if arguments.measure:
        run_once(arguments.measure, question, arguments.threads)
        return
    if arguments.measure_model:
        run_model(arguments.measure_model, arguments.context, arguments.threads)
        return
    if arguments.measure_original:
        context, pictures = arguments.context, arguments.pictures
        run_original(arguments.measure_original, arguments.dtype, context, pictures, arguments.threads)
        return
    if arguments.original:
        facts, config = harness.facts(1), SHAPES[arguments.original]
        what = (arguments.dtype, arguments.context, arguments.pictures, arguments.threads, arguments.folder)
        show(facts, [original_peak(arguments.original, config, *what)])
        return
    if arguments.model:
        facts = harness.facts(1)
        show(facts, [p for name in arguments.model for p in model_peaks(name, arguments.context, arguments.threads)])
        return
    facts = harness.facts(arguments.rounds)
    peers = [LlamaCpp(arguments.llama, path.stem, path, arguments.threads) for path in arguments.gguf]
    ours: list[float] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        harness.progress(f"writing a random {arguments.random} in {arguments.dtype}")
        # Written by a process of its own, so that this one stays small.
        again = [sys.executable, __file__, "--random", arguments.random, "--dtype", arguments.dtype]
        harness.finish([*again, "--write", name])
        child = [*again, "--measure", name, "--context", str(arguments.context)]
        for number in range(arguments.rounds):
            harness.progress(f"round {number + 1}/{arguments.rounds}: ours")
            ours.append(harness.finish([*child, "--threads", str(arguments.threads)]).peak_nbytes)
            for peer in peers:
                harness.progress(f"round {number + 1}/{arguments.rounds}: {peer.name}")
                peer.answer([question])
    harness.progress("")
    peaks = {f"ours, {arguments.dtype}": ours} | {peer.name: peer.peaks for peer in peers}
    if arguments.json:
        print(json.dumps({"facts": facts, "peak_bytes": peaks}, indent=2))
        return
    mapped = (arguments.dtype,)
    planned = plan(SHAPES[arguments.random], dtype=arguments.dtype, context=arguments.context + NEW + 1, mapped=mapped)
    medians = {name: round(harness.median(values) or 0.0) for name, values in peaks.items()}
    show(
        facts, [Peak(name, peak, planned.total if name.startswith("ours") else None) for name, peak in medians.items()]
    )


def show(facts: dict[str, object], peaks: Sequence[Peak]) -> None:
    """The table."""
    columns = ["process", "peak memory, GB", "planned, GB", "planned / measured"]
    rows = [
        [
            peak.name,
            peak.measured / 1e9,
            peak.planned and peak.planned / 1e9,
            peak.planned and peak.planned / peak.measured,
        ]
        for peak in peaks
    ]
    print(f"{harness.bullets(facts)}\n\n{harness.table(columns, rows)}")


if __name__ == "__main__":
    main()

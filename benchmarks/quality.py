"""What does a weight format cost? KL divergence, top-1 agreement and perplexity against the same model in float32.

    python benchmarks/quality.py --model starter --tokens 50000 --llama BUILD/bin --cache DIR --out DIR
    python benchmarks/quality.py --formats q4_0 int4 int4+a8 --tokens 6000          # development

The reference is the model in float32 after its channels were rescaled at random (see quality_model.py): every contender
quantises those weights. "int4" and "int8" compare dequantised weights in the float32 engine, as llama.cpp's formats are
compared. From end to end, 8-bit activations included: "int4+a8" and "int8+a8" run our own kernels, "q4_k_m+llama" is
llama.cpp itself on the file that it makes (quality_llama.py).

"q4_k_m" is what llama.cpp makes (rows that are no multiple of 256 fall back to 5 and 8 bits); "q4_k_m-fits" is the
format as if every row did fit. "int4-cal" and "int8-cal" are what `glm4 quantize` makes: rounding with error
compensation, calibrated on text that the model wrote from prompts of the package, none of which is in the token set
here. Bits per weight are all in: every matrix, embedding and head included, with scales and padding.

Hidden states of the reference are kept (N x hidden_size), and logits are formed again slice by slice, so that the whole
distribution is compared, not its top.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.hub import resolve
from glm4.kernels import PackedWeight, get_kernels
from glm4.kernels.base import Kernels
from glm4.model.precision import PRECISIONS
from glm4.model.tensors import FREQUENT_HEAD, FREQUENT_TOKENS
from glm4.model.transformer import Transformer
from glm4.quantization.calibration_text import calibration_text
from glm4.quantization.checkpoint import calibration_sequences
from glm4.requests.processor import Processor
from programs import gguf_of
from quality_formats import Ggml, Quantised, llama_cpp
from quality_llama import LlamaCpp, Streamed, bits_per_weight
from quality_model import (
    Packed,
    Tensors,
    assembled,
    head_alone,
    hidden_by_layer,
    hidden_states,
    kept_off_grid,
    kept_packed,
    packed_model,
)
from quality_picture import picture
from quality_text import token_set

Float = NDArray[np.float32]
SEQUENCE = 512
SLICE = 64
MADE = ("q8_0", "q5_k_m", "q4_k_m", "q4_k_s", "q4_0")  # by llama.cpp
PEERS = (*MADE, *(name + "-fits" for name in MADE[1:]))
OURS = ("int8", "int8-cal", "int4", "int4-cal")
END_TO_END = tuple(name + "+llama" for name in MADE)
BY_WEIGHTS = (*PEERS, *(name + mode for name in OURS for mode in ("", "+a8")))
ALL_FORMATS = (*BY_WEIGHTS, *END_TO_END)


@dataclass(frozen=True)
class Score:
    """One row of the table.

    `kld_error` and `top1_error` are standard errors over the sequences, `kld_paired_error` is that of the difference
    from the last contender's mean KLD, over the tokens: both read the same ones, so it is far smaller.
    """

    format: str
    bits_per_weight: float
    kld: float
    kld_error: float
    kld_paired_error: float
    kld_median: float
    kld_99_9: float
    top1: float
    top1_error: float
    ppl_ratio: float
    tokens: int


@dataclass
class Contender:
    """A quantised model.

    Attributes:
        logits: of the positions start .. stop; asked for in order.
    """

    name: str
    bits: float
    logits: Callable[[int, int], Float]

    @classmethod
    def of(cls, name: str, bits: float, model: Transformer, hidden: Float) -> Contender:
        """A model and what its layers made of the token set. The layers themselves are let go."""
        head = head_alone(model.config, model.weights.tensors, model.kernels)
        return cls(name, bits, lambda start, stop: head.logits(hidden[start:stop]))


def build(
    name: str, reference: Tensors, ggml: Ggml | None, kernels: Kernels, pack: Callable[[str], Packed]
) -> tuple[Tensors | Transformer, Quantised]:
    """A contender's dequantised weights (or, of "+a8", the model on our own kernels), and the count of its bits.

    The count is complete when every tensor has been loaded once.

    Args:
        pack: makes the tensors of one of our own formats; see `packed_model`.
    """
    total = Quantised()
    base, _, mode = name.partition("+")
    if base.removesuffix("-cal") in PRECISIONS:
        packed = pack(base)
        for key, value in packed.items():
            if isinstance(value, PackedWeight):  # the frequent tokens' rows are bits, but no further weights
                total.count(0 if key == FREQUENT_HEAD else value.rows * value.cols, value.nbytes * 8)
        if mode == "a8":
            return assembled(reference.config, packed, kernels), total

        def quantise(tensor: str, _: Float) -> Float:
            weight = packed[tensor]
            assert isinstance(weight, PackedWeight)
            values, finer = kernels.unpack(weight), packed.get(FREQUENT_HEAD)
            if tensor == "lm_head" and isinstance(finer, PackedWeight):
                ids = packed[FREQUENT_TOKENS]
                assert not isinstance(ids, PackedWeight)
                values[ids.astype(np.intp)] = kernels.unpack(finer)
            return values

        # Calibration rescales channels: the norms are no longer those of the reference.
        vectors = {tensor: value for tensor, value in packed.items() if not isinstance(value, PackedWeight)}
        return Tensors(reference.config, {**reference.tensors, **vectors}).map(quantise), total
    recipe = base.removesuffix("-fits").upper()
    return reference.map(llama_cpp(recipe, reference.config, ggml, base.endswith("-fits"), total)), total


def run_model(source: Tensors | Transformer, ids: NDArray[np.int32], kernels: Kernels) -> tuple[Transformer, Float]:
    """The head and the last hidden states of what `build` made."""
    if isinstance(source, Transformer):
        return source, hidden_states(source, ids, SEQUENCE)
    return fp32_head(source, kernels), hidden_by_layer(source, ids, SEQUENCE, kernels)


def fp32_head(tensors: Tensors, kernels: Kernels) -> Transformer:
    """The head in float32."""
    head: dict[str, PackedWeight | Float] = {
        "norm": tensors.load("norm"),
        "lm_head": kernels.pack("fp32", tensors.load("lm_head")),
    }
    return head_alone(tensors.config, head, kernels)


def score(reference: Contender, contenders: list[Contender], ids: NDArray[np.int32], kernels: Kernels) -> list[Score]:
    """Compares the distributions of all contenders with the reference's, a slice of positions at a time."""
    count = len(ids)
    divergence = np.zeros((len(contenders), count))
    agree = np.zeros((len(contenders), count), bool)
    loss = np.zeros((len(contenders) + 1, count))
    targets = np.roll(ids, -1)
    for start in range(0, count, SLICE):
        stop = min(start + SLICE, count)
        rows = np.arange(stop - start)
        p = kernels.log_softmax(reference.logits(start, stop))
        probability, best = np.exp(p), p.argmax(axis=1)
        loss[-1, start:stop] = -p[rows, targets[start:stop]]
        for i, contender in enumerate(contenders):
            q = kernels.log_softmax(contender.logits(start, stop))
            loss[i, start:stop] = -q[rows, targets[start:stop]]
            agree[i, start:stop] = q.argmax(axis=1) == best
            np.subtract(p, q, out=q)
            divergence[i, start:stop] = np.einsum("ij,ij->i", probability, q)
    inside = np.arange(count) % SEQUENCE < SEQUENCE - 1  # the last position of a sequence has no target in it
    scores = []
    for i, contender in enumerate(contenders):
        kld, top1 = divergence[i].reshape(-1, SEQUENCE), agree[i].reshape(-1, SEQUENCE).mean(axis=1)
        scores.append(
            Score(
                format=contender.name,
                bits_per_weight=contender.bits,
                kld=float(kld.mean()),
                kld_error=float(kld.mean(axis=1).std() / np.sqrt(len(kld))),
                kld_paired_error=float((divergence[i] - divergence[-1]).std() / np.sqrt(count)),
                kld_median=float(np.median(kld)),
                kld_99_9=float(np.quantile(kld, 0.999)),
                top1=float(top1.mean()),
                top1_error=float(top1.std() / np.sqrt(len(kld))),
                ppl_ratio=float(np.exp((loss[i] - loss[-1])[inside].mean())),
                tokens=count,
            )
        )
    return scores


def table(scores: list[Score]) -> str:
    """The scores as Markdown."""
    lines = [
        "| format | bits/weight | mean KLD | median KLD | 99.9 % KLD | same top-1 | PPL ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {s.format} | {s.bits_per_weight:.3f} | {s.kld:.5f} ± {s.kld_error:.5f} | {s.kld_median:.5f} "
        f"| {s.kld_99_9:.3f} | {100 * s.top1:.2f} ± {100 * s.top1_error:.2f} % | {s.ppl_ratio:.4f} |"
        for s in scores
    ]
    return "\n".join(lines) + "\n"


def cached(folder: Path | None, key: str, make: Callable[[], NDArray[np.generic]]) -> NDArray[np.generic]:
    """An array from the cache folder, made and stored when it is not there."""
    if folder is None:
        return make()
    path = folder / f"{key}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(path, make())
    return np.asarray(np.load(path))


@dataclass
class Bench:
    """What all contenders are measured against and with.

    Attributes:
        key: names model, token set and rescaling, for the cache.
        pack: makes the tensors of one of our own formats; see `packed_model`.
    """

    tensors: Tensors
    ids: NDArray[np.int32]
    key: str
    pack: Callable[[str], Packed]
    kernels: Kernels
    args: argparse.Namespace

    def reference(self) -> Contender:
        """The model in float32."""
        run = lambda: hidden_by_layer(self.tensors, self.ids, SEQUENCE, self.kernels)  # noqa: E731
        hidden = cached(self.args.cache, self.key, run).astype(np.float32)
        return Contender.of("fp32", 32.0, fp32_head(self.tensors, self.kernels), hidden)

    def contender(self, name: str) -> Contender:
        """One of ALL_FORMATS."""
        base, _, mode = name.partition("+")
        if mode == "llama":
            return self._llama_cpp(name, base.upper())
        ggml = Ggml(self.args.llama) if self.args.llama else None
        source, total = build(name, self.tensors, ggml, self.kernels, self.pack)
        # llama.cpp's formats do not change from run to run; ours do.
        path = None if self.args.cache is None or base not in PEERS else self.args.cache / f"{self.key}-{name}.npz"
        if path is not None and path.exists():
            assert isinstance(source, Tensors)
            with np.load(path) as stored:
                head, hidden, bits = fp32_head(source, self.kernels), stored["hidden"], float(stored["bits"])
        else:
            head, hidden = run_model(source, self.ids, self.kernels)
            bits = total.bits_per_weight
            if path is not None:
                np.savez(path, hidden=hidden, bits=np.float64(bits))
        return Contender.of(name, bits, head, hidden)

    @cached_property
    def _llama(self) -> LlamaCpp:
        return LlamaCpp(self.args.llama_source, self.args.llama, self.args.cache / self.key)

    def _llama_cpp(self, name: str, format: str) -> Contender:
        file = self._llama.quantised(gguf_of(self.args.model), self.tensors, format)
        vocabulary = len(self.tensors.load("lm_head"))
        logits = Streamed(self._llama.program, file, self.ids, SEQUENCE, vocabulary)
        return Contender(name, bits_per_weight(file), logits)


def packer(
    args: argparse.Namespace, tensors: Tensors, kernels: Kernels, calibration: NDArray[np.int32]
) -> Callable[[str], Packed]:
    """Makes the tensors of one of OURS; calibrated ones are kept in the cache."""
    text = hashlib.sha256(calibration.tobytes()).hexdigest()[:16]

    @lru_cache(maxsize=1)  # for the run with 8-bit activations
    def pack(base: str) -> Packed:
        def make() -> Packed:
            return packed_model(base, tensors, kernels, lambda: calibration)

        if args.cache is None or not base.endswith("-cal"):
            return make()
        return kept_packed(f"packed-{args.model}-{args.seed}-{base}-{text}", args.cache, make)

    return pack


def run(args: argparse.Namespace, log: Callable[[str], None]) -> tuple[list[Score], dict[str, object]]:
    """All contenders of the command line, and what was measured."""
    kernels = get_kernels()
    calibration = np.empty((0, SEQUENCE), np.int32)
    with open_checkpoint(resolve(args.model)) as checkpoint:
        log(f"token set of about {args.tokens} tokens")
        make = lambda: token_set(checkpoint, args.tokens, SEQUENCE, log)  # noqa: E731
        sequences = args.calibration or calibration_sequences(checkpoint.config)
        write = lambda: calibration_text(checkpoint, Processor.load(checkpoint), sequences)  # noqa: E731
        ids = cached(args.cache, f"ids-{args.model}-{args.tokens}", make).astype(np.int32)
        folder = args.cache and args.cache / f"tensors-{args.model}-{args.seed}"
        tensors = kept_off_grid(checkpoint, args.seed, folder)
        if any("-cal" in name for name in args.formats):
            log(f"calibration text of {sequences} sequences")
            calibration = cached(args.cache, f"calibration-{args.model}-{sequences}", write).astype(np.int32)
    digest = hashlib.sha256(ids.tobytes()).hexdigest()
    pack = packer(args, tensors, kernels, calibration)
    bench = Bench(tensors, ids, f"hidden-{args.model}-{digest[:16]}-{args.seed}", pack, kernels, args)
    log(f"reference: {len(ids)} tokens, sha256 {digest[:16]}")
    reference = bench.reference()
    contenders = []
    for name in args.formats:
        start = time.perf_counter()
        contenders.append(bench.contender(name))
        log(f"{name}: {contenders[-1].bits:.3f} bits after {time.perf_counter() - start:.0f} s")
    about: dict[str, object] = {
        "model": args.model,
        "tokens": len(ids),
        "ids_sha256": digest,
        "isa": kernels.isa(),
        "load_average": os.getloadavg()[0],
    }
    log("scoring")
    return score(reference, contenders, ids, kernels), about


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Quality of the weight formats.")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--formats", nargs="+", default=list(BY_WEIGHTS), choices=ALL_FORMATS)
    parser.add_argument("--llama", type=Path, help="BUILD/bin of llama.cpp, for the k-quants and +llama")
    parser.add_argument("--llama-source", type=Path, help="llama.cpp's source tree, for +llama")
    parser.add_argument(
        "--cache", type=Path, help="folder that keeps token set, reference, calibrated models and llama.cpp's results"
    )
    parser.add_argument(
        "--calibration", type=int, help="sequences for int4-cal and int8-cal (as `glm4 quantize` takes)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the rescaling")
    parser.add_argument("--out", type=Path, help="folder for quality.md, quality.json and quality.svg")
    args = parser.parse_args(argv)
    if any(name in END_TO_END for name in args.formats) and not (args.llama and args.llama_source and args.cache):
        parser.error("+llama needs --llama, --llama-source and --cache")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    scores, about = run(args, lambda line: print(line, file=sys.stderr, flush=True))
    print(table(scores))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "quality.md").write_text(table(scores), encoding="utf-8")
        report = {**about, "scores": [asdict(s) for s in scores]}
        (args.out / "quality.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        points = [(s.format, s.bits_per_weight, s.kld) for s in scores]
        (args.out / "quality.svg").write_text(picture(points), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

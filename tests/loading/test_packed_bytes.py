"""Packing a fixed model gives the bytes that were recorded for these version numbers, on every instruction set.

The packed cache finds an entry by the numbers. So whatever changes the bytes of an entry has to change a number, or
users keep what an older build made: FORMAT_VERSION where the bytes mean something else (older packed files are then
refused), ENTRY_VERSION where they are other bytes of the same meaning. `golden/packed.json` holds numbers -> source ->
digest; a recorded row is never edited, a new one is added.

Only plain packing is fixed like this. Calibrated rounding goes through matrix products, whose last bits depend on the
processor; the cache never holds its results.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import tiny
from glm4.kernels import _native, get_kernels
from glm4.kernels.base import Kernels
from glm4.loading.packed_cache import VERSIONS
from golden_models import GOLDEN, Tensors, TinyModel, draw, file_tensors
from packing import ODD, pack_folder, pack_loaded

WIDE = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512}  # what super-blocks of 256 need
IDS = np.array([3, 17, 40, 200], np.float32)


def fixed(tensors: Tensors) -> Tensors:
    """The same names and shapes with numbers from integers alone: no generator, no libm, the same on every machine."""
    out: Tensors = {}
    for seed, (name, value) in enumerate(tensors.items()):
        i = np.arange(value.size, dtype=np.uint64) + np.uint64(seed << 20)
        mixed = (i * i + (i << np.uint64(7))) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(44)
        out[name] = (mixed.astype(np.float32) / (1 << 21) - np.float32(0.25)).reshape(value.shape)
    return out


def folder(path: Path, dtype: str, model: TinyModel) -> Path:
    return tiny.write_folder(path, model, dtype=dtype, tensors=fixed(file_tensors(model, draw(model))))


def gguf(path: Path, architecture: tiny.GGUFArchitecture, quantization: str, fused: bool = True) -> Path:
    model = tiny.gguf_model(architecture, **(WIDE if quantization == "Q4_K" else {}))
    tensors = fixed(tiny.gguf_tensors(model, architecture, fused=fused))
    return tiny.write_gguf(path.with_suffix(".gguf"), architecture, model, tensors=tensors, quantization=quantization)


SOURCES: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "hf": (lambda path: folder(path, "BF16", tiny.tiny_model()), ("fp32", "bf16", "int8", "int4")),
    "hf tied, odd sizes": (
        lambda path: folder(path, "F32", tiny.tiny_model(tie_word_embeddings=True, vocab_size=291, **ODD)),
        ("int8", "int4"),
    ),
    "chatglm half-split": (
        lambda path: folder(path, "F16", tiny.tiny_model("chatglm", half_split=True)),
        ("int8", "int4"),
    ),
    "glm4": (
        lambda path: folder(path, "BF16", tiny.tiny_model(architecture="glm4", attention_bias=False)),
        ("int8", "int4"),
    ),
    "llama Q4_0": (lambda path: gguf(path, "llama", "Q4_0"), ("int8", "int4", "stored")),
    "qwen2 Q4_K": (lambda path: gguf(path, "qwen2", "Q4_K"), ("int8", "int4", "stored")),
    "glm4 Q4_1 unfused": (lambda path: gguf(path, "glm4", "Q4_1", fused=False), ("int8", "int4", "stored")),
    "chatglm Q8_0": (lambda path: gguf(path, "chatglm", "Q8_0"), ("int8", "int4")),
}


def digest(folder: Path) -> str:
    made = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        made.update(f"{file.name} {file.stat().st_size}\n".encode() + file.read_bytes())
    return made.hexdigest()[:32]


def digests(root: Path, kernels: Kernels) -> Iterator[tuple[str, str]]:
    for number, (name, (write, dtypes)) in enumerate(SOURCES.items()):
        source = write(root / f"source{number}")
        for dtype in dtypes:
            yield f"{name}: {dtype}", digest(pack_loaded(source, root / f"{number}-{dtype}", dtype, kernels))
        if name == "hf":
            extra = pack_folder(source, root / "extras", "int4", kernels, channel_scales={}, frequent=IDS)
            yield f"{name}: int4 with extras", digest(extra)


@pytest.mark.parametrize("isa", ["reference", *_native.isas()])
def test_the_bytes_are_those_of_the_version_numbers(tmp_path: Path, isa: str) -> None:
    kernels, before = get_kernels("reference" if isa == "reference" else "native"), _native.isa()
    if isa != "reference":
        _native.set_isa(isa)
    try:
        made = dict(digests(tmp_path, kernels))
    finally:
        _native.set_isa(before)
    recorded = json.loads((GOLDEN / "packed.json").read_text()).get(".".join(map(str, VERSIONS)))
    assert made == recorded, (
        "packing gives other bytes than were recorded for these versions: raise ENTRY_VERSION (or FORMAT_VERSION, if "
        f"they mean something else), and add to golden/packed.json: {json.dumps(made, indent=2)}"
    )

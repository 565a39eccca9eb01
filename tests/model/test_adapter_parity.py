"""Parity with PEFT: the adapters of tests/golden/adapters, made and saved by PEFT, give the logits PEFT computed.

Everything in float32; the largest difference may be 1e-5 of the range of the reference logits. The adapters move the
logits by a large part of their range, and `test_a_wrong_adapter_fails` shows that the bound notices each mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import golden_models as gm
import tiny
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.kernels import get_kernels
from glm4.kernels.base import Kernels
from glm4.loading.lora import read_adapter
from glm4.loading.weights import load_model
from glm4.model.forward_batch import ForwardBatch
from glm4.model.kv_cache import KVCache, pages_for
from glm4.model.lora import LoraAdapter, LoraFactors
from glm4.model.precision import PRECISIONS
from glm4.model.transformer import Transformer

FOLDER = gm.GOLDEN / "adapters"
TOLERANCE = 1e-5
# Case of tools/golden/adapters.py -> tiny model, and the kind of file it is loaded from.
CASES = {
    "hf": ("hf-chat", "folder"),
    "glm4-rslora": ("glm4-9b", "folder"),
    "one-layer": ("hf-edge", "folder"),
    "chatglm": ("chatglm-chat", "folder"),
    "chatglm-half-split": ("chatglm-half-split", "folder"),
    "qwen2": ("hf-starter", "qwen2"),
    "llama": ("hf-edge", "llama"),
}


@dataclass(frozen=True)
class Case:
    """A tiny model, its golden adapter, and the logits [20, V] for ids [20]."""

    model: Transformer
    model_type: str
    adapter: LoraAdapter
    ids: NDArray[np.int32]
    logits: NDArray[np.float32]

    def error(self, *adapters: LoraAdapter | None) -> float:
        """The largest difference, as a share of the reference's range; sequence 0 of one that uses each adapter."""
        return float(np.abs(logits(self.model, self.ids, adapters)[0] - self.logits).max() / np.ptp(self.logits))


def logits(
    model: Transformer, ids: NDArray[np.int32], adapters: tuple[LoraAdapter | None, ...]
) -> list[NDArray[np.float32]]:
    """Logits of one pass over as many copies of the ids as there are adapters."""
    each, count = pages_for(len(ids)), len(adapters)
    pages = [list(range(i * each, (i + 1) * each)) for i in range(count)]
    batch = ForwardBatch.build(pages, [0] * count, [len(ids)] * count, adapters)
    hidden = model.forward(np.tile(ids, count), batch, KVCache(model.config, each * count, "fp32"))
    return np.split(model.logits(hidden), count)


def read(name: str, model: Transformer, model_type: str, kernels: Kernels, format: str = "fp32") -> LoraAdapter:
    return read_adapter(FOLDER / name, model.config, model_type, kernels, format=format, max_nbytes=1 << 30, layers=())


def write_model(folder: Path, name: str) -> Path:
    model, kind = CASES[name]
    row = gm.TINY_MODELS[model]
    if kind == "folder":
        return gm.write_checkpoint(folder, row)
    return tiny.write_gguf(folder / "m.gguf", kind, row, tokenizer=False)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["reference", "native"])
def kernels(request: pytest.FixtureRequest) -> Any:
    return get_kernels(request.param)


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest, kernels: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with open_checkpoint(write_model(tmp_path_factory.mktemp("tiny"), request.param)) as checkpoint:
        model = load_model(checkpoint, PRECISIONS["fp32"], kernels)
        adapter = read(request.param, model, checkpoint.model_type, kernels)
        golden = gm.load_golden(FOLDER / request.param / "logits.npz")
        yield Case(model, checkpoint.model_type, adapter, golden["ids"], golden["logits"])


def test_every_golden_adapter_has_a_case() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(CASES)


def test_logits_are_those_of_peft(case: Case) -> None:
    assert case.error(case.adapter) <= TOLERANCE
    assert case.error(None) > 0.05  # of the range: what the adapter does


def test_beside_other_rows_the_same_bits(case: Case) -> None:
    (alone,) = logits(case.model, case.ids, (case.adapter,))
    (plain,) = logits(case.model, case.ids, (None,))
    mixed = logits(case.model, case.ids, (None, case.adapter, None, case.adapter))
    for found, expected in zip(mixed, (plain, alone, plain, alone), strict=True):
        np.testing.assert_array_equal(found, expected)


def changed(adapter: LoraAdapter, change: Callable[[tuple[int, str], Any, Any], tuple[Any, Any]]) -> LoraAdapter:
    kernels = get_kernels()

    def pair(site: tuple[int, str], factors: LoraFactors) -> LoraFactors:
        a, b = change(site, kernels.unpack(factors.a), kernels.unpack(factors.b))
        return LoraFactors(kernels.pack("fp32", np.ascontiguousarray(a)), kernels.pack("fp32", np.ascontiguousarray(b)))

    return LoraAdapter({site: pair(site, factors) for site, factors in adapter.factors.items()})


MISTAKES: Mapping[str, Callable[[tuple[int, str], Any, Any], tuple[Any, Any]]] = {
    "scale": lambda site, a, b: (a, 1.01 * b),
    "a layer left out": lambda site, a, b: (a, b * (site[0] != 1)),
    "ranks in another order": lambda site, a, b: (a[::-1], b),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_adapter_fails(case: Case, mistake: str) -> None:
    assert case.error(changed(case.adapter, MISTAKES[mistake])) > 20 * TOLERANCE


@pytest.mark.parametrize("name", ["chatglm-half-split", "qwen2", "llama"])
def test_rotary_rows_in_the_wrong_order_fail(name: str, kernels: Any, tmp_path: Path) -> None:
    """Reading a half-split adapter as one of adjacent pairs must not pass."""
    with open_checkpoint(write_model(tmp_path, name)) as checkpoint:
        model = load_model(checkpoint, PRECISIONS["fp32"], kernels)
        right = read(name, model, checkpoint.model_type, kernels)
    golden = gm.load_golden(FOLDER / name / "logits.npz")
    rows = gm.TINY_MODELS[CASES[name][0]]
    wrong = changed(right, lambda site, a, b: (a, gm.half_split_rows(rows, b) if site[1] == "qkv" else b))
    (found,) = logits(model, golden["ids"], (wrong,))
    assert np.abs(found - golden["logits"]).max() / np.ptp(golden["logits"]) > 20 * TOLERANCE


def test_bf16_factors_cost_little(case: Case, kernels: Any) -> None:
    """How adapters are kept beside bf16, int8 and int4 weights."""
    name = next(n for n in CASES if str(FOLDER / n) == case.adapter.path)
    short = read(name, case.model, case.model_type, kernels, format="bf16")
    assert short.nbytes * 2 == case.adapter.nbytes
    assert TOLERANCE < case.error(short) < 0.01 or name in ("glm4-rslora",)

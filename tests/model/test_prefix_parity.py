"""Parity with PEFT: the prefixes of tests/golden/prefixes, saved by PEFT, give the logits that PEFT computed.

Everything in float32; the largest difference may be 1e-5 of the range of the reference logits, as for LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import golden_models as gm
import tiny
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.peft_prefix import interleave_key_channels, split_key_channels
from glm4.kernels import get_kernels
from glm4.loading.adapters import read_prefix
from glm4.loading.weights import load_model
from glm4.model.forward_batch import ForwardBatch
from glm4.model.kv_cache import PAGE_SIZE, KVCache, pages_for, slots_of
from glm4.model.precision import PRECISIONS
from glm4.model.prefix import PrefixAdapter
from glm4.model.transformer import Transformer

FOLDER = gm.GOLDEN / "prefixes"
TOLERANCE = 1e-5
# Case of tools/golden/prefixes.py -> tiny model, and the kind of file it is loaded from.
CASES = {
    "hf": ("hf-chat", "folder"),
    "chatglm": ("chatglm-chat", "folder"),
    "glm4": ("glm4-9b", "folder"),
    "qwen2": ("hf-starter", "qwen2"),
    "llama": ("hf-edge", "llama"),
}


@dataclass(frozen=True)
class Case:
    """A tiny model, its golden prefix, and the logits [20, V] for ids [20]."""

    model: Transformer
    prefix: PrefixAdapter
    ids: NDArray[np.int32]
    logits: NDArray[np.float32]

    def error(self, prefix: PrefixAdapter | None, kv_dtype: str = "fp32", chunk: int = 20, first: int = 0) -> float:
        """The largest difference, as a share of the reference's range; the ids in chunks, in pages behind `first`."""
        found = logits(self.model, self.ids, prefix, kv_dtype, chunk, first)
        return float(np.abs(found - self.logits).max() / np.ptp(self.logits))


def logits(
    model: Transformer, ids: NDArray[np.int32], prefix: PrefixAdapter | None, kv_dtype: str, chunk: int, first: int
) -> NDArray[np.float32]:
    virtual = 0 if prefix is None else prefix.num_virtual_tokens
    pages = list(range(first, first + pages_for(virtual + len(ids))))
    cache = KVCache(model.config, first + len(pages), kv_dtype)
    if prefix is not None:
        model.store_prefix(prefix, 0, slots_of(pages, np.arange(virtual)), cache)
    rows = []
    for start in range(0, len(ids), chunk):
        part = ids[start : start + chunk]
        batch = ForwardBatch.build([pages], [virtual + start], [len(part)])
        rows.append(model.logits(model.forward(part, batch, cache)))
    return np.concatenate(rows)


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
def case(request: pytest.FixtureRequest, kernels: Any, tmp_path_factory: pytest.TempPathFactory) -> Case:
    with open_checkpoint(write_model(tmp_path_factory.mktemp("tiny"), request.param)) as checkpoint:
        model = load_model(checkpoint, PRECISIONS["fp32"], kernels)
        prefix = read_prefix(
            FOLDER / request.param, model.config, checkpoint.model_type, max_nbytes=1 << 30, max_model_len=128
        )
    golden = gm.load_golden(FOLDER / request.param / "logits.npz")
    return Case(model, prefix, golden["ids"], golden["logits"])


def test_every_golden_prefix_has_a_case() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(CASES)


def test_logits_are_those_of_peft(case: Case) -> None:
    assert case.error(case.prefix) <= TOLERANCE
    assert case.error(case.prefix, chunk=7, first=3) <= TOLERANCE
    assert case.error(None) > 0.05  # of the range: what the prefix does


def test_formats_of_the_cache_cost_little(case: Case) -> None:
    assert TOLERANCE < case.error(case.prefix, "fp16") < 2e-3
    assert TOLERANCE < case.error(case.prefix, "int8") < 0.03


def test_rows_may_be_written_in_pieces(case: Case) -> None:
    """As when the full pages come from the prefix cache."""
    count = case.prefix.num_virtual_tokens
    pages = list(range(pages_for(count)))
    for kv_dtype in ("fp32", "fp16", "int8"):
        whole, pieces = (
            KVCache(case.model.config, len(pages), kv_dtype),
            KVCache(case.model.config, len(pages), kv_dtype),
        )
        case.model.store_prefix(case.prefix, 0, slots_of(pages, np.arange(count)), whole)
        for start in range(0, count, PAGE_SIZE):
            rows = np.arange(start, min(start + PAGE_SIZE, count))
            case.model.store_prefix(case.prefix, start, slots_of(pages, rows), pieces)
        for left, right in zip([*whole.keys, *whole.values], [*pieces.keys, *pieces.values], strict=True):
            np.testing.assert_array_equal(left, right)
            assert left.any()


def halves(keys: NDArray[np.float32], config: Any) -> NDArray[np.float32]:
    keys = keys.copy()
    split_key_channels(keys, config)
    return keys


MISTAKES: Mapping[str, Callable[[Case], PrefixAdapter]] = {
    "keys and values exchanged": lambda case: replace(case.prefix, keys=case.prefix.values, values=case.prefix.keys),
    "layers in another order": lambda case: replace(case.prefix, keys=case.prefix.keys[::-1].copy()),
    "heads in another order": lambda case: replace(case.prefix, values=case.prefix.values[:, :, ::-1].copy()),
    "channels half-split": lambda case: replace(case.prefix, keys=halves(case.prefix.keys, case.model.config)),
    "a token less": lambda case: replace(case.prefix, keys=case.prefix.keys[:, 1:], values=case.prefix.values[:, 1:]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_prefix_fails(case: Case, mistake: str) -> None:
    assert case.error(MISTAKES[mistake](case)) > 20 * TOLERANCE


def test_orders_of_channels_are_inverse_to_each_other(case: Case) -> None:
    keys = halves(case.prefix.keys, case.model.config)
    assert (keys != case.prefix.keys).any()
    interleave_key_channels(keys, case.model.config)
    np.testing.assert_array_equal(keys, case.prefix.keys)

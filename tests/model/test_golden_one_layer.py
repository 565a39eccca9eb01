"""A one-layer model with inputs and outputs of the original GLM-4 code (`golden/one_layer.npz`, see its README).

It cannot tell interleaved from half-split rotary pairs (one frequency only); `test_parity.py` does.

`forward64` is the forward pass of the specification in float64, written for this test alone: it confirms what the file
says, and its switches show how far each classic mistake lies from the bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import golden_models as gm
from glm4.kernels import get_kernels
from model_driver import Session, loaded

TOLERANCE = 1e-5
MODEL = gm.TinyModel(
    "one-layer", 0, "chatglm", num_attention_heads=8, num_key_value_heads=2, head_dim=4, vocab_size=5, hidden_size=32,
    intermediate_size=48, num_hidden_layers=1, tie_word_embeddings=True,
)  # fmt: skip
STEPS = (slice(0, 3), slice(3, 4), slice(4, 5))  # prefill and two decode steps

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Golden:
    """Weights under canonical names, ids [5], hidden states [5, H] after the final norm."""

    tensors: gm.Tensors
    ids: NDArray[np.int32]
    hidden: NDArray[np.float32]


@pytest.fixture(scope="module")
def golden() -> Golden:
    with np.load(gm.GOLDEN / "one_layer.npz") as file:
        tensors = {name: file[name] for name in gm.shapes(MODEL)}
        return Golden(tensors, file["ids"], file["hidden"])


@pytest.fixture(params=["reference", "native"])
def session(request: pytest.FixtureRequest, golden: Golden, tmp_path: Path) -> Iterator[Session]:
    folder = gm.write_checkpoint(tmp_path, MODEL, golden.tensors)
    with loaded(folder, get_kernels(request.param)) as model:
        yield Session(model, [5])


def final_hidden(session: Session, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    model = session.model
    return model.kernels.rms_norm(session.hidden({0: ids})[0], model.weights.norm, model.config.rms_norm_eps)


def test_prefill_and_two_decode_steps(golden: Golden, session: Session) -> None:
    for step in STEPS:
        np.testing.assert_allclose(final_hidden(session, golden.ids[step]), golden.hidden[step], rtol=0, atol=TOLERANCE)


def test_uncached_pass(golden: Golden, session: Session) -> None:
    found = final_hidden(session, golden.ids)
    np.testing.assert_allclose(found, golden.hidden, rtol=0, atol=TOLERANCE)


def forward64(
    tensors: gm.Tensors,
    ids: NDArray[np.int32],
    *,
    eps: float = gm.GLM_EPS,
    rotary_dim: int = MODEL.rotary_dim,
    gate_first: bool = True,
    bias: bool = True,
    grouped: bool = True,
    causal: bool = True,
) -> Float64:
    """Hidden states [T, H] after the final norm of the one-layer model, in float64."""
    w = {name.removeprefix("layers.0."): value.astype(np.float64) for name, value in tensors.items()}
    heads, kv_heads, dim, length = MODEL.num_attention_heads, MODEL.num_key_value_heads, MODEL.head_dim, len(ids)

    def norm(x: Float64, weight: Float64) -> Float64:
        return weight * x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)

    def rotate(x: Float64) -> Float64:
        angles = np.arange(length)[:, None] / 1e4 ** (np.arange(0, rotary_dim, 2) / max(rotary_dim, 1))
        turn = np.exp(1j * angles)[:, None]
        pairs = (x[..., 0:rotary_dim:2] + 1j * x[..., 1:rotary_dim:2]) * turn
        out = x.copy()
        out[..., 0:rotary_dim:2], out[..., 1:rotary_dim:2] = pairs.real, pairs.imag
        return out

    h = w["embed_tokens"][ids]
    qkv = norm(h, w["input_layernorm"]) @ w["qkv"].T + (w["qkv_bias"] if bias else 0)
    q, k, v = np.split(qkv.reshape(length, -1, dim), [heads, heads + kv_heads], axis=1)
    of_head = np.arange(heads) // (heads // kv_heads) if grouped else np.arange(heads) % kv_heads
    scores = np.einsum("thd,shd->hts", rotate(q), rotate(k)[:, of_head]) / np.sqrt(dim)
    if causal:
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    h = h + np.einsum("hts,shd->thd", weights, v[:, of_head]).reshape(length, -1) @ w["o"].T
    gate, up = np.split(norm(h, w["post_attention_layernorm"]) @ w["gate_up"].T, 2, axis=1)
    if not gate_first:
        gate, up = up, gate
    h = h + (gate / (1 + np.exp(-gate)) * up) @ w["down"].T
    return np.asarray(norm(h, w["norm"]), np.float64)


def test_the_specification_in_float64(golden: Golden) -> None:
    found = forward64(golden.tensors, golden.ids)
    np.testing.assert_allclose(found, golden.hidden, rtol=0, atol=3e-7)


@pytest.mark.parametrize(
    "mistake",
    [
        {"eps": 1e-5},
        {"rotary_dim": 0},
        {"rotary_dim": 4},
        {"gate_first": False},
        {"bias": False},
        {"grouped": False},
        {"causal": False},
    ],
    ids=lambda mistake: next(iter(mistake)),
)
def test_each_mistake_lies_outside_the_bound(golden: Golden, mistake: dict[str, Any]) -> None:
    found = forward64(golden.tensors, golden.ids, **mistake)
    assert np.abs(found - golden.hidden).max() > 2 * TOLERANCE

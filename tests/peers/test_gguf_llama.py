"""Exported GGUF files in llama.cpp itself: every dtype loads and computes what our engine reads in the same file.

Needs llama-server; the environment variable GLM4_LLAMA_CPP names the folder it is in (benchmarks/README.md builds it):

    GLM4_LLAMA_CPP=BUILD/bin pytest -m peers tests/peers/test_gguf_llama.py

In f32 and f16 greedy ids are equal. In other types llama.cpp's kernels round activations, too, to bf16 or 8 bits, so
those are compared by their distributions along llama.cpp's own ids.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.export.gguf_types import FILE_TYPES
from glm4.export.targets import ExportRequest, export_target
from glm4.kernels import get_kernels
from model_driver import forced_logits, loaded
from tiny import gguf_model, write_gguf

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "export"))

sys.path.insert(0, str(Path(__file__).resolve().parent))

from exported import glm_folder, special
from llama_binaries import llama_server, needs_llama_cpp, post

pytestmark = needs_llama_cpp

NEW, PROMPTS = 24, (10, 100, 300)
EXACT = ("f32", "f16")
# Nats, of the mean over all positions; of types not named here 0.2. These models are small and random, so that every
# rounding of activations shows.
MOST_DIVERGENCE = {"f32": 1e-6, "f16": 0.001, "bf16": 0.01}
# Blocks of 256 weights make up the rows of all matrices, and those of all but one.
SHAPES: dict[str, dict[str, Any]] = {
    "even": {"hidden_size": 256, "num_attention_heads": 4, "head_dim": 64, "intermediate_size": 512},
    "odd": {"hidden_size": 256, "num_attention_heads": 4, "head_dim": 64, "intermediate_size": 416},
}


def source_of(architecture: str, shape: str, folder: Path) -> Path:
    """A random model with three layers."""
    changes = {**SHAPES[shape], "num_hidden_layers": 3, "max_position_embeddings": 1024}
    if architecture == "qwen2":
        return write_gguf(folder / "m.gguf", "qwen2", gguf_model("qwen2", **changes))
    if architecture == "glm4":
        return glm_folder(folder, architecture="glm4", attention_bias=False, **changes)
    return glm_folder(folder, "chatglm", rope_theta=5e6, **changes)


def completion(address: str, ids: list[int], **options: Any) -> dict[str, Any]:
    body = {"prompt": ids, "temperature": 0, "cache_prompt": False, "return_tokens": True, **options}
    return post(address + "/completion", body)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def divergence(logits: NDArray[np.float32], theirs: NDArray[np.float64]) -> float:
    """KL divergence of llama.cpp's distributions from those of our logits, the mean over positions."""
    ours = log_softmax(logits)
    return float((np.exp(ours) * (ours - theirs)).sum(axis=1).mean())


def distributions(answer: dict[str, Any], rows: int) -> NDArray[np.float64]:
    """llama.cpp's log probabilities of all ids at each new position."""
    found = np.full((len(answer["completion_probabilities"]), rows), -np.inf)
    for at, step in enumerate(answer["completion_probabilities"]):
        for entry in step["top_logprobs"]:
            found[at, entry["id"]] = entry["logprob"]
    return found


@pytest.mark.parametrize("dtype", FILE_TYPES)
@pytest.mark.parametrize(
    ("architecture", "shape"), [("chatglm", "even"), ("chatglm", "odd"), ("glm4", "even"), ("qwen2", "even")]
)
def test_llama_cpp_computes_what_we_read(architecture: str, shape: str, dtype: str, tmp_path: Path) -> None:
    file, source = tmp_path / "out.gguf", source_of(architecture, shape, tmp_path / "m")
    with open_checkpoint(source) as checkpoint:
        export_target("gguf").export(ExportRequest(checkpoint, file, dtype))
        rows = checkpoint.config.vocab_size
    # Printable bytes only: llama.cpp gives no probabilities of a piece of a character before the whole is there.
    never = [token for token in range(rows) if not 32 <= token < 127]
    rng, kernels = np.random.default_rng(5), get_kernels()
    read, rounding = [], []
    with llama_server(file) as address, loaded(file, kernels) as model, loaded(source, kernels) as exact:
        for length in PROMPTS:
            prompt = rng.integers(0, 250, length).tolist()
            bias = [[token, False] for token in never]
            answer = completion(address, prompt, n_predict=NEW, n_probs=rows, logit_bias=bias)
            made, theirs = answer["tokens"], distributions(answer, rows)
            assert len(made) == NEW
            ids = np.array(prompt + made[:-1], np.int32)
            ours = forced_logits(model, ids)[length - 1 :]
            read.append(divergence(ours, theirs))
            rounding.append(divergence(forced_logits(exact, ids)[length - 1 :], theirs))
            ours[:, never] = -np.inf
            assert dtype not in EXACT or ours.argmax(axis=1).tolist() == made
    assert np.mean(read) < MOST_DIVERGENCE.get(dtype, 0.2), np.mean(read)
    if dtype[:2] in ("q4", "q5"):  # the weights of the file are nearer than those it was made of
        assert np.mean(read) < np.mean(rounding) / 3, (np.mean(read), np.mean(rounding))


@pytest.mark.parametrize("architecture", ["chatglm", "glm4"])
def test_three_ids_end_an_answer(architecture: str, tmp_path: Path) -> None:
    """An id that is forced ends the answer at once, any other one goes on to the limit."""
    file = tmp_path / "out.gguf"
    with open_checkpoint(source_of(architecture, "even", tmp_path / "m")) as checkpoint:
        export_target("gguf").export(ExportRequest(checkpoint, file, "bf16"))
    with llama_server(file) as address:

        def ends(token: int) -> tuple[str, int]:
            answer = completion(address, [1, 2, 3], n_predict=8, logit_bias=[[token, 1000.0]])
            return answer["stop_type"], answer["tokens_predicted"]

        for name in ("<|endoftext|>", "<|user|>", "<|observation|>"):
            assert ends(special(name)) == ("eos", 1), name
        for token in (65, special("<|assistant|>")):
            assert ends(token) == ("limit", 8)


def test_a_model_in_several_files(tmp_path: Path) -> None:
    with open_checkpoint(source_of("glm4", "even", tmp_path / "m")) as checkpoint:
        whole, parts = tmp_path / "whole.gguf", tmp_path / "parts.gguf"
        export_target("gguf").export(ExportRequest(checkpoint, whole, "bf16"))
        report = export_target("gguf").export(ExportRequest(checkpoint, parts, "bf16", shard_bytes=600_000))
    assert len(report.files) >= 3
    made = []
    for file in (whole, tmp_path / report.files[0]):
        with llama_server(file) as address:
            made.append(completion(address, [5, 6, 7], n_predict=NEW, ignore_eos=True)["tokens"])
    assert made[0] == made[1]

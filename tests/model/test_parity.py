"""Parity with transformers on tiny random checkpoints: the recorded files of tests/golden/tiny and rope.npz.

Both sides compute in float32. The largest logit difference may be 1e-5 of the range of the reference logits; measured
are 3e-7 to 8e-7. `test_a_wrong_model_fails` shows that the bound notices each classic mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import golden_models as gm
import tiny
from glm4.engine.engine import Engine
from glm4.engine.protocol import GenerationRequest
from glm4.engine.scheduler import SchedulerConfig
from glm4.kernels import get_kernels
from glm4.model.kv_cache import PAGE_SIZE, KVCache
from glm4.model.rotary import RotaryTable
from glm4.model.transformer import Transformer
from glm4.prompt import Prompt
from glm4.sampling_params import SamplingParams
from model_driver import Session, forced_logits, loaded

TOLERANCE = 1e-5


class Case:
    """A tiny model, loaded from its files, and what was recorded for it."""

    def __init__(self, name: str, model: Transformer) -> None:
        self.tiny = gm.TINY_MODELS[name]
        self.model = model
        self.golden = gm.load_golden(gm.GOLDEN / "tiny" / f"{name}.npz")
        self.prompts = np.split(self.golden["prompts"], np.cumsum(gm.SEQUENCE_LENGTHS)[:-1])
        self.prefill = np.split(self.golden["prefill_logits"], np.cumsum(gm.SEQUENCE_LENGTHS)[:-1])

    def session(self) -> Session:
        return Session(self.model, [n + gm.DECODE_STEPS for n in gm.SEQUENCE_LENGTHS])

    def check(self, found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
        assert found.shape == expected.shape
        assert relative_error(found, expected) <= TOLERANCE


def relative_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(found - expected).max() / np.ptp(expected))


@pytest.fixture(scope="module", params=["reference", "native"])
def kernels(request: pytest.FixtureRequest) -> Any:
    return get_kernels(request.param)


@pytest.fixture(scope="module", params=list(gm.TINY_MODELS))
def case(request: pytest.FixtureRequest, kernels: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = gm.write_checkpoint(tmp_path_factory.mktemp("tiny"), gm.TINY_MODELS[request.param])
    with loaded(folder, kernels) as model:
        yield Case(request.param, model)


def test_every_golden_file_has_a_model_and_belongs_to_its_weights() -> None:
    assert {path.stem for path in (gm.GOLDEN / "tiny").glob("*.npz")} == set(gm.TINY_MODELS)
    for name, model in gm.TINY_MODELS.items():
        recorded = float(gm.load_golden(gm.GOLDEN / "tiny" / f"{name}.npz")["fingerprint"][0])
        # A NumPy whose normal numbers differ in the last bit passes; another stream does not.
        assert gm.fingerprint(gm.draw(model)) == pytest.approx(recorded, rel=1e-9), name


def test_prefill_of_a_batch_of_unequal_lengths(case: Case) -> None:
    found = case.session().logits(dict(enumerate(case.prompts)))
    for s, expected in enumerate(case.prefill):
        case.check(found[s], expected)


def test_prefill_alone_equals_prefill_in_a_batch(case: Case) -> None:
    together = case.session().logits(dict(enumerate(case.prompts)))
    for s, prompt in enumerate(case.prompts):
        np.testing.assert_array_equal(case.session().logits({s: prompt})[s], together[s])


def test_decode_in_a_batch_after_prefill(case: Case) -> None:
    session = case.session()
    session.hidden(dict(enumerate(case.prompts)))
    steps = case.golden["decode"].T
    found = [session.logits({s: step[s : s + 1] for s in range(len(case.prompts))}) for step in steps]
    for s in range(len(case.prompts)):
        case.check(np.concatenate([step[s] for step in found]), case.golden["decode_logits"][s])


@pytest.mark.parametrize("chunk", [1, 7, 32])
def test_chunked_prefill(case: Case, chunk: int) -> None:
    found = forced_logits(case.model, case.prompts[2], chunk)
    case.check(found, case.prefill[2])
    np.testing.assert_array_equal(found, forced_logits(case.model, case.prompts[2]))


def test_prefill_beside_decode(case: Case) -> None:
    """One pass that decodes sequence 0 and prefills a piece of sequence 2, as continuous batching does."""
    session = case.session()
    session.hidden({0: case.prompts[0]})
    found, token = [], case.golden["decode"][0]
    for step, start in enumerate(range(0, 50, 10)):
        out = session.logits({2: case.prompts[2][start : start + 10], 0: token[step : step + 1]})
        found.append(out)
    case.check(np.concatenate([out[2] for out in found]), case.prefill[2])
    case.check(np.concatenate([out[0] for out in found]), case.golden["decode_logits"][0])


def test_cached_equals_uncached(case: Case) -> None:
    """Prompt and following tokens in one uncached pass give what prefill and decode through the cache gave."""
    for s, prompt in enumerate(case.prompts):
        found = forced_logits(case.model, np.concatenate([prompt, case.golden["decode"][s]]))
        case.check(found[len(prompt) :], case.golden["decode_logits"][s])


def test_far_positions(case: Case) -> None:
    """100,000 (theta 5e6) and 1,000,000 (theta 1e8) tokens into the context, float32 angles decide the result."""
    if case.tiny.far_start is None:
        assert "far_logits" not in case.golden
        return
    ids = case.golden["far"]
    session = Session(case.model, [len(ids)])
    case.check(session.logits({0: ids}, case.tiny.far_start)[0], case.golden["far_logits"])


def test_rotary_tables() -> None:
    """float32 angles as transformers rounds them, at the published shapes and up to the end of each context.

    One unit in the last place of an inverse frequency is an angle of 0.01 rad 100,000 tokens on.
    """
    golden = gm.load_golden(gm.GOLDEN / "rope.npz")
    shapes = sorted({key.split(".")[0] for key in golden if "." in key})
    assert len(shapes) == 7
    for shape in shapes:
        dim, theta = shape.split("-")
        context = 1_048_576 if theta == "100000000" else 131_072
        used = golden["positions"] < context
        cos, sin = RotaryTable(int(dim), float(theta)).lookup(golden["positions"][used])
        np.testing.assert_allclose(cos, golden[f"{shape}.cos"][used], rtol=0, atol=5e-6, err_msg=shape)
        np.testing.assert_allclose(sin, golden[f"{shape}.sin"][used], rtol=0, atol=5e-6, err_msg=shape)


def engine_answers(model: Transformer, prompts: list[NDArray[np.int32]], **options: int) -> list[list[int]]:
    """Greedy ids from the engine, all prompts at once."""
    cache = KVCache(model.config, 64, "fp32")
    engine = Engine(model, cache, 64 * PAGE_SIZE, SchedulerConfig(**options))
    params = SamplingParams(temperature=0.0, max_tokens=gm.GREEDY_STEPS)
    for index, prompt in enumerate(prompts):
        engine.add_request(GenerationRequest(str(index), Prompt(prompt.tolist()), params))
    answers: list[list[int]] = [[] for _ in prompts]
    while engine.has_unfinished_requests():
        for output in engine.step():
            answers[int(output.request_id)] += output.token_ids
    return answers


def test_greedy_tokens_of_the_engine(case: Case) -> None:
    # The closest two logits of all recordings are 1.6e-4 apart, far more than two float32 programs differ here.
    assert case.golden["greedy_margins"].min() > 1e-4
    expected = case.golden["greedy"].tolist()
    assert engine_answers(case.model, case.prompts) == expected
    assert engine_answers(case.model, case.prompts, max_num_batched_tokens=11, max_prefill_beside_decode=3) == expected


@pytest.mark.thorough
def test_a_batch_of_eight_gives_what_eight_single_runs_give(case: Case) -> None:
    rng = np.random.RandomState(5)
    prompts = [rng.randint(0, case.tiny.vocab_size, n).astype(np.int32) for n in (1, 90, 5, 33, 64, 2, 31, 17)]
    alone = [engine_answers(case.model, [prompt])[0] for prompt in prompts]
    assert engine_answers(case.model, prompts, max_num_seqs=8) == alone
    assert engine_answers(case.model, prompts, max_num_seqs=3, max_num_batched_tokens=40) == alone


GGUF_FILES: dict[str, tiny.GGUFArchitecture] = {
    "chatglm-chat": "chatglm",
    "chatglm-chat-1m": "chatglm",
    "glm4-9b": "glm4",
    "hf-starter": "qwen2",
    "hf-smoke": "llama",
}


@pytest.mark.parametrize("name", list(GGUF_FILES))
def test_gguf_files(name: str, kernels: Any, tmp_path: Path) -> None:
    """The same weights from a GGUF file, whose names, row order and keys differ by architecture."""
    path = tiny.write_gguf(tmp_path / "model.gguf", GGUF_FILES[name], gm.TINY_MODELS[name], tokenizer=False)
    with loaded(path, kernels) as model:
        case = Case(name, model)
        found = case.session().logits(dict(enumerate(case.prompts)))
    for s, expected in enumerate(case.prefill):
        case.check(found[s], expected)


def test_sharded_files(kernels: Any, tmp_path: Path) -> None:
    model = gm.TINY_MODELS["chatglm-chat"]
    folder = tiny.write_folder(tmp_path / "m", model, shards=3, tokenizer=False)
    with loaded(folder, kernels) as transformer:
        case = Case(model.name, transformer)
        case.check(case.session().logits({2: case.prompts[2]})[2], case.prefill[2])


def _swap_gate_and_up(model: gm.TinyModel, tensors: gm.Tensors) -> gm.TinyModel:
    for i in range(model.num_hidden_layers):
        tensors[f"layers.{i}.gate_up"] = np.roll(tensors[f"layers.{i}.gate_up"], model.intermediate_size, axis=0)
    return model


def _half_split_rotary(model: gm.TinyModel, tensors: gm.Tensors) -> gm.TinyModel:
    for i in range(model.num_hidden_layers):
        for name in (f"layers.{i}.qkv", f"layers.{i}.qkv_bias"):
            tensors[name] = gm.half_split_rows(model, tensors[name])
    return model


def _key_heads_exchanged(model: gm.TinyModel, tensors: gm.Tensors) -> gm.TinyModel:
    first = model.query_size
    for i in range(model.num_hidden_layers):
        for name in (f"layers.{i}.qkv", f"layers.{i}.qkv_bias"):
            rows = tensors[name].copy()
            for start in (first, first + model.key_value_size):
                block = rows[start : start + model.key_value_size]
                block[:] = np.roll(block, model.head_dim, axis=0)
            tensors[name] = rows
    return model


def _without_bias(model: gm.TinyModel, tensors: gm.Tensors) -> gm.TinyModel:
    for i in range(model.num_hidden_layers):
        tensors[f"layers.{i}.qkv_bias"] *= 0
    return model


def _exchange(first: str, second: str) -> Callable[[gm.TinyModel, gm.Tensors], gm.TinyModel]:
    def change(model: gm.TinyModel, tensors: gm.Tensors) -> gm.TinyModel:
        one, other = f"layers.0.{first}", f"layers.0.{second}"
        tensors[one], tensors[other] = tensors[other], tensors[one]
        return model

    return change


# mistake → (model whose recording must notice it, the wrong checkpoint)
MISTAKES: dict[str, tuple[str, Callable[[gm.TinyModel, gm.Tensors], gm.TinyModel]]] = {
    "gate and up swapped": ("chatglm-chat", _swap_gate_and_up),
    "half-split rotary pairs": ("chatglm-chat", _half_split_rotary),
    "query heads on the wrong key head": ("chatglm-chat", _key_heads_exchanged),
    "no bias": ("chatglm-chat", _without_bias),
    "norms exchanged": ("chatglm-chat", _exchange("input_layernorm", "post_attention_layernorm")),
    "sandwich norms exchanged": ("glm4-9b", _exchange("post_self_attn_layernorm", "post_mlp_layernorm")),
    "theta without rope_ratio": ("chatglm-chat", lambda model, _: replace(model, rope_theta=1e4)),
    "theta off by a thousandth": ("hf-chat", lambda model, _: replace(model, rope_theta=4.995e6)),
    "rotary over the whole head": ("hf-chat", lambda model, _: replace(model, partial_rotary_factor=1.0)),
    "rotary over half of a full head": ("hf-edge", lambda model, _: replace(model, partial_rotary_factor=0.5)),
    "epsilon of other families": ("hf-chat", lambda model, _: replace(model, rms_norm_eps=1e-5)),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_wrong_model_fails(mistake: str, kernels: Any, tmp_path: Path) -> None:
    """Negative controls: each mistake, made in the checkpoint, moves the logits well beyond the bound."""
    name, change = MISTAKES[mistake]
    tensors = gm.draw(gm.TINY_MODELS[name])
    wrong = change(gm.TINY_MODELS[name], tensors)
    with loaded(gm.write_checkpoint(tmp_path / "m", wrong, tensors), kernels) as model:
        case = Case(name, model)
        found = case.session().logits({2: case.prompts[2]})[2]
    assert relative_error(found, case.prefill[2]) > 3 * TOLERANCE


def test_far_positions_notice_wrong_angles(kernels: Any, tmp_path: Path) -> None:
    """Theta off by a millionth is invisible near 0 and must show a million tokens on."""
    model = gm.TINY_MODELS["hf-chat-1m"]
    assert model.far_start is not None
    wrong = replace(model, rope_theta=model.rope_theta * (1 + 1e-6))
    with loaded(gm.write_checkpoint(tmp_path / "m", wrong), kernels) as transformer:
        case = Case(model.name, transformer)
        near = case.session().logits({2: case.prompts[2]})[2]
        session = Session(transformer, [gm.FAR_LENGTH])
        far = session.logits({0: case.golden["far"]}, model.far_start)[0]
    assert relative_error(near, case.prefill[2]) <= TOLERANCE
    assert relative_error(far, case.golden["far_logits"]) > TOLERANCE

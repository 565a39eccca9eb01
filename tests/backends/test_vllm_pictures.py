"""GLM-4V through vLLM: what our own engine computes, in float32, with its pictures at GLM-4V's positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm_pictures import (
    CONTEXT,
    MODEL,
    PARAMS,
    TOLERANCE,
    UNNAMED,
    Answer,
    answers,
    assert_equal,
    prompt,
)
from wide_heads import write_with_wide_heads

import golden_models as gm
import vision_folder as vf
import vision_pictures as vp
from glm4 import LLM, SamplingParams
from glm4.backends.base import Capability
from glm4.backends.table import BACKENDS
from glm4.backends.vllm.media import prompt_inputs
from glm4.errors import InvalidRequestError
from glm4.open_model import OpenModel, open_model
from glm4.prompt import Prompt

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]

VLLM: dict[str, Any] = {
    "dtype": "fp32", "max_model_len": CONTEXT, "enforce_eager": True, "max_num_seqs": 8, "kv_cache_memory": 256 << 20,
}  # fmt: skip


def joined(first: Prompt, second: Prompt) -> Prompt:
    later = (replace(span, start=span.start + len(first)) for span in second.spans)
    return Prompt([*first.ids, *second.ids], (*first.spans, *later), {**first.pixels, **second.pixels})


PROMPTS = {
    "picture first": prompt(0, 20, 1),
    "in the middle": prompt(30, 20, 2),
    "after turns": prompt(150, 5, 3),
    "before turns": prompt(3, 200, 4),
    "another picture": prompt(30, 20, 5),
    "two pictures": joined(prompt(10, 8, 1), prompt(4, 6, 2)),
    "no picture": prompt(20, 10),
}


@pytest.fixture(scope="module", autouse=True)
def in_this_process() -> Iterator[None]:
    """Three engines start here; what takes long is the imports of every process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vf.write_vision_folder(tmp_path_factory.mktemp("vllm") / "glm-4v", model=MODEL)


@pytest.fixture(scope="module")
def local(folder: Path) -> Iterator[OpenModel]:
    opened = open_model(str(folder), options={"dtype": "fp32", "max_model_len": CONTEXT, "allow_many_images": True})
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def expected(local: OpenModel) -> dict[str, Answer]:
    return answers(local.backend, PROMPTS)


@pytest.fixture(scope="module")
def opened(folder: Path) -> Iterator[OpenModel]:
    made = open_model(str(folder), backend="vllm", options={**VLLM, "allow_many_images": True})
    yield made
    made.close()


def test_it_says_that_it_sees(opened: OpenModel) -> None:
    assert Capability.MEDIA in BACKENDS["vllm"].capabilities
    assert Capability.MEDIA in opened.backend.info.capabilities


def test_ids_and_logprobs_are_those_of_our_engine(opened: OpenModel, expected: dict[str, Answer]) -> None:
    found = answers(opened.backend, PROMPTS)
    for name in PROMPTS:
        assert_equal(found[name], expected[name])
    assert expected["in the middle"] != expected["another picture"]  # the same ids


def test_equal_ids_share_pages_only_with_an_equal_picture(opened: OpenModel, local: OpenModel) -> None:
    """More rows than a page of vLLM has on CPUs, 128."""
    one, other = prompt(0, 300, 6), prompt(0, 300, 7)
    assert one.ids == other.ids
    reference = answers(local.backend, {"one": one, "other": other})
    found = [answers(opened.backend, {name: each}) for name, each in (("one", one), ("other", other), ("one", one))]
    for each in found:
        for name, answer in each.items():
            assert_equal(answer, reference[name])
    assert [each[name][2] >= 128 for each in found for name in each] == [False, False, True]
    assert found[1]["other"][2] == 0


def test_chat(opened: OpenModel, local: OpenModel) -> None:
    """A picture in the first turn, a second turn without one; in one batch with a conversation of text."""
    pixels = np.random.default_rng(8).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    parts = [{"type": "image", "image": pixels}, {"type": "text", "text": "What is it?"}]
    first: dict[str, Any] = {"role": "user", "content": parts}
    later = [first, {"role": "assistant", "content": "A cat."}, {"role": "user", "content": "Which color?"}]
    conversations = [[first], later, [{"role": "user", "content": "Hello"}]]
    texts = []
    for one in (opened, local):
        llm = LLM.from_backend(one.backend, one.processor)
        texts.append([output.outputs[0].token_ids for output in llm.chat(conversations, PARAMS)])
    assert texts[0] == texts[1]


def test_vllms_own_positions_give_other_answers(opened: OpenModel, folder: Path, expected: dict[str, Answer]) -> None:
    """The same test fails with vLLM's class, given our pixels; text alone is as before."""
    opened.close()
    found = _with_vllms_positions(folder)
    assert_equal(found["no picture"], expected["no picture"])
    for name, one in PROMPTS.items():
        if one.spans:
            assert abs(found[name][1][0] - expected[name][1][0]) > 10 * TOLERANCE, name


def _with_vllms_positions(folder: Path) -> dict[str, Answer]:
    from vllm import EngineArgs, ModelRegistry
    from vllm import SamplingParams as VllmParams
    from vllm.model_executor.models import glm4v
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.v1.engine.llm_engine import LLMEngine

    from glm4.backends.vllm.glm4v import Glm4vForCausalLM, PictureInfo, PictureProcessor

    @MULTIMODAL_REGISTRY.register_processor(
        PictureProcessor, info=PictureInfo, dummy_inputs=glm4v.GLM4VDummyInputsBuilder
    )
    class Sequential(glm4v.GLM4VForCausalLM):  # type: ignore[misc]
        _process_image_input = Glm4vForCausalLM._process_image_input

    ModelRegistry.register_model("Sequential", Sequential)
    overrides = {"architectures": ["Sequential"], "rope_parameters": {"rope_type": "default"}}
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(folder), hf_overrides=overrides, skip_tokenizer_init=True, generation_config="vllm",
            limit_mm_per_prompt={"image": 2},
            dtype="float32", max_model_len=CONTEXT, enforce_eager=True, kv_cache_memory_bytes=256 << 20,
        )
    )  # fmt: skip
    params = VllmParams(
        temperature=0, max_tokens=PARAMS.max_tokens, logprobs=1, ignore_eos=True, detokenize=False,
        logit_bias=dict.fromkeys(UNNAMED, -100.0),
    )  # fmt: skip
    for name, one in PROMPTS.items():
        engine.add_request(name, prompt_inputs(one), params)
    found: dict[str, Answer] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            new = output.outputs[0]
            scores = [entry[token].logprob for token, entry in zip(new.token_ids, new.logprobs, strict=True)]
            found[output.request_id] = (list(new.token_ids), scores, 0)
    engine.engine_core.shutdown()
    return found


def test_a_trained_model_answers_as_with_our_engine(opened: OpenModel, tmp_path: Path) -> None:
    """100 questions about pictures that it has not seen in training, one picture per conversation."""
    opened.close()
    trained = write_with_wide_heads(gm.GOLDEN / "vision" / "trained", tmp_path / "trained")
    conversations, right = [], []
    for index, picture in enumerate(vp.held_out(30, 40)):
        for kind, names in picture.answers.items():
            parts = [
                {"type": "image", "image": picture.pixels},
                {"type": "text", "text": vp.QUESTIONS[kind][index % 2]},
            ]
            conversations.append([{"role": "user", "content": parts}])
            right.append(names[index % 2])
    params = SamplingParams(temperature=0.0, max_tokens=4)
    texts = []
    for options in ({"dtype": "fp32"}, {**VLLM, "backend": "vllm"}):
        with LLM(str(trained), **options) as llm:
            texts.append([output.outputs[0].text.strip() for output in llm.chat(conversations, params)])
            if "backend" in options:
                _check_limit(llm)
    assert len(right) == 100
    assert sum(text == answer for text, answer in zip(texts[1], right, strict=True)) >= 95
    assert texts[1] == texts[0]


def _check_limit(llm: LLM) -> None:
    image = {"type": "image", "image": np.zeros((9, 9, 3), np.uint8)}
    with pytest.raises(InvalidRequestError, match="one picture"):
        llm.chat([{"role": "user", "content": [image, image]}])

"""The token route's fields: every one of vLLM's is honored or refused by name, in the body and in sampling_params."""

from __future__ import annotations

from typing import Any

import pytest
from sampling_options import SAMPLING as SHARED

from glm4.api.fields import OPTIONS
from glm4.api.vllm import parse_generate
from glm4.api.vllm.request import FIELDS, SAMPLING
from glm4.errors import InvalidRequestError
from glm4.sampling_params import SamplingParams, StructuredOutputs

DEFAULTS = SamplingParams(temperature=0.7, repetition_penalty=1.1)
BODY: dict[str, Any] = {"token_ids": [5, 6], "sampling_params": {}}

# vLLM's GenerateRequest and SamplingParams.
VLLM = {
    "request_id", "token_ids", "assistant_tokens_mask", "token_offsets", "features", "content_parts", "sampling_params",
    "model", "stream", "stream_options", "cache_salt", "priority", "kv_transfer_params", "ec_transfer_params",
    "return_token_ids", "output_mode",
}  # fmt: skip
VLLM_SAMPLING = {
    "n", "presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "top_k", "min_p",
    "seed", "stop", "stop_token_ids", "ignore_eos", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs",
    "detokenize", "skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output", "output_kind",
    "truncate_prompt_tokens", "structured_outputs", "logit_bias", "allowed_token_ids", "bad_words", "extra_args",
    "logits_processors",
}  # fmt: skip
# Field → (a value that makes another request of it, what it needs).
TELLING: dict[str, tuple[Any, dict[str, Any]]] = {
    "token_ids": ([5], {}),
    "sampling_params": ({"seed": 3}, {}),
    "request_id": ("mine", {}),
    "stream": (True, {}),
    "stream_options": ({"include_usage": True}, {"stream": True}),
    "return_token_ids": (True, {}),
}
# These are read with the key, before the rest.
BEFORE = {"model", "cache_salt"}
ONE_VALUE: dict[str, tuple[Any, Any]] = {"output_mode": ("tokens", "text"), "priority": (0, 1)}
OPTION: dict[str, tuple[Any, Any]] = {
    **SHARED,
    "logprobs": (2, 2),
    "structured_outputs": ({"regex": "a+"}, StructuredOutputs(regex="a+")),
}


def refused(**body: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        parse_generate({**BODY, **body}, DEFAULTS)
    return caught.value


def test_every_field_of_vllm_is_in_the_table_or_refused_by_name() -> None:
    assert set(FIELDS) <= VLLM
    for name in VLLM - set(FIELDS):
        error = refused(**{name: {}})
        assert error.param == name
        assert f"unsupported field {name!r}: " in str(error), "with the reason"
    assert set(SAMPLING) <= VLLM_SAMPLING
    for name in VLLM_SAMPLING - set(SAMPLING):
        error = refused(sampling_params={name: 1})
        assert error.param == f"sampling_params.{name}"
        assert f"unsupported field {name!r}: " in str(error), "with the reason"


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_field_changes_the_request(name: str) -> None:
    plain = parse_generate(BODY, DEFAULTS)
    if name not in BODY:
        assert parse_generate({**BODY, name: None}, DEFAULTS) == plain
    if name in ONE_VALUE:
        done, other = ONE_VALUE[name]
        assert parse_generate({**BODY, name: done}, DEFAULTS) == plain
        assert refused(**{name: other}).param == name
    elif name not in BEFORE:
        value, needs = TELLING[name]
        assert parse_generate({**BODY, **needs, name: value}, DEFAULTS) != parse_generate({**BODY, **needs}, DEFAULTS)
    assert refused(**{name: object()}).param == name


@pytest.mark.parametrize("name", sorted(set(SAMPLING) - {"detokenize"}))
def test_every_option_arrives_and_the_others_are_the_models(name: str) -> None:
    value, expected = OPTION[name]
    params = parse_generate({**BODY, "sampling_params": {name: value}}, DEFAULTS).params
    assert getattr(params, name) == expected
    assert params.temperature == (0 if name == "temperature" else 0.7)
    assert params.max_tokens == (9 if name == "max_tokens" else None), "until the context is full"
    assert str(refused(sampling_params={name: {"a": object()}}).param).startswith(f"sampling_params.{name}")


def test_stop_strings_need_the_text() -> None:
    parse_generate({**BODY, "sampling_params": {"detokenize": False, "stop_token_ids": [5]}}, DEFAULTS)
    assert refused(sampling_params={"detokenize": False, "stop": "x"}).param == "sampling_params.stop"
    assert refused(sampling_params={"detokenize": 1}).param == "sampling_params.detokenize"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"token_ids": []}, "token_ids"),
        ({"token_ids": None}, "token_ids"),
        ({"token_ids": ["5"]}, "token_ids"),
        ({"token_ids": [True]}, "token_ids"),
        ({"token_ids": "abc"}, "token_ids"),
        ({"sampling_params": None}, "sampling_params"),
        ({"sampling_params": {"temperature": -1}}, "sampling_params.temperature"),
        ({"sampling_params": {"bogus": 1}}, "sampling_params.bogus"),
        ({"sampling_params": {"logprobs": 21}}, "sampling_params.logprobs"),
        ({"sampling_params": {"structured_outputs": {}}}, "sampling_params.structured_outputs"),
        ({"sampling_params": {"structured_outputs": {"tree": 1}}}, "sampling_params.structured_outputs.tree"),
        ({"sampling_params": {"prompt_logprobs": 1}, "stream": True}, "sampling_params.prompt_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"request_id": "two\nlines"}, "request_id"),
        ({"request_id": ""}, "request_id"),
        ({"prompt": "abc"}, "prompt"),
    ],
)
def test_errors_name_the_field(body: dict[str, Any], param: str) -> None:
    assert refused(**body).param == param


def test_the_shared_options_are_all_here() -> None:
    assert set(OPTIONS) == set(OPTION) - {"logprobs", "structured_outputs"}

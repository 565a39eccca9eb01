"""Every field is checked, and the error names it."""

from __future__ import annotations

import math

import pytest

from glm4 import SamplingParams
from glm4.errors import InvalidRequestError

BAD = [
    ("n", 0),
    ("n", 1000),
    ("n", True),
    ("n", 1.5),
    ("temperature", -0.1),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", "hot"),
    ("temperature", 1e308),
    ("temperature", 10**400),
    ("top_p", -0.1),
    ("max_tokens", 10**400),
    ("seed", -(10**400)),
    ("top_k", 1 << 63),
    ("min_p", float("nan")),
    ("top_p", 1.1),
    ("top_k", -2),
    ("top_k", 2.5),
    ("min_p", -0.1),
    ("min_p", 1.5),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", 1e-308),
    ("repetition_penalty", 1e308),
    ("presence_penalty", -(10**400)),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("logit_bias", {1: 101.0}),
    ("logit_bias", {1: math.nan}),
    ("logit_bias", {"1": 1.0}),
    ("seed", 1.5),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", ["x"] * 17),
    ("stop", 1),
    ("stop", b"ab"),
    ("stop", [1]),
    ("stop_token_ids", ["a"]),
    ("stop_token_ids", 7),
    ("logit_bias", [1]),
    ("min_tokens", -1),
    ("max_tokens", 0),
    ("logprobs", -1),
    ("logprobs", 21),
    ("prompt_logprobs", 21),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    assert caught.value.param == name
    assert name in str(caught.value)


def test_nearly_no_temperature_is_none() -> None:
    assert SamplingParams(temperature=5e-324).greedy
    assert not SamplingParams(temperature=0.01).greedy


def test_min_tokens_cannot_exceed_max_tokens() -> None:
    with pytest.raises(InvalidRequestError, match="max_tokens"):
        SamplingParams(min_tokens=5, max_tokens=4)


def test_stop_may_be_one_string_or_several() -> None:
    assert SamplingParams(stop="ab").stop_strings == ("ab",)
    assert SamplingParams(stop=["ab", "c"]).stop_strings == ("ab", "c")
    assert SamplingParams().stop_strings == ()


def test_replace_checks_again() -> None:
    params = SamplingParams(stop="x", max_tokens=3)
    assert params.replace(max_tokens=4).max_tokens == 4
    assert params.replace(max_tokens=4).stop_strings == ("x",)
    with pytest.raises(InvalidRequestError):
        params.replace(max_tokens=0)


def test_numbers_without_a_spelling_are_refused_too() -> None:
    with pytest.raises(
        InvalidRequestError, match="max_tokens must be a whole number of at most 64 bits, not a value of"
    ):
        SamplingParams(max_tokens=10**5000)


def test_an_error_says_what_happens_without_the_option() -> None:
    """Old clients send 0 or -1 where they mean the default."""
    with pytest.raises(InvalidRequestError, match="leave it out for as many as the context holds"):
        SamplingParams(max_tokens=0)
    with pytest.raises(InvalidRequestError, match="leave it out for the model's own value"):
        SamplingParams(top_p=1.5)

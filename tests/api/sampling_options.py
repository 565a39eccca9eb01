"""Sampling options that the APIs share, for walks through their fields."""

from __future__ import annotations

from typing import Any

# Sampling option → a value, and what `SamplingParams` must then say.
SAMPLING: dict[str, tuple[Any, Any]] = {
    "temperature": (0, 0),
    "top_p": (0.5, 0.5),
    "top_k": (7, 7),
    "min_p": (0.1, 0.1),
    "max_tokens": (9, 9),
    "min_tokens": (2, 2),
    "n": (3, 3),
    "seed": (1, 1),
    "presence_penalty": (0.5, 0.5),
    "frequency_penalty": (-0.5, -0.5),
    "repetition_penalty": (1.3, 1.3),
    "stop": ("x", ["x"]),
    "stop_token_ids": ([5], (5,)),
    "ignore_eos": (True, True),
    "include_stop_str_in_output": (True, True),
    "skip_special_tokens": (False, False),
    "prompt_logprobs": (3, 3),
    "logit_bias": ({"12": -5}, {12: -5}),
}

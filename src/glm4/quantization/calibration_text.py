"""The calibration text: written by the model itself, sampled with fixed seeds.

Half answers to questions in the model's chat format, half free continuations of a few opening words; Chinese, English,
code and JSON. The prompts are in `calibration_prompts.json`. None of them is in `benchmarks/quality_text.py`, and no
document is read: quality is measured on text other than the calibration text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glm4.backends.local import LocalBackend, LocalOptions
from glm4.chat.chat_request import ChatRequest
from glm4.chat.messages import Message
from glm4.llm import LLM
from glm4.loading.weights import CanonicalTensors
from glm4.requests.processor import Processor
from glm4.sampling_params import SamplingParams

PROMPTS = Path(__file__).with_name("calibration_prompts.json")
SEQUENCE = 512
_NEW_TOKENS = 320
_MAX_MODEL_LEN = 1024
_BATCH = 32


def calibration_text(
    checkpoint: CanonicalTensors,
    text: Processor,
    sequences: int,
    progress: Callable[[str, float, float], None] | None = None,
) -> NDArray[np.int32]:
    """Ids [sequences, 512 or the model's context]: texts one after another, cut into sequences of equal length.

    The model runs in int8, or in int4 if that does not fit.

    Args:
        progress: called with ("writing calibration text", done, total) in tokens.
    """
    context = checkpoint.config.max_position_embeddings
    length = min(context, _MAX_MODEL_LEN)
    options = LocalOptions(dtype="auto", max_model_len=length, max_num_seqs=_BATCH, kv_cache_dtype="fp16")
    backend = LocalBackend.load(checkpoint, options, text.tokenizer.unnamed_ids(checkpoint.config.vocab_size))
    llm = LLM.from_backend(backend, text)
    sequence = min(context, SEQUENCE)
    prompts, wanted = prompt_ids(text), sequences * sequence
    ids: list[int] = []
    while len(ids) < wanted:
        left = -(-(wanted - len(ids)) // _NEW_TOKENS)
        batch = [next(prompts) for _ in range(min(_BATCH, max(4, left)))]
        params = [SamplingParams(temperature=0.9, top_p=0.98, seed=seed, max_tokens=_NEW_TOKENS) for seed, _ in batch]
        for answer in llm.generate([prompt for _, prompt in batch], params):
            ids += answer.prompt_token_ids + answer.outputs[0].token_ids
        if progress is not None:
            progress("writing calibration text", min(len(ids), wanted), wanted)
    return np.array(ids[:wanted], np.int32).reshape(sequences, sequence)


def prompt_ids(text: Processor) -> Iterator[tuple[int, list[int]]]:
    """(seed, ids of a prompt), endlessly: chat and free prompts in turn, with different seeds in each round."""
    prompts = json.loads(PROMPTS.read_text(encoding="utf-8"))
    chat = [list(text.render(ChatRequest.of([Message("user", prompt)])).ids) for prompt in prompts["chat"]]
    free = [text.tokenizer.encode(prompt) for prompt in prompts["open"]]
    for seed in count():
        kind = (chat, free)[seed % 2]
        yield seed, kind[seed // 2 % len(kind)]

"""`Sequence`: one request on its way through the engine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from glm4.engine.pooling import MeanPool
from glm4.engine.sampling import Sampler
from glm4.engine.speculation import PromptLookup
from glm4.generation import GenerationRequest, TokenLogprobs
from glm4.model.lora import LoraAdapter


class Sequence:
    """Ids, cache pages and sampling state of one running request.

    `num_computed` counts the ids whose keys and values are in the cache. A sequence with one id left to compute is
    decoding; with more it is in prefill (a fresh prompt, or everything again after a preemption).
    """

    def __init__(self, request: GenerationRequest, banned_ids: NDArray[np.int64], max_model_len: int) -> None:
        self.request = request
        self.ids: list[int] = list(request.prompt_ids)
        self.num_prompt = len(self.ids)
        self.num_computed = 0
        self.pages: list[int] = []
        self.num_shared_pages = 0  # full pages entered into the prefix cache
        self.num_cached = 0  # prompt ids that came from it
        self.lookup = PromptLookup()
        self.sampler = Sampler(request, banned_ids)
        limit = max_model_len - self.num_prompt
        self.max_new_tokens = limit if request.params.max_tokens is None else min(limit, request.params.max_tokens)
        # Entry 0 has no predecessor; filled as prefill proceeds, kept across preemption.
        self.prompt_logprobs: list[TokenLogprobs | None] = [None]
        self.adapter: LoraAdapter | None = None
        self.pool: MeanPool | None = None
        if request.pooling is not None:
            self.pool = MeanPool()
            self.max_new_tokens = 0

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.request.request_id

    @property
    def num_new_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.ids) - self.num_prompt

    @property
    def num_remaining(self) -> int:
        """Ids that still have to go through the model before the next one can be sampled."""
        return len(self.ids) - self.num_computed

    def wants_prompt_logprobs(self) -> bool:
        """True while prompt log-probabilities are asked for and incomplete."""
        return self.request.params.prompt_logprobs is not None and len(self.prompt_logprobs) < self.num_prompt

    def needs_all_rows(self) -> bool:
        """True while the hidden states of the whole prompt are needed, so that none of it may come from a cache."""
        return self.pool is not None or self.wants_prompt_logprobs()

    @property
    def tree(self) -> int:
        """The tree of the prefix cache its pages belong to."""
        return 0 if self.adapter is None else self.adapter.number

    def finish_reason(self) -> tuple[str | None, int | None]:
        """("stop", id), ("length", None) or (None, None), judged by the newest token."""
        if not self.num_new_tokens:
            return None, None
        token, params = self.ids[-1], self.request.params
        stops = token in params.stop_token_ids or (token in self.request.stop_ids and not params.ignore_eos)
        # min_tokens bans stop ids while sampling, so no second check is needed here.
        if stops:
            return "stop", token
        if self.num_new_tokens >= self.max_new_tokens:
            return "length", None
        return None, None

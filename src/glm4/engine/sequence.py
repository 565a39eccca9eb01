"""`Sequence`: one request moving through the engine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from glm4.engine.grammar import GrammarState
from glm4.engine.pooling import MeanPool
from glm4.engine.prefix_cache import Tree
from glm4.engine.protocol import GenerationOutput, GenerationRequest
from glm4.engine.sampling import Sampler, token_logprobs
from glm4.engine.speculation import PromptLookup
from glm4.errors import Glm4Error, GrammarError, request_error
from glm4.logprobs import TokenLogprobs
from glm4.model.lora import LoraAdapter
from glm4.model.prefix import Adapter
from glm4.prompt import Prompt

Rows = NDArray[np.float32]
"""Of one picture: float32 [num_rows, hidden_size]; of logits: float32 [num_rows, vocab_size]."""


class Sequence:
    """Ids, cache pages and sampling state of one running request.

    `num_computed` counts the ids whose keys and values are in the cache. A sequence with one id left to compute is
    decoding; with more it is in prefill (a new prompt, tokens forced by a grammar, or everything again after a
    preemption).

    Virtual tokens of an adapter's prefix precede those of the text, in `ids` as in the cache, with `VIRTUAL_ID`. So an
    index of `ids` is a row of the cache, and nothing but this class needs to tell them apart; they are never computed,
    sampled from or reported.

    Args:
        banned_ids: vocabulary rows that have no token.
        max_model_len: the maximum number of ids, including the prompt and virtual ones.
        num_virtual: virtual tokens.
    """

    def __init__(
        self, request: GenerationRequest, banned_ids: NDArray[np.int64], max_model_len: int, num_virtual: int = 0
    ) -> None:
        self.request = request
        self.num_virtual = num_virtual
        self.prompt = request.prompt.behind(num_virtual)
        self.ids: list[int] = list(self.prompt.ids)
        self.num_prompt = len(self.ids)
        self.num_computed = 0
        self.pages: list[int] = []
        self.num_shared_pages = 0  # full pages added to the prefix cache
        self.num_cached = 0  # prompt ids found in it, without virtual ones
        self.was_admitted = False  # it has run before, but may be waiting again
        self.was_preempted = False
        # With a page store: keys of the prompt's full pages behind those of virtual tokens, how many are there or were
        # given to it, and how many pages to wait for (0 is none).
        self.page_keys: list[bytes] | None = None
        self.num_stored_pages = 0
        self.num_awaited_pages = 0
        self.spans = self.prompt.spans
        # By digest; read-only. Kept to the end, because a preemption may need them again.
        self.picture_rows: dict[str, Rows] = {}
        self.lookup = PromptLookup(self.spans)
        self._prompt_positions = prompt_positions(self.prompt)
        self.sampler = Sampler(request, banned_ids)
        limit = max_model_len - self.num_prompt
        self.max_new_tokens = limit if request.params.max_tokens is None else min(limit, request.params.max_tokens)
        # The first of the text has no predecessor; filled as prefill proceeds, kept across preemption.
        self.prompt_logprobs: list[TokenLogprobs | None] = [None] * (num_virtual + 1)
        self.adapter: Adapter | None = None
        self.pool: MeanPool | None = None
        if request.pooling is not None:
            self.pool = MeanPool()
            self.max_new_tokens = 0
        # What the next output will report.
        self.unreported: list[int] = []
        self.unreported_logprobs: list[TokenLogprobs] = []
        self.reported = False  # there was an earlier output
        self.end: tuple[str, int | None] | None = None  # finish reason and stop id
        self.error: Glm4Error | None = None  # why it ends with "error"
        self.embedding: NDArray[np.float32] | None = None
        self.grammar: GrammarState | None = None  # created by the first `append_forced`

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
        """True while prompt log-probabilities are requested and incomplete."""
        return self.request.params.prompt_logprobs is not None and len(self.prompt_logprobs) < self.num_prompt

    def num_top_to_score(self) -> int | None:
        """Most likely tokens that log-probabilities of the prefix cache must come with; None if none are wanted."""
        missing = self.wants_prompt_logprobs() and not self.num_virtual
        return self.request.params.prompt_logprobs if missing else None

    def keeps_scores(self) -> bool:
        """True if the prefix cache is to keep its log-probabilities beside its pages."""
        return self.request.params.prompt_logprobs is not None and not self.num_virtual

    def know_scores(self, logprobs: list[TokenLogprobs]) -> None:
        """Take in log-probabilities of the prompt from its second id on, unless they are known."""
        if len(logprobs) >= len(self.prompt_logprobs):
            self.prompt_logprobs = [None, *logprobs]

    def rows_to_score(self, count: int) -> tuple[int, int]:
        """Of the next `count` rows: first, and one past the last, that predict prompt ids not scored yet."""
        # Row r predicts id num_computed + r + 1; after a preemption some are already known.
        first = max(0, len(self.prompt_logprobs) - 1 - self.num_computed)
        return first, min(count, self.num_prompt - 1 - self.num_computed)

    def append_scores(self, rows: Rows) -> None:
        """Record the log-probabilities of the next prompt ids: a row [vocab_size] of log-softmax for each."""
        for row in rows:
            token = self.ids[len(self.prompt_logprobs)]
            self.prompt_logprobs.append(token_logprobs(row, token, self.request.params.prompt_logprobs or 0))

    def needs_all_rows(self) -> bool:
        """True if the hidden states of the whole prompt are needed, so none of it may come from a cache.

        The cache keeps log-probabilities of pages that begin and end with text only.
        """
        return self.pool is not None or (self.num_virtual > 0 and self.wants_prompt_logprobs())

    @property
    def lora(self) -> LoraAdapter | None:
        """Its adapter, if that is one that a forward pass adds."""
        return self.adapter if isinstance(self.adapter, LoraAdapter) else None

    @property
    def tree(self) -> Tree:
        """The prefix cache tree that its pages belong to."""
        return (0 if self.adapter is None else self.adapter.number), self.request.cache_salt

    def lacking_pictures(self, first: int = 0) -> list[str]:
        """Digests of the pictures whose rows are not known, of those that reach beyond row `first`; in order."""
        lacking = (s.digest for s in self.spans if s.end > first and s.digest not in self.picture_rows)
        return list(dict.fromkeys(lacking))

    def next_picture_rows(self, count: int) -> list[tuple[int, Rows]]:
        """Which of the next `count` rows are those of pictures: (the first one, counted from the next row; rows)."""
        first, found = self.num_computed, list[tuple[int, Rows]]()
        for span in self.spans:
            start, stop = max(first, span.start), min(first + count, span.end)
            if start < stop:
                rows = self.picture_rows[span.digest][start - span.start : stop - span.start]
                found.append((start - first, rows))
        return found

    def next_positions(self, count: int) -> NDArray[np.int32]:
        """Positions of the next `count` rows to compute, which may extend beyond `ids`: int32 [count]."""
        rows = np.arange(self.num_computed, self.num_computed + count, dtype=np.int32)
        given = self._prompt_positions
        if given is None:
            return rows
        inside = given[self.num_computed : self.num_computed + count]
        # Tokens after the prompt continue from its last position, which is not its last row.
        return np.concatenate([inside, rows[len(inside) :] + (given[-1] + 1 - self.num_prompt)])

    def append(self, token: int) -> None:
        """Append a new token; sets `end` if it is the last one."""
        self.ids.append(token)
        self.unreported.append(token)
        params = self.request.params
        # min_tokens bans stop ids during sampling, so no second check is needed here.
        if token in params.stop_token_ids or (token in self.request.stop_ids and not params.ignore_eos):
            self.end = "stop", token
        elif self.num_new_tokens >= self.max_new_tokens:
            self.end = "length", None

    def append_forced(self) -> None:
        """Append what the grammar forces next, if there is one, and set `end` if nothing may follow.

        If log-probabilities are requested, forced tokens are appended one at a time: each needs its row of logits.
        """
        if self.request.constraint is None or self.end is not None:
            return
        try:
            grammar = self.grammar = self.grammar or GrammarState(self.request.constraint, self._end_ids())
            while grammar.forced and self.end is None and self.request.params.logprobs is None:
                token = grammar.forced[0]
                self.sampler.remember(token)
                self.append(token)
                grammar.accept(token)
            if self.end is None and grammar.finished():
                # A stop id let through by `ignore_eos` still ends the grammar's text; it is not part of it.
                last = self.ids[-1] if self.num_new_tokens and self.ids[-1] in self.request.stop_ids else None
                self.end = "stop", last
        except GrammarError:
            self.end = "length", None

    def append_next(self, logits: Rows, log_probabilities: Callable[[Rows], Rows]) -> None:
        """Append the token that follows a row of logits: forced, or sampled.

        Args:
            logits: float32 [vocab_size]; modified in place.
            log_probabilities: log-softmax of rows of logits, called if this request wants any.

        Raises:
            GrammarError: the grammar cannot be followed any further.
        """
        grammar, wanted = self.grammar, self.request.params.logprobs
        scores = None if wanted is None else log_probabilities(logits[None, :])[0]
        if grammar is not None and grammar.forced:
            token = grammar.forced[0]
            self.sampler.remember(token)
        else:
            allowed = None if grammar is None else grammar.allowed()
            token = self.sampler.sample(logits, self.num_new_tokens, allowed)
        if scores is not None:
            self.unreported_logprobs.append(token_logprobs(scores, token, wanted or 0))
        self.append(token)
        if grammar is not None and self.end is None:
            grammar.accept(token)

    def attempt(self, work: Callable[..., object], *args: object) -> None:
        """Do this sequence's own part of a step. Whatever goes wrong there ends it, and no other sequence."""
        try:
            work(*args)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a library in Rust is not an Exception
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End with an error, to be called where it was caught."""
        self.end, self.error = ("error", None), request_error(error)

    def _end_ids(self) -> NDArray[np.int64]:
        """Ids that are allowed wherever a grammar's text is complete."""
        constraint, ids = self.request.constraint, set(self.request.params.stop_token_ids)
        if not self.request.params.ignore_eos:
            ids |= self.request.stop_ids if constraint is None else self.request.stop_ids - constraint.own_ends
        return np.fromiter(ids, np.int64)

    def report(self) -> GenerationOutput:
        """Everything new since the last output."""
        if self.error is not None:
            return GenerationOutput(self.request_id, finish_reason="error", error=self.error)
        scored = not self.reported and self.request.params.prompt_logprobs is not None
        reason, stop_token = self.end or (None, None)
        output = GenerationOutput(
            request_id=self.request_id,
            token_ids=tuple(self.unreported),
            finish_reason=reason,
            stop_token_id=stop_token,
            logprobs=tuple(self.unreported_logprobs),
            prompt_logprobs=self._text_logprobs() if scored else None,
            num_cached_tokens=self.num_cached,
            embedding=self.embedding,
        )
        self.unreported, self.unreported_logprobs, self.reported = [], [], True
        return output

    def _text_logprobs(self) -> tuple[TokenLogprobs | None, ...]:
        """The prompt's log-probabilities, without those of placeholders: these say nothing."""
        found = self.prompt_logprobs.copy()
        for span in self.spans:
            for row in range(span.start, min(span.end, len(found))):
                found[row] = None
        return tuple(found[self.num_virtual :])


def prompt_positions(prompt: Prompt) -> NDArray[np.int32] | None:
    """Position of each row of a prompt, int32 [rows]; None if it equals the row number, as in text."""
    if all(span.offsets is None for span in prompt.spans):
        return None
    steps = np.ones(len(prompt), np.int32)  # from the previous row
    steps[0] = 0
    for span in prompt.spans:
        if span.offsets is not None:
            steps[span.start + 1 : span.end] = np.diff(span.offsets)
    return np.cumsum(steps, dtype=np.int32)

"""The part that runs inside vLLM's workers: a logits processor that masks what may not be sampled.

It bans ids without a token for every request, stop ids before `min_tokens`, and everything that a request's grammar
does not allow. Grammars arrive as their description and are compiled here, with the tokenizer of the model's folder;
they were tried and compiled in the front process before.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from glm4.backends.vllm.sampling import ARGUMENT, RowRules, Signals, read_rules
from glm4.engine.grammar import GrammarState
from glm4.errors import Glm4Error
from glm4.grammars.matcher import Grammar, panics_as
from glm4.grammars.vocabulary import GrammarVocabulary
from glm4.system.helper import call_with_stack
from glm4.tokenizer import load_tokenizer

log = logging.getLogger("glm4.vllm")

_KEPT = 16  # compiled grammars
_STACK_BYTES = 16 << 20  # for compiling one, as in the front process


class Glm4LogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Masks logits, in place. See vLLM's interface for the order of calls."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        ours = vllm_config.additional_config[ARGUMENT]
        self._banned = torch.tensor(ours["banned_ids"], dtype=torch.int64, device=device)
        self._grammars = _Grammars(Path(vllm_config.model_config.model), ours["vocab_size"])
        self._signals = Signals(**ours["signals"]) if ours["signals"] else None
        self._most_seconds = None if _is_first_rank() else float("inf")
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        """False: it changes what a greedy request gets."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the batch: requests that left, came, or changed places."""
        if batch_update is None:
            return
        rows = self._rows
        for index in batch_update.removed:
            rows.pop(index, None)
        for index, params, _, output_ids in batch_update.added:
            rules = read_rules(params.extra_args)
            rows.pop(index, None)
            if rules is not None:
                rows[index] = _Row(rules, output_ids, self._grammars, self._most_seconds)
        for first, second, direction in batch_update.moved:
            moving, other = rows.pop(first, None), rows.pop(second, None)
            if moving is not None:
                rows[second] = moving
            if other is not None and direction == MoveDirectionality.SWAP:
                rows[first] = other

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask logits, float32 [batch, vocab_size]."""
        if len(self._banned):
            logits.index_fill_(1, self._banned, -torch.inf)
        for index, row in self._rows.items():
            row.restrict(logits[index], self._signals)
        return logits


class _Grammars:
    """Compiled grammars, the latest ones kept."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self._folder = folder
        self._vocab_size = vocab_size
        self._vocabularies: dict[int, GrammarVocabulary] = {}
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()

    def get(self, text: str, end_id: int) -> Grammar:
        if text not in self._compiled:
            if end_id not in self._vocabularies:
                tokenizer = load_tokenizer(self._folder)
                self._vocabularies[end_id] = GrammarVocabulary(tokenizer, self._vocab_size, end_id)
            vocabulary = self._vocabularies[end_id]
            self._compiled[text] = call_with_stack(lambda: vocabulary.compile(text, "", "grammar"), _STACK_BYTES)
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(text)
        return self._compiled[text]


class _Row:
    """The rules of one running request.

    Args:
        output_ids: its tokens so far; vLLM appends to this list. A request that was preempted comes with some.
        most_seconds: as `GrammarState` takes it.
    """

    def __init__(
        self, rules: RowRules, output_ids: Sequence[int], grammars: _Grammars, most_seconds: float | None
    ) -> None:
        self._rules = rules
        self._output_ids = output_ids
        self._stop_ids = np.array(rules.all_stop_ids, np.int64)
        self._followed = 0
        self._grammar: GrammarState | None = None
        if rules.grammar:
            try:
                with panics_as(Glm4Error("the grammar library failed")):
                    compiled = grammars.get(rules.grammar, rules.end_id)
                    self._grammar = GrammarState(compiled, np.array(rules.end_ids, np.int64), most_seconds)
            except Exception:
                self._fail()

    def restrict(self, logits: torch.Tensor, signals: Signals | None) -> None:
        """Mask one row of logits, float32 [vocab_size], in place."""
        if self._rules.scale != 1.0:
            logits.div_(self._rules.scale)
        early = len(self._output_ids) < self._rules.min_tokens
        if not self._rules.grammar:
            if early and len(self._stop_ids):
                logits[torch.from_numpy(self._stop_ids).to(logits.device)] = -torch.inf
            return
        only, allowed = self._next(signals)
        if only is not None:
            logits.fill_(-torch.inf)
            logits[only] = 0.0
        elif allowed is not None:
            if early and np.count_nonzero(allowed) > np.count_nonzero(allowed[self._stop_ids]):
                allowed[self._stop_ids] = False
            logits.masked_fill_(torch.from_numpy(~allowed).to(logits.device), -torch.inf)

    def _next(self, signals: Signals | None) -> tuple[int | None, NDArray[np.bool_] | None]:
        """The only token that can come next, or a mask of those that may."""
        assert signals is not None  # noqa: S101 (requests with grammars are refused without)
        try:
            with panics_as(Glm4Error("the grammar library failed")):
                if self._grammar is not None:
                    for token in self._output_ids[self._followed :]:
                        self._grammar.accept(token)
                        self._followed += 1
                    if self._grammar.forced:
                        return self._grammar.forced[0], None
                    if self._grammar.finished():
                        return signals.complete, None
                    return None, self._grammar.allowed()
        except Exception:
            self._fail()
        return signals.stuck, None

    def _fail(self) -> None:
        """An error of one request must not end the engine for all."""
        log.warning("a grammar cannot be followed any further", exc_info=True)
        self._grammar = None


def _is_first_rank() -> bool:
    """Whether this worker's tokens are the ones that count.

    All ranks sample the same token from the same logits. Only the first may give up on a grammar that is slow: ranks
    that disagree would compute the next token from different ones.
    """
    from vllm.distributed.parallel_state import get_tp_group, model_parallel_is_initialized

    return not model_parallel_is_initialized() or get_tp_group().rank_in_group == 0

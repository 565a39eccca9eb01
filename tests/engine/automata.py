"""Grammars for engine tests that are small enough to be checked by hand: finite automata over token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glm4.errors import GrammarError


@dataclass(frozen=True)
class Automaton:
    """A `TokenConstraint`: state → token → next state; state 0 is the first."""

    vocab_size: int
    edges: Mapping[int, Mapping[int, int]]
    accepting: frozenset[int]
    own_ends: frozenset[int] = frozenset()

    def start(self) -> Walk:
        return Walk(self)

    def follow(self, ids: Sequence[int]) -> int | None:
        """The state after these ids; None if they do not fit."""
        state: int | None = 0
        for token in ids:
            state = None if state is None else self.edges.get(state, {}).get(token)
        return state

    def accepts(self, ids: Sequence[int]) -> bool:
        return self.follow(ids) in self.accepting


class Walk:
    """Its `TokenMatcher`."""

    def __init__(self, automaton: Automaton) -> None:
        self.automaton = automaton
        self.states = [0]

    @property
    def _edges(self) -> Mapping[int, int]:
        return self.automaton.edges.get(self.states[-1], {})

    def accept(self, token_ids: Sequence[int]) -> int:
        for count, token in enumerate(token_ids):
            if token not in self._edges:
                return count
            self.states.append(self._edges[token])
        return len(token_ids)

    def forced(self) -> list[int]:
        tokens: list[int] = []
        state = self.states[-1]
        while len(edges := self.automaton.edges.get(state, {})) == 1 and state not in self.automaton.accepting:
            ((token, state),) = edges.items()
            tokens.append(token)
        return tokens

    def allowed(self) -> NDArray[np.bool_]:
        mask = np.zeros(self.automaton.vocab_size, np.bool_)
        mask[list(self._edges)] = True
        return mask

    def is_complete(self) -> bool:
        return self.states[-1] in self.automaton.accepting

    def is_finished(self) -> bool:
        return self.is_complete() and not self._edges


def word(ids: Sequence[int], vocab_size: int) -> Automaton:
    """Exactly these ids."""
    return Automaton(vocab_size, {i: {token: i + 1} for i, token in enumerate(ids)}, frozenset([len(ids)]))


def random_automaton(seed: int, vocab_size: int, states: int = 12) -> Automaton:
    """States with one, few or many ways on, some of them accepting; from each, an accepting one can be reached."""
    rng = np.random.default_rng(seed)
    edges: dict[int, dict[int, int]] = {}
    for state in range(states):
        count = int(rng.choice([1, 1, 1, 2, 3, 40]))
        tokens = rng.choice(vocab_size, count, replace=False).tolist()
        edges[state] = {token: int(rng.integers(0, states)) for token in tokens}
        edges[state][tokens[0]] = state + 1
    edges[states] = {}
    accepting = frozenset([states, *(s for s in range(states) if rng.random() < 0.1)])
    return Automaton(vocab_size, edges, accepting)


@dataclass(frozen=True)
class Failing:
    """The same grammar, which turns out too complex after so many tokens."""

    automaton: Automaton
    after: int
    own_ends: frozenset[int] = frozenset()

    def start(self) -> Walk:
        after = self.after

        class FailingWalk(Walk):
            def accept(self, token_ids: Sequence[int]) -> int:
                if len(self.states) + len(token_ids) > after:
                    raise GrammarError("too complex")
                return super().accept(token_ids)

        return FailingWalk(self.automaton)

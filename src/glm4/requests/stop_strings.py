"""Stop strings found in streamed text, at a cost that grows with the new text only."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import lru_cache


class _Automaton:
    """Aho and Corasick's: a state is the longest end of the text so far that begins a stop string.

    Attributes:
        depth: characters of each state.
        match: length of the longest stop string that ends at each state; 0 if none does.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._fallback = [0]
        self.depth, self.match = [0], [0]
        for stop in stops:
            self.match[self._add(stop)] = len(stop)
        states = deque(self._next[0].values())
        while states:  # by depth, so that fallbacks, which are shorter, are complete
            state = states.popleft()
            self.match[state] = self.match[state] or self.match[self._fallback[state]]
            for character, child in self._next[state].items():
                self._fallback[child] = self.step(self._fallback[state], character)
                states.append(child)

    def _add(self, stop: str) -> int:
        state = 0
        for character in stop:
            known = self._next[state].get(character)
            if known is None:
                known = self._next[state][character] = len(self._next)
                self._next.append({})
                self._fallback.append(0)
                self.depth.append(self.depth[state] + 1)
                self.match.append(0)
            state = known
        return state

    def step(self, state: int, character: str) -> int:
        """The state after one more character; amortized, one or two look-ups."""
        while (found := self._next[state].get(character)) is None:
            if state == 0:
                return 0
            state = self._fallback[state]
        return found


_automaton = lru_cache(maxsize=64)(_Automaton)  # samples of a request share it, and so do requests of a client


class StopStringMatcher:
    """Finds stop strings across token boundaries, holding back text that may still become one."""

    def __init__(self, stops: Sequence[str], include_stop: bool) -> None:
        self._automaton = _automaton(tuple(stops)) if stops else None
        self._include = include_stop
        self._state = 0
        self._held = ""  # as many characters as the state has
        self.matched: str | None = None

    def push(self, text: str, *, active: bool = True) -> str:
        """Feed text; returns the part that may be shown. After a match it returns no more text.

        Of several stop strings that the new text completes, the one that begins first counts; of those, the longest.

        Args:
            active: False until `min_tokens` is reached: text passes through without matching, and cannot be the start
                of a later match.
        """
        automaton = self._automaton
        if self.matched is not None:
            return ""
        if automaton is None:
            return text
        if not active:
            shown, self._held, self._state = self._held + text, "", 0
            return shown
        state, first = self._state, len(self._held)
        found: tuple[int, int] | None = None  # where a stop string begins, minus its length
        for at, character in enumerate(text, first + 1):
            state = automaton.step(state, character)
            if length := automaton.match[state]:
                found = min(found or (at, 0), (at - length, -length))
        text = self._held + text
        if found is not None:
            begin, end = found[0], found[0] - found[1]
            self.matched, self._held = text[begin:end], ""
            return text[: end if self._include else begin]
        self._state, keep = state, automaton.depth[state]
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text still held back, at the end of the sample."""
        held, self._held, self._state = self._held, "", 0
        return held

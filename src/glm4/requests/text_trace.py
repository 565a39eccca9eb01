"""`TextTrace`: which tokens wrote the visible text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, groupby
from operator import itemgetter

from glm4.chat.events import Event, TextDelta
from glm4.logprobs import TextToken, TokenLogprobs


class TextTrace:
    """Gives the visible text of one sample its tokens.

    Text and tokens do not have the same borders: a character may take several tokens, and stop strings and parsers cut
    text inside a token. Text is therefore held back up to the last border that both have, so that in a stream the
    tokens of every delta are exactly its text.
    """

    def __init__(self) -> None:
        self._writers: list[tuple[int, ...]] = []  # of each character of the text: the token of each of its bytes
        self._bytes = bytearray()  # that are no character yet
        self._byte_writers: list[int] = []
        self._held: list[tuple[str, int]] = []  # visible characters, each with its place in the text

    def add(self, token: int, written: bytes, text: str) -> None:
        """Take in a token.

        Args:
            token: its number in the sample.
            written: the bytes it adds to the text.
            text: the characters that are certain now.
        """
        self._bytes += written
        self._byte_writers += [token] * len(written)
        for character in text:
            encoded = character.encode()
            if self._bytes.startswith(encoded):
                size = len(encoded)
                writers = self._byte_writers[:size]
            else:  # U+FFFD instead of up to three bytes
                size = _broken(self._bytes)
                writers = [self._byte_writers[min(at, size - 1)] for at in range(len(encoded))]
            self._writers.append(tuple(writers))
            del self._bytes[:size], self._byte_writers[:size]

    def attach(self, events: Sequence[Event], logprobs: Sequence[TokenLogprobs], *, final: bool) -> list[Event]:
        """The events with their tokens; the text of an unfinished token comes with later ones.

        Args:
            logprobs: of the sample's tokens so far.
            final: no more events follow.
        """
        result: list[Event] = []
        for event in events:
            if isinstance(event, TextDelta):
                self._held += zip(event.text, chain.from_iterable(event.source), strict=True)
                result += self._release(self._border(), logprobs)
            else:
                result += [*self._release(len(self._held), logprobs), event]
        return result + self._release(len(self._held), logprobs) if final else result

    def _release(self, count: int, logprobs: Sequence[TokenLogprobs]) -> list[Event]:
        if not count:
            return []
        shown, self._held = self._held[:count], self._held[count:]
        # zip ends with the shorter: a line break may stand in the place of a longer character.
        pairs = [pair for one, at in shown for pair in zip(self._of(at), one.encode(), strict=False)]
        tokens = tuple(
            TextToken(logprobs[token], bytes(byte for _, byte in group))
            for token, group in groupby(pairs, key=itemgetter(0))
        )
        return [TextDelta("".join(one for one, _ in shown), tokens=tokens)]

    def _border(self) -> int:
        """How many of the held characters end with a finished token."""
        count = len(self._held)
        last = self._held[-1][1]
        following = self._writers[last + 1] if last + 1 < len(self._writers) else self._byte_writers
        if not following or following[0] != self._of(last)[-1]:
            return count
        while count > 1 and self._of(self._held[count - 1][1])[0] == self._of(self._held[count - 2][1])[-1]:
            count -= 1
        return count - 1

    def _of(self, place: int) -> tuple[int, ...]:
        """Writers of a character. One that stands before the text (in a prefill) is the first's."""
        return self._writers[max(0, place)]


def _broken(data: bytearray) -> int:
    """Length of the bytes at the beginning that are one U+FFFD together."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.end
    raise AssertionError("whole characters were shown as U+FFFD")

"""`PictureEncoder`: where requests with pictures wait until the vision tower has turned these into rows."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakValueDictionary

import numpy as np

from glm4.engine.sequence import Rows, Sequence
from glm4.errors import InvalidRequestError
from glm4.model.config import VisionConfig
from glm4.model.vision import Encoding, VisionTower
from glm4.prompt import Prompt

_Key = tuple[str, str]
"""The salt of a request, as for pages of the prefix cache, and a picture's digest."""


class PictureEncoder:
    """Encodes one picture at a time, in pieces, in the order in which requests came; a picture of several only once.

    Rows that a sequence has are found for others too. Beyond that the latest are kept, as far as they fit. What queued
    sequences have in advance is limited by the same number of bytes.

    Args:
        max_nbytes: of the rows kept; 0 keeps none.

    Attributes:
        waiting: sequences that still lack rows, oldest first.
        num_encoded: pictures encoded so far.
    """

    def __init__(self, tower: VisionTower, max_nbytes: int) -> None:
        self._tower = tower
        self._max_nbytes = max_nbytes
        self.waiting: list[Sequence] = []
        self.num_encoded = 0
        self._current: tuple[_Key, Encoding] | None = None
        self._known: WeakValueDictionary[_Key, Rows] = WeakValueDictionary()
        self._kept: dict[_Key, Rows] = {}  # least recently used first

    @property
    def progress(self) -> float | None:
        """Fraction of the current picture that is done; None if there is none."""
        current = self._current
        return None if current is None else current[1].progress

    def provide(self, sequence: Sequence) -> None:
        """Give a sequence the rows that are known of its pictures."""
        for digest in sequence.lacking_pictures():
            key = sequence.request.cache_salt, digest
            rows = self._known.get(key)
            if rows is not None:
                sequence.picture_rows[digest] = rows
                self._keep(key, rows)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence that lacks rows wait for them."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence; a picture for which nobody waits any longer is not encoded further."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            if self._current is not None and not self._waiting_for(self._current[0]):
                self._current = None

    def has_work(self, queued: Iterable[Sequence]) -> bool:
        """True if there is something to encode now.

        No picture is begun while the rows of `queued` sequences leave no room for it.
        """
        if self._current is not None or not self.waiting:
            return self._current is not None
        ahead = {id(rows): rows.nbytes for sequence in queued for rows in sequence.picture_rows.values()}
        text = self._tower.text_config
        nbytes = self._tower.config.num_rows * text.hidden_size * np.dtype(np.float32).itemsize
        return not ahead or sum(ahead.values()) + nbytes <= self._max_nbytes

    def advance(self, max_rows: int) -> list[Sequence]:
        """Encode for about as long as the text model takes for `max_rows` rows; at least a little.

        Returns:
            Sequences that do not wait any longer: they lack nothing, or ended because a picture could not be encoded.
        """
        # If this is interrupted, the picture is begun again: a piece that was computed in part cannot be repeated.
        current, self._current = self._current, None
        key = self._next_key() if current is None else current[0]
        concerned = self._waiting_for(key)
        try:
            encoding = self._start(key, concerned[0]) if current is None else current[1]
            encoding.advance(max_rows)
        except Exception as error:
            for sequence in concerned:
                sequence.fail(error)
        else:
            if encoding.result is None:
                self._current = key, encoding
                return []
            self._finish(key, encoding.result, concerned)
        done = [sequence for sequence in concerned if sequence.end is not None or not sequence.lacking_pictures()]
        self.waiting = [sequence for sequence in self.waiting if sequence not in done]
        return done

    def _next_key(self) -> _Key:
        first = self.waiting[0]
        return first.request.cache_salt, first.lacking_pictures()[0]

    def _waiting_for(self, key: _Key) -> list[Sequence]:
        salt, digest = key
        return [s for s in self.waiting if s.request.cache_salt == salt and digest in s.lacking_pictures()]

    def _start(self, key: _Key, sequence: Sequence) -> Encoding:
        return self._tower.start(sequence.request.prompt.pixels[key[1]])

    def _finish(self, key: _Key, rows: Rows, concerned: Iterable[Sequence]) -> None:
        rows.flags.writeable = False
        self.num_encoded += 1
        for sequence in concerned:
            sequence.picture_rows[key[1]] = rows
        self._known[key] = rows
        self._keep(key, rows)

    def _keep(self, key: _Key, rows: Rows) -> None:
        """Keep rows as the most recently used ones, and as many others as fit beside them."""
        self._kept.pop(key, None)
        self._kept[key] = rows
        total = sum(one.nbytes for one in self._kept.values())
        while total > self._max_nbytes:
            total -= self._kept.pop(next(iter(self._kept))).nbytes


def check_pictures(prompt: Prompt, vision: VisionConfig | None) -> None:
    """Check that a model can take the media of a prompt.

    Raises:
        InvalidRequestError: the model has no tower; a span is not one of a picture's rows; its pixels are missing or
            are not what the tower takes.
    """
    for span in prompt.spans:
        if vision is None or span.kind != "image":
            takes = "text only" if vision is None else "text and pictures"
            raise InvalidRequestError(f"this model takes {takes}, and the prompt has an {span.kind}", param="prompt")
        if span.length != vision.num_rows:
            raise InvalidRequestError(
                f"a picture has {vision.num_rows} rows in this model's prompts, not {span.length}", param="prompt"
            )
        pixels = prompt.pixels.get(span.digest)
        if pixels is None:
            raise InvalidRequestError(
                f"the prompt has no pixels for its picture {span.digest!r}; put them in Prompt.pixels", param="prompt"
            )
        shape = (vision.image_size, vision.image_size, vision.in_channels)
        if not isinstance(pixels, np.ndarray) or pixels.shape != shape or pixels.dtype != np.uint8:
            what = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
            raise InvalidRequestError(
                f"the pixels of a picture must be a NumPy array uint8 {list(shape)}, not {what}", param="prompt"
            )

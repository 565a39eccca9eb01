"""`Prompt`: the model's input as token ids, and which of them stand for images or audio.

A leaf module: renderers build prompts, the engine runs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from glm4.errors import InvalidRequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


VIRTUAL_ID = -1
"""In place of the id of a row that is not of a token but of an adapter's prefix."""


@dataclass(frozen=True)
class MediaSpan:
    """Adjacent rows of a prompt that come from one image or audio clip. Their ids are placeholders.

    Attributes:
        start: the first row.
        length: how many rows, at least 1.
        kind: "image" or "audio".
        digest: of the file. Rows with equal ids but different digests have different keys and values, so they do not
            share cache pages.
        offsets: position of each row, counted from the position of the first; None counts up by one, as in text. Starts
            at 0 and grows by 0 or 1 per row. Rows after the span continue from the last row's position: GLM-4V gives
            all patches of an image the same position.
    """

    start: int
    length: int
    kind: str
    digest: str
    offsets: tuple[int, ...] | None = None

    @property
    def end(self) -> int:
        """One past the last row."""
        return self.start + self.length


@dataclass(frozen=True)
class ImageLayout:
    """How a picture stands in the prompts of a model that sees.

    Attributes:
        size: pixels of each side of the picture that the model takes.
        num_rows: rows of a picture, at least 3: that of the begin token, those of its content, that of the end token.
        begin_id, end_id: ids of the first and the last row.
        most: pictures per conversation, as the model was trained; None does not limit them.
    """

    size: int
    num_rows: int
    begin_id: int
    end_id: int
    most: int | None = 1

    @property
    def nbytes(self) -> int:
        """Of a picture's pixels."""
        return 3 * self.size**2

    def span(self, start: int, digest: str) -> MediaSpan:
        """The rows of a picture that begins there; all rows of its content have one position."""
        return MediaSpan(start, self.num_rows, "image", digest, (0, *[1] * (self.num_rows - 2), 2))


@dataclass(frozen=True)
class Prompt:
    """Token ids, one per row of the model's input, and the spans among them that stand for media.

    Attributes:
        ids: must not be modified afterwards.
        spans: in order, without overlaps.
        pixels: digest of each image -> uint8 [size, size, 3], RGB, at the size the model takes; must not be modified.

    Raises:
        InvalidRequestError: a span is malformed or lies outside the ids.
    """

    ids: Sequence[int]
    spans: tuple[MediaSpan, ...] = ()
    pixels: Mapping[str, NDArray[np.uint8]] = field(
        default_factory=lambda: MappingProxyType({}), compare=False, repr=False
    )

    def __post_init__(self) -> None:
        end = 0
        for span in self.spans:
            if span.length < 1 or not end <= span.start <= len(self.ids) - span.length:
                raise InvalidRequestError("spans must lie inside the prompt, in order and apart", param="prompt")
            end = span.end
            if span.offsets is not None:
                steps = [after - before for before, after in zip(span.offsets, span.offsets[1:], strict=False)]
                if len(span.offsets) != span.length or span.offsets[0] != 0 or not set(steps) <= {0, 1}:
                    raise InvalidRequestError(
                        "a span has one offset per row; they begin at 0 and grow by 0 or 1", param="prompt"
                    )

    def __len__(self) -> int:
        return len(self.ids)

    def behind(self, count: int) -> Prompt:
        """The prompt behind that many rows of an adapter's virtual tokens, whose ids are `VIRTUAL_ID`."""
        if not count:
            return self
        spans = tuple(replace(span, start=span.start + count) for span in self.spans)
        return Prompt([*[VIRTUAL_ID] * count, *self.ids], spans, self.pixels)

    @property
    def short_ids(self) -> list[int]:
        """The ids with at most three of each span, as a chat template writes it: begin, content, end."""
        short: list[int] = []
        at = 0
        for span in self.spans:
            inner = span.start + 1
            short += [*self.ids[at:inner], *self.ids[inner : span.end - 1][:1]]
            at = max(inner, span.end - 1)
        return [*short, *self.ids[at:]]

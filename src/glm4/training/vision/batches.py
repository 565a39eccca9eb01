"""Batches with pictures: their pixels, where they stand, and the positions that they give to the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glm4.errors import InvalidRequestError
from glm4.requests.image_inputs import ImageInputs
from glm4.training.data.examples import TokenizedExample

Collate = Callable[[Sequence[TokenizedExample]], Mapping[str, Any]]


class PictureCollator:
    """Adds pictures to the batches that `collate` makes of examples.

    A batch gets what `VisionGlmModel.forward` takes: `pixel_values` uint8 [N, S, S, 3] and `picture_places` int64
    [N, 2], N being 0 if it has text only; `position_ids` are those of `picture_positions`.

    Files are decoded by `images`, as for the engine.
    """

    def __init__(self, collate: Collate, images: ImageInputs) -> None:
        self._collate, self._layout, self._decoder = collate, images.layout, images.decoder

    def __call__(self, examples: Sequence[TokenizedExample]) -> dict[str, Any]:
        """A batch; sequence i of it is example i.

        Raises:
            InvalidRequestError: a picture cannot be decoded, or was cut off; `.param` is the example's place.
        """
        batch = self._collate(examples)
        pixels, places = [], []
        positions = batch["position_ids"].clone()
        for index, example in enumerate(examples):
            self._check(example)
            for data, start in zip(example.images, example.image_starts, strict=True):
                pixels.append(self._decoder.decode(data, example.place))
                places.append((index, start))
            if example.images:
                found = picture_positions(positions.shape[1], example.image_starts, self._layout.num_rows)
                positions[index] = torch.from_numpy(found)
        shape = (0, self._layout.size, self._layout.size, 3)
        stacked = np.stack(pixels) if pixels else np.empty(shape, np.uint8)
        return {
            **batch,
            "position_ids": positions,
            "pixel_values": torch.from_numpy(stacked),
            "picture_places": torch.tensor(places, dtype=torch.int64).view(-1, 2),
        }

    def _check(self, example: TokenizedExample) -> None:
        if example.image_starts and example.image_starts[-1] + self._layout.num_rows > len(example):
            raise InvalidRequestError(
                f"{example.place}: the picture's {self._layout.num_rows} rows do not fit into the sample's"
                f" {len(example)} tokens; raise max_length",
                param=example.place or "max_length",
            )


def picture_positions(length: int, starts: Sequence[int], num_rows: int) -> NDArray[np.int64]:
    """Positions of the rows of a sequence: int64 [length]. All patches of a picture share one.

    Args:
        starts: rows at which pictures begin, each of `num_rows`: begin, patches, end.
    """
    steps = np.ones(length, np.int64)
    for start in starts:
        steps[start + 2 : start + num_rows - 1] = 0  # patches after the first
    return np.cumsum(steps) - 1

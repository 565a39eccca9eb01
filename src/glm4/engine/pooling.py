"""`MeanPool`: an embedding of a prompt, accumulated while it is computed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from glm4.errors import Glm4Error


class MeanPool:
    """The mean of the hidden states of a prompt's positions, scaled to length 1."""

    def __init__(self) -> None:
        self._sum: NDArray[np.float64] | None = None
        self._count = 0

    def add(self, first: int, hidden: NDArray[np.float32]) -> None:
        """Add the hidden states (after the final norm) [T, hidden_size] of positions first, first + 1, …

        Positions that were already added (a preempted prompt is computed again) have no effect: their rows are
        bit-identical.
        """
        if self._sum is None:
            self._sum = np.zeros(hidden.shape[1], np.float64)
        # Row by row, so the order of additions does not depend on how the prompt was split into chunks.
        for row in hidden[max(0, self._count - first) :]:
            self._sum += row
            self._count += 1

    def result(self) -> NDArray[np.float32]:
        """The embedding: float32 [hidden_size].

        Raises:
            Glm4Error: the mean of the hidden states is NaN, infinite or zero.
        """
        mean, length = self._mean()
        if not self.has_direction:
            raise Glm4Error("the model produced no finite hidden states; its weights are damaged or not a model")
        return (mean / length).astype(np.float32)

    @property
    def has_direction(self) -> bool:
        """False if there is no result: the mean is zero or not finite."""
        return 0.0 < self._mean()[1] < np.inf

    def _mean(self) -> tuple[NDArray[np.float64], float]:
        mean = np.zeros(1) if self._sum is None else self._sum / max(1, self._count)
        return mean, float(np.linalg.norm(mean))

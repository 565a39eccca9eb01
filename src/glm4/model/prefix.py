"""A learned prefix (P-Tuning v2) at inference: keys and values of virtual tokens that precede a text in every layer.

They are not computed from ids but written into the cache as they are, so a sequence that has them costs what one whose
prompt is longer by as many cached tokens costs. Text begins at the position after the last virtual token.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from glm4.model.lora import LoraAdapter, next_number


@dataclass(frozen=True, eq=False)
class PrefixAdapter:
    """An adapter in memory.

    Attributes:
        keys: float32 [layers, virtual tokens, KV heads, head_dim], as they are after the rotary embedding, in our order
            of channels.
        values: likewise.
        path: the folder it was loaded from.
        number: unique among all adapters in this process, see `LoraAdapter`.
    """

    rank: ClassVar[int] = 0

    keys: NDArray[np.float32]
    values: NDArray[np.float32]
    path: str = ""
    number: int = field(default_factory=next_number)

    @property
    def num_virtual_tokens(self) -> int:
        """Rows of the cache that it takes in every sequence."""
        return int(self.keys.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    @cached_property
    def digest(self) -> str:
        """SHA-256 of keys and values: the same for the same adapter, wherever it was loaded from."""
        found = hashlib.sha256(f"prefix {self.keys.shape}\n".encode())
        for array in (self.keys, self.values):
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()


Adapter = LoraAdapter | PrefixAdapter
"""What a sequence may be computed with."""

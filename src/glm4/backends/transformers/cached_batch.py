"""`CachedBatch`: sequences that share forward passes, with their keys and values in one left-padded cache."""

from __future__ import annotations

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from glm4.backends.transformers.lora import DeviceAdapter, DevicePrefix
from glm4.engine.sequence import Sequence


@dataclass(eq=False)
class Member:
    """A sequence from its admission to its end or preemption, and the adapter that it keeps until its end."""

    sequence: Sequence
    adapter: DeviceAdapter | DevicePrefix | None = None


@dataclass(eq=False)
class CachedBatch:
    """Members, and a cache with a row for each.

    Attributes:
        lengths: ids of each member that are in the cache; they end in its last column, and padding precedes them.
        cache: per layer keys and values [members, key/value heads, columns, head_dim]; without layers while empty.
    """

    members: list[Member]
    lengths: list[int]
    cache: Any = field(default_factory=DynamicCache)

    @classmethod
    def of(cls, member: Member) -> CachedBatch:
        """A member that begins, behind the virtual tokens of its adapter if it has any."""
        member.sequence.num_computed = member.sequence.num_virtual
        return cls([member], [member.sequence.num_virtual])

    def begin(self) -> None:
        """Before its first pass, put the virtual tokens of a member that begins into the cache."""
        if not self.cache.layers and isinstance(prefix := self.members[0].adapter, DevicePrefix):
            self.cache = prefix.cache()

    @property
    def num_columns(self) -> int:
        """Positions in the cache, padding included."""
        return max(self.lengths)

    def inputs(self, count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """The next `count` ids of each member, the mask of columns (None without padding), and positions."""
        ids = [m.sequence.ids[at : at + count] for m, at in zip(self.members, self.lengths, strict=True)]
        positions = torch.tensor(self.lengths, device=device)[:, None] + torch.arange(count, device=device)
        columns, mask = self.num_columns, None
        if min(self.lengths) < columns:
            padding = torch.tensor([columns - length for length in self.lengths], device=device)
            mask = (torch.arange(columns + count, device=device) >= padding[:, None]).long()
        return torch.tensor(ids, device=device), mask, positions

    def extended(self, count: int) -> None:
        """Note that a pass has added `count` ids of each member."""
        self.lengths = [length + count for length in self.lengths]

    def roll_back(self) -> None:
        """Drop what a pass that failed has added."""
        columns = self.num_columns
        if not columns:
            self.cache = DynamicCache()
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :columns], layer.values[:, :, :columns]

    def keep(self, members: AbstractSequence[Member]) -> CachedBatch:
        """Some of the members, in a cache of their own that is as long as they need."""
        if len(members) == len(self.members):
            return self
        rows = [self.members.index(member) for member in members]
        made = CachedBatch(list(members), [self.lengths[row] for row in rows])
        first = self.num_columns - made.num_columns
        for number, layer in enumerate(self.cache.layers):
            index = torch.tensor(rows, device=layer.keys.device)
            keys, values = (part[:, :, first:].index_select(0, index) for part in (layer.keys, layer.values))
            made.cache.update(keys, values, number)
        return made


def joined(batches: AbstractSequence[CachedBatch]) -> CachedBatch:
    """The members of all batches in one. Layer by layer, their own caches are emptied."""
    if len(batches) == 1:
        return batches[0]
    members = [member for batch in batches for member in batch.members]
    made = CachedBatch(members, [length for batch in batches for length in batch.lengths])
    for number in range(len(batches[0].cache.layers)):
        layers = [batch.cache.layers[number] for batch in batches]
        keys = torch.cat([_padded(layer.keys, made.num_columns) for layer in layers])
        values = torch.cat([_padded(layer.values, made.num_columns) for layer in layers])
        made.cache.update(keys, values, number)
        for layer in layers:
            layer.keys = layer.values = None
    return made


def _padded(part: torch.Tensor, columns: int) -> torch.Tensor:
    """Zeros in front, to that many columns."""
    return torch.nn.functional.pad(part, (0, 0, columns - part.shape[2], 0))

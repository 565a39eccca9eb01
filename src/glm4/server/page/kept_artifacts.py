"""`Artifacts`: documents that frames of the page show, kept in memory for a while."""

from __future__ import annotations

from collections import OrderedDict

from glm4.agent.sessions import new_id

MOST_OF_ONE = 64
MOST_OF_ONE_NBYTES = 16 << 20
MAX_ALL_NBYTES = 64 << 20


class Artifacts:
    """The artifacts of one server, in memory: the ones of each owner that were used last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()  # owner and id → document
        self._nbytes = 0

    def keep(self, owner: str, document: bytes) -> str:
        """Keep a document, and forget older ones if there are too many; returns its id."""
        key = (owner, new_id())
        self._kept[key] = document
        self._nbytes += len(document)
        own = [one for one in self._kept if one[0] == owner]
        nbytes = sum(len(self._kept[one]) for one in own)
        while len(own) > MOST_OF_ONE or nbytes > MOST_OF_ONE_NBYTES:
            nbytes -= len(self._kept[own[0]])
            self._forget(own.pop(0))
        while self._nbytes > MAX_ALL_NBYTES:
            self._forget(next(iter(self._kept)))
        return key[1]

    def find(self, owner: str, name: str) -> bytes | None:
        """A document of this owner."""
        if (owner, name) in self._kept:
            self._kept.move_to_end((owner, name))
        return self._kept.get((owner, name))

    def _forget(self, key: tuple[str, str]) -> None:
        self._nbytes -= len(self._kept.pop(key))

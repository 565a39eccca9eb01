"""`AdapterTable`: the adapters an engine knows by name."""

from __future__ import annotations

import threading
from typing import Generic, Protocol, TypeVar

from glm4.errors import InvalidRequestError, OutOfMemoryError

MAX_NAME_LENGTH = 256


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Adapter = TypeVar("Adapter", bound=_Sized)


class AdapterTable(Generic[Adapter]):
    """Adapters by name, limited in number and bytes. Safe to use from any thread while another one steps the engine.

    A request keeps its adapter from the moment it is queued, so removing a name rejects new requests but lets waiting
    and running ones finish; the adapter's memory is freed with the last of them.
    """

    def __init__(self, max_adapters: int, max_nbytes: int) -> None:
        self._max_adapters = max_adapters
        self._max_nbytes = max_nbytes
        self._adapters: dict[str, Adapter] = {}
        self._lock = threading.Lock()

    def room_for(self, name: str) -> int:
        """Bytes that an adapter of that name may use.

        Raises:
            InvalidRequestError: the name is unusable or taken, or the maximum number of adapters is loaded.
        """
        if not 1 <= len(name) <= MAX_NAME_LENGTH or not name.isprintable():
            raise InvalidRequestError(
                f"an adapter's name must be 1 to {MAX_NAME_LENGTH} printable characters", param="name"
            )
        if name in self._adapters:
            raise InvalidRequestError(f"an adapter {name!r} is loaded already; unload it first", param="name")
        if len(self._adapters) >= self._max_adapters:
            raise InvalidRequestError(
                f"{self._max_adapters} adapters are loaded, as many as may be; unload one first", param="name"
            )
        return self._max_nbytes - sum(adapter.nbytes for adapter in list(self._adapters.values()))

    def add(self, name: str, adapter: Adapter) -> None:
        """Make an adapter available under a name.

        Raises:
            InvalidRequestError: as `room_for`.
            OutOfMemoryError: all adapters together would exceed the memory limit.
        """
        with self._lock:
            if adapter.nbytes > self.room_for(name):
                raise OutOfMemoryError(f"no memory is left for the adapter {name!r}; unload another one")
            self._adapters[name] = adapter

    def remove(self, name: str) -> None:
        """Reject the name from now on.

        Raises:
            InvalidRequestError: there is no such adapter.
        """
        with self._lock:
            self.get(name)
            del self._adapters[name]

    def get(self, name: str) -> Adapter:
        """The adapter with that name.

        Raises:
            InvalidRequestError: there is none; `.param` is "model", the field that names it in a request.
        """
        try:
            return self._adapters[name]
        except KeyError:
            raise InvalidRequestError(f"there is no adapter {name!r}; load it first", param="model") from None

    def items(self) -> list[tuple[str, Adapter]]:
        """Names and adapters in the order they were loaded."""
        return list(self._adapters.items())

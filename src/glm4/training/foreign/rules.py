"""How a key of another tool is understood: as a field here, as harmless, or not at all."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glm4.errors import InvalidRequestError, shown
from glm4.training.config import DataConfig, LoraConfig, PrefixConfig, TrainingConfig

Convert = Callable[[Any], Any]


class NotDoneError(Exception):
    """A key means something that is not done here; the message is the reason."""


@dataclass
class Draft:
    """A configuration being read.

    Attributes:
        tool: whose it is.
        raw: its keys.
        fields: of `TrainingConfig`; a field of a group has its group and a dot in front.
        notes: what a user should know of keys that were accepted.
        most: rows of each data set that are read; 0 reads all.
    """

    tool: str
    raw: Mapping[str, Any]
    fields: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    most: int = 0

    def config(self) -> TrainingConfig:
        """The configuration so far."""
        groups: dict[str, dict[str, Any]] = {"": {}, "data": {}, "lora": {}, "prefix": {}}
        for name, value in self.fields.items():
            group, _, own = name.rpartition(".")
            groups[group][own] = value
        return TrainingConfig(
            data=DataConfig(**groups["data"]),
            lora=LoraConfig(**groups["lora"]),
            prefix=PrefixConfig(**groups["prefix"]),
            **groups[""],
        )


Rule = Callable[[Draft, str, Any], None]


def same(field_name: str, convert: Convert) -> Rule:
    """The key is a field of ours."""

    def rule(draft: Draft, key: str, value: Any) -> None:
        if value is not None:
            draft.fields[field_name] = convert(value)

    return rule


def noted(reason: str, *silent: Any) -> Rule:
    """The key does no harm; a user is told the reason, unless the value asks for nothing."""

    def rule(draft: Draft, key: str, value: Any) -> None:
        if not _is_among(value, (None, False, "", "none", *silent)):
            draft.notes.append(f"{key}: {reason}")

    return rule


def refused(reason: str, *neutral: Any) -> Rule:
    """The key means something that is not done here, unless its value is one of the neutral ones, null or false."""

    def rule(draft: Draft, key: str, value: Any) -> None:
        if not _is_among(value, (None, False, "", [], *neutral)):
            raise NotDoneError(reason)

    return rule


def chosen(field_name: str, values: Mapping[Any, Any], others: Mapping[Any, str] | None = None) -> Rule:
    """The key is a field of ours whose values have other names; `others` are values that are not done, with reasons."""

    def rule(draft: Draft, key: str, value: Any) -> None:
        if value is None:
            return
        plain = value.strip() if isinstance(value, str) else value
        if plain not in values:
            known = ", ".join(str(name) for name in values)
            raise NotDoneError((others or {}).get(plain, f"{shown(value)} is not done here; {known} would be"))
        draft.fields[field_name] = values[plain]

    return rule


def read_keys(
    draft: Draft, rules: Mapping[str, Rule], prefixes: Mapping[str, Rule], defaults: Mapping[str, Any]
) -> None:
    """Apply the rule of every key, and those of the tool's defaults that differ from ours.

    Args:
        rules: by key.
        prefixes: rules of all keys that begin so and have none of their own.
        defaults: values of keys that the file leaves out.

    Raises:
        InvalidRequestError: keys are unknown, malformed or mean something that is not done; all of them are named.
    """
    problems: list[str] = []
    given = {key: defaults.get(key) if value is None else value for key, value in draft.raw.items()}
    for key, value in {**defaults, **given}.items():
        rule = rules.get(key) or next((rule for start, rule in prefixes.items() if key.startswith(start)), None)
        if rule is None:
            near = difflib.get_close_matches(str(key), rules, n=1)
            problems.append(f"{key}: unknown" + (f"; did you mean {near[0]}?" if near else ""))
            continue
        try:
            rule(draft, key, value)
        except (NotDoneError, ValueError) as error:
            problems.append(f"{key}: {error}")
        except TypeError:  # a list or mapping where a plain value is looked up
            problems.append(f"{key}: cannot be {shown(value)}")
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise InvalidRequestError(
            f"this {draft.tool} configuration cannot be followed:\n{listed}\n"
            "Change or remove these keys, or write the configuration in glm4's own form"
        )


def text(value: Any) -> str:
    """A text."""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"must be a text, not {shown(value)}")


def number(value: Any) -> float:
    """A number. YAML reads 1e-4 as a text."""
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            found = float(value)
        except (ValueError, OverflowError):
            found = math.nan
        if math.isfinite(found):
            return found
    raise ValueError(f"must be a number, not {shown(value)}")


def whole(value: Any) -> int:
    """A whole number."""
    found = number(value)
    if found != int(found):
        raise ValueError(f"must be a whole number, not {shown(value)}")
    return int(found)


def flag(value: Any) -> bool:
    """True or false, also as the words that command lines have."""
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    found = words.get(str(value).strip().lower())
    if found is None:
        raise ValueError(f"must be true or false, not {shown(value)}")
    return found


def negated(value: Any) -> bool:
    """The opposite."""
    return not flag(value)


def projector(value: Any) -> str:
    """What becomes of the projector, by whether it is frozen."""
    return "none" if flag(value) else "lora"


def names(value: Any) -> tuple[str, ...]:
    """Several texts: a list, or one text with commas."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, Sequence):
        return tuple(text(part) for part in value)
    raise ValueError(f"must be a list of texts, not {shown(value)}")


def _is_among(value: Any, others: Sequence[Any]) -> bool:
    """Membership in which 0 is false and the words of command lines count."""
    plain = value.strip().lower() if isinstance(value, str) else value
    plain = {"true": True, "false": False, "null": None}.get(plain, plain) if isinstance(plain, str) else plain
    return any(plain == other for other in others)

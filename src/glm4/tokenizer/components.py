"""What of a stranger's `tokenizer.json` the library gets to see: known normalizers and pre-tokenizers that stay small.

The library ends the process over some components (a damaged `Precompiled`), and a few that each double the text take
all memory at the first encoding. Split patterns with counts are compiled in a helper process first.

Not covered: a pattern on which the library's backtracking is slow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from glm4.errors import TokenizerError
from glm4.system.helper import Helper, HelperError, Limits

MAX_COMPONENTS = 16
_MAX_PATTERN = 4096
_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "Strip", "StripAccents", "Replace", "ByteLevel")
_PRE_TOKENIZERS = ("ByteLevel", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit", "UnicodeScripts")
# Digits in braces; `\p{1}` does not exist. Up to 99, few and unnested, is what published patterns have.
_COUNTS = re.compile(r"\{\d*,?(\d*)\}")
_MOST_COUNTS, _LARGEST_COUNT = 8, 99
_LIMITS = Limits(cpu_seconds=5, memory_bytes=256 << 20)


def check_components(shell: Mapping[str, Any], path: Path) -> None:
    """Refuse a tokenizer whose normalizer or pre-tokenizer could harm this process.

    Args:
        shell: a `tokenizer.json` with an empty model.
        path: its file, for errors.

    Raises:
        TokenizerError: an unknown component, too many, one that makes texts longer, or a pattern that is too large.
    """
    _check("normalizer", shell.get("normalizer"), "normalizers", _NORMALIZERS, path)
    _check("pre_tokenizer", shell.get("pre_tokenizer"), "pretokenizers", _PRE_TOKENIZERS, path)
    patterns = [
        _pattern(one)
        for role, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers"))
        for one in _flat(shell.get(role), inner)
    ]
    if any(_is_costly(pattern) for pattern in patterns):
        helper = Helper(_LIMITS)
        try:
            helper.call("glm4.tokenizer.trial:build", json.dumps(shell).encode())
        except (HelperError, OSError) as error:
            raise TokenizerError(f"{path}: the split pattern is too complex to compile ({error})") from None
        finally:
            helper.close()


def _check(role: str, given: object, inner: str, known: tuple[str, ...], path: Path) -> None:
    components = list(_flat(given, inner))
    if len(components) > MAX_COMPONENTS:
        raise TokenizerError(f"{path}: the {role} has more than {MAX_COMPONENTS} parts; such a file is not supported")
    kinds = [component.get("type") for component in components]
    for component in components:
        kind, pattern = component.get("type"), _pattern(component)
        if kind not in known:
            raise TokenizerError(
                f"{path}: a {role} of type {str(kind)[:40]!r} is not supported; byte-level BPE has {', '.join(known)}"
            )
        if len(pattern) > _MAX_PATTERN:
            raise TokenizerError(f"{path}: a pattern of the {role} has more than {_MAX_PATTERN} characters")
        if kind == "Replace" and (
            component.get("pattern") != {"String": pattern}
            or not pattern
            or len(str(component.get("content")).encode()) > len(pattern.encode())
        ):
            raise TokenizerError(f"{path}: a {role} that makes texts longer, or replaces a pattern, is not supported")
    if kinds.count("ByteLevel") > 1:
        raise TokenizerError(f"{path}: the {role} is ByteLevel twice; the file is damaged")


def _flat(given: object, inner: str, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The components of a possibly nested sequence; more than is allowed is not listed to the end."""
    if not isinstance(given, Mapping):
        if given is not None:
            yield {"type": type(given).__name__}
        return
    parts = given.get(inner)
    if given.get("type") != "Sequence" or not isinstance(parts, list) or depth > MAX_COMPONENTS:
        yield given
        return
    for part in parts[: MAX_COMPONENTS + 1]:
        yield from _flat(part, inner, depth + 1)


def _pattern(component: Mapping[str, Any]) -> str:
    pattern = component.get("pattern")
    return str(next(iter(pattern.values()), "")) if isinstance(pattern, Mapping) else ""


def _is_costly(pattern: str) -> bool:
    counts = _COUNTS.findall(pattern)
    return (
        len(counts) > _MOST_COUNTS or any(int(count[:9] or 0) > _LARGEST_COUNT for count in counts) or "){" in pattern
    )

"""`GrammarGuard`: which grammars may be compiled in this process.

The grammar library recurses along references and rules, about 8 KB of stack a level, and intersections of expressions
take exponential time and memory: a grammar can end the process, or never end. Small schemas of ordinary keywords are
known to be harmless (`is_plain`; a test tries the worst of them). All other grammars are compiled in a helper process
first, with the model's own vocabulary, and followed for a few random tokens, within limits of time, memory and stack.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glm4.errors import BusyError
from glm4.sampling_params import StructuredOutputs
from glm4.system.helper import Cause, Helper, HelperError, Limits

LIMITS = Limits(cpu_seconds=3, memory_bytes=768 << 20, stack_bytes=2 << 20)
STACK_BYTES = 16 << 20
"""For compiling in this process what has passed."""

PLAIN_CHARACTERS = 64_000
PLAIN_LEVELS = 200  # of a schema and all definitions in it, added: no chain of references is deeper
_PLAIN_EXPRESSION = 256  # characters; fuzzing found none below that takes more than 0.2 s
_PLAIN_CHOICES = 1_000
_PLAIN_KEYWORDS = frozenset(
    (
        "type", "properties", "required", "items", "additionalProperties", "enum", "const", "anyOf", "oneOf", "$ref",
        "$defs", "definitions", "minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum",
        "exclusiveMinimum", "exclusiveMaximum", "format", "pattern", "prefixItems", "$schema", "$id",
    )
)  # fmt: skip
# Merging these with keywords beside them copies what they refer to.
_ALONE = ("$ref", "anyOf", "oneOf")
# Other references lead to places that are not looked at, such as the values of an enum.
_DEFINITION = re.compile(r"#(/(\$defs|definitions)/[^/%]+)?")
_BESIDE = frozenset(("$defs", "definitions", "$schema", "$id"))
_REMEMBERED = 256
_MOST_WAITING, _MOST_IN_ATTACK = 16, 2
_PATIENCE = 10.0  # seconds
_ATTACK_SECONDS = 30.0  # after a grammar that broke a limit

_WHY: Mapping[Cause, str] = {
    "time": f"compiling it takes more than {LIMITS.cpu_seconds} seconds; make it simpler",
    "memory": f"compiling it takes more than {LIMITS.memory_bytes >> 20} MB; make it simpler",
    "depth": f"it nests too deeply: its references or rules form a chain of more than some {PLAIN_LEVELS} levels",
    "failure": "it is too complex; the grammar library failed on it",
}


class GrammarGuard:
    """Tries grammars in a helper process. Thread-safe.

    Args:
        vocabulary: makes the argument of `grammar_trial.set_up`, for each process anew.
    """

    def __init__(self, vocabulary: Callable[[], bytes]) -> None:
        self._helper = Helper(LIMITS, lambda: ("glm4.grammars.trial:set_up", vocabulary()))
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._num_waiting, self._attack_until = 0, 0.0
        self._known: OrderedDict[bytes, str | None] = OrderedDict()

    def why_not(self, grammar: str) -> str | None:
        """Why a grammar cannot be used; None if it may be compiled here.

        Raises:
            BusyError: others are being tried for too long, or no helper process can be started.
        """
        import hashlib  # not at every start

        key = hashlib.sha256(grammar.encode()).digest()
        with self._lock:
            if key in self._known:
                return self._known[key]
        answer = self._tried(grammar)
        with self._lock:
            self._known[key] = answer
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return answer

    def _tried(self, grammar: str) -> str | None:
        # Whoever waits holds a thread that prepares requests, and others need these, above all during an attack.
        with self._lock:
            most = _MOST_IN_ATTACK if time.monotonic() < self._attack_until else _MOST_WAITING
            if self._num_waiting >= most:
                raise BusyError("too many unusual grammars are being compiled; try again later")
            self._num_waiting += 1
        try:
            if not self._turn.acquire(timeout=_PATIENCE):
                raise BusyError(f"other grammars have taken {_PATIENCE:g} seconds to compile; try again later")
            try:
                self._helper.call("glm4.grammars.trial:follow", grammar.encode())
            finally:
                self._turn.release()
        except HelperError as error:
            self._attack_until = time.monotonic() + _ATTACK_SECONDS
            return _WHY[error.cause]
        except OSError as error:
            raise BusyError(f"the process that tries grammars cannot be started ({error.strerror})") from None
        finally:
            with self._lock:
                self._num_waiting -= 1
        return None

    def close(self) -> None:
        """End the helper process, if there is one."""
        self._helper.close()


def is_plain_form(outputs: StructuredOutputs, schema: Mapping[str, Any]) -> bool:
    """Whether the form of an answer is known to be harmless; `schema` is its enforceable schema."""
    if outputs.choice is not None:
        return len(outputs.choice) <= _PLAIN_CHOICES and sum(map(len, outputs.choice)) <= PLAIN_CHARACTERS
    if outputs.regex is not None:
        return len(outputs.regex) <= _PLAIN_EXPRESSION
    return outputs.grammar is None and is_plain(schema)


def is_plain(schema: Mapping[str, Any]) -> bool:
    """Whether an enforceable schema has only ordinary keywords, and few levels and characters."""
    levels, expressions = 0, 0
    units: list[object] = [schema]  # the schema, then each definition
    while units:
        deepest, rest = 0, [(units.pop(), 1)]
        while rest:
            value, level = rest.pop()
            deepest = max(deepest, level)
            if not isinstance(value, Mapping):
                continue
            if not _is_plain_node(value):
                return False
            expressions += len(str(value.get("pattern", "")))
            rest += [(inner, level + 1) for inner in _inner(value)]
            for name in ("$defs", "definitions"):
                units += list((value.get(name) or {}).values())
        levels += deepest
    if levels > PLAIN_LEVELS or expressions > 8 * _PLAIN_EXPRESSION:
        return False
    return len(json.dumps(schema)) <= PLAIN_CHARACTERS


def _is_plain_node(schema: Mapping[str, Any]) -> bool:
    if schema.keys() - _PLAIN_KEYWORDS:
        return False
    if any(name in schema for name in _ALONE) and len(schema.keys() - _BESIDE) > 1:
        return False
    if "$ref" in schema and not _DEFINITION.fullmatch(str(schema["$ref"])):
        return False
    for name in ("properties", "$defs", "definitions"):
        if not isinstance(schema.get(name, {}), Mapping):
            return False
    if "pattern" in schema and ("format" in schema or len(str(schema["pattern"])) > _PLAIN_EXPRESSION):
        return False
    return not ("format" in schema and "minLength" in schema and schema["minLength"] not in (0, 1))


def _inner(schema: Mapping[str, Any]) -> list[object]:
    found: list[object] = [schema.get("items"), schema.get("additionalProperties")]
    found += list(schema.get("properties", {}).values())
    for name in ("anyOf", "oneOf", "prefixItems"):
        value = schema.get(name)
        if isinstance(value, Sequence):
            found += value
    return found

"""What rendering a chat template may cost: time, steps, and the size of what it creates."""

from __future__ import annotations

import re
import time
from collections.abc import ItemsView, KeysView, Mapping, ValuesView
from itertools import islice
from typing import Any, cast

from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.utils import Namespace, missing

MAX_STEPS = 1_000_000
MAX_SECONDS = 5.0  # of this thread's CPU time: a busy machine is not the template's fault
MAX_VALUE = 4 << 20  # size of one value, for an empty input; see Budget
MAX_TOTAL = 64 << 20
MAX_INT_BITS = 4096
MAX_WIDTH = 10_000  # of center, zfill …
ELEMENT_SIZE = 8  # size of one list element or number, in characters

_COLLECTIONS = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)
_BUDGET = "glm4 budget"  # a variable name that no template can refer to


class Budget:
    """What one rendering may use.

    Args:
        input_size: characters in the template's variables; the limits grow with it, so long chats are not rejected.
    """

    def __init__(self, input_size: int) -> None:
        self.max_value = MAX_VALUE + 16 * input_size
        self._total_left = MAX_TOTAL + 256 * input_size
        self._steps_left = MAX_STEPS + input_size
        self._deadline = time.thread_time() + MAX_SECONDS + input_size / 1e6

    def tick(self, steps: int = 1) -> None:
        """Count work done; raises SecurityError if it is too much or takes too long."""
        self._steps_left -= steps
        if self._steps_left < 0:
            raise SecurityError("the template takes too many steps")
        if time.thread_time() > self._deadline:
            raise SecurityError("the template takes too long")

    def check(self, size: int) -> None:
        """Raise SecurityError if a value about to be created is too large."""
        if size > self.max_value:
            raise SecurityError(f"the template makes a value of more than {self.max_value} characters")

    def spend(self, size: int) -> None:
        """Count the size of a created value."""
        self.check(size)
        self._total_left -= size
        if self._total_left < 0:
            raise SecurityError("the template makes too much text")

    def size_of(self, value: object) -> int:
        """Size of a value as text, contents included; raises SecurityError if it is too large."""
        if isinstance(value, str):
            return len(value)
        total, visited = measure(value, self.max_value)
        self.tick(visited // 32)
        self.check(total)
        return total

    def made(self, value: Any) -> Any:
        """Count a value that an operation returned, and return it."""
        if isinstance(value, str):
            self.spend(len(value))
        elif isinstance(value, (list, tuple, dict)):
            self.spend(self.size_of(value))
        elif isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
            raise SecurityError("the template computes with numbers that are too large")
        return value


def measure(value: object, limit: int) -> tuple[int, int]:
    """Size of a value as text, contents included, and the number of objects visited; stops counting above `limit`."""
    total, visited = 0, 0
    stack: list[Any] = [value]
    while stack and total <= limit:
        item = stack.pop()
        visited += 1
        if isinstance(item, str):  # most are; the other checks take far longer
            total += len(item)
            continue
        total += ELEMENT_SIZE
        if isinstance(item, (dict, Mapping, *_COLLECTIONS)):
            total += ELEMENT_SIZE * len(item)
            if total <= limit:
                stack.extend(item.keys() if isinstance(item, Mapping) else item)
                stack.extend(item.values() if isinstance(item, Mapping) else ())
        elif isinstance(item, Namespace):
            stack.append(object.__getattribute__(item, "_Namespace__attrs"))
        elif isinstance(item, int):
            total += item.bit_length() // 3
    return total, visited


def budget_of(context: Context) -> Budget:
    """The budget of the rendering a context belongs to."""
    budget = context.resolve_or_missing(_BUDGET)
    if budget is missing:
        raise SecurityError("this template may only be rendered with a budget")
    return cast(Budget, budget)


def budget_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The hidden variable that a rendering with these variables needs."""
    return {_BUDGET: Budget(measure(dict(variables), 1 << 40)[0])}


def length_of(value: Any) -> int:
    """Size of a string, or of a list without its contents."""
    return len(value) * (1 if isinstance(value, str) else ELEMENT_SIZE)


def check_times(budget: Budget, left: Any, right: Any) -> None:
    """Bound `left * right` before it is computed."""
    for sequence, count in ((left, right), (right, left)):
        if isinstance(sequence, (str, list, tuple)) and isinstance(count, int):
            budget.check(max(0, count) * max(1, budget.size_of(sequence)))
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > MAX_INT_BITS:
        raise SecurityError("the template computes with numbers that are too large")


_PERCENT_SPEC = re.compile(r"%(?:\([^()]*\))?[-+ #0]*(\*|\d*)(?:\.(\*|\d*))?[hlL]?(.?)", re.DOTALL)


def check_percent(budget: Budget, template: str, values: Any) -> None:
    """Bound `"…" % values` before it is computed: no widths of more than three digits, no `*`, no nested keys."""
    for width, precision, kind in _PERCENT_SPEC.findall(template):
        if "*" in width + precision or max(len(width), len(precision)) > 3 or kind == "(":
            raise SecurityError("the template formats with a width that is too large or unknown")
    budget.check(len(template) + template.count("%") * (1000 + budget.size_of(values)))


def bounded_method(
    budget: Budget, text: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Check the size a string method's result will have; returns the arguments to call it with."""
    if name in ("center", "ljust", "rjust", "zfill") and args and isinstance(args[0], int) and args[0] > MAX_WIDTH:
        raise SecurityError(f"the template pads to {args[0]} characters")
    if name == "replace" and len(args) >= 2:
        check_replace(budget, text, args[0], args[1])
    if name == "join" and args:
        parts = list(islice(args[0], budget.max_value // ELEMENT_SIZE + 1))
        budget.check(budget.size_of(parts) + len(text) * len(parts))
        return (parts,)
    return args


def check_replace(budget: Budget, text: str, old: Any, new: Any) -> None:
    """Bound `text.replace(old, new)` before it is computed."""
    if isinstance(old, str) and isinstance(new, str):
        budget.check(len(text) + len(new) * (text.count(old) if old else len(text) + 1))

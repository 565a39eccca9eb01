"""Filters, tests and global functions that chat templates may use, each within the rendering's budget.

`tojson`, `raise_exception` and `strftime_now` behave the same as those Transformers gives to chat templates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from itertools import islice
from typing import Any, cast

from jinja2 import pass_context
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.runtime import Context, Undefined

from glm4.chat.template.budget import ELEMENT_SIZE, MAX_WIDTH, Budget, budget_of, check_percent, check_replace

Check = Callable[..., None]

_MAX_INDENT = 16
_STRFTIME = re.compile(r"(?:[^%]|%-?[a-zA-Z%])*")


def raise_exception(message: object = "") -> None:
    """How a template rejects a conversation."""
    raise TemplateRuntimeError(str(message)[:500])


def strftime_now(format: str) -> str:
    """The local date and time, formatted."""
    if not isinstance(format, str) or len(format) > 200 or not _STRFTIME.fullmatch(format):
        raise SecurityError("the template asks for a date in a format it may not use")
    return datetime.now().strftime(format)


def counted_test(test: Callable[..., bool]) -> Callable[..., bool]:
    """A Jinja test (`is …`) that ticks."""
    pass_kind = getattr(test, "jinja_pass_arg", None)

    @pass_context
    def counted(context: Context, *args: Any, **kwargs: Any) -> bool:
        budget_of(context).tick()
        return test(*_leading(context, pass_kind), *args, **kwargs)

    return cast(Callable[..., bool], counted)


def _leading(context: Context, pass_kind: Any) -> tuple[Any, ...]:
    """The extra first argument that a Jinja filter or test asks for."""
    name = getattr(pass_kind, "name", None)
    if name == "context":
        return (context,)
    if name == "eval_context":
        return (context.eval_ctx,)
    return (context.environment,) if name == "environment" else ()


def _counted(function: Callable[..., Any], check: Check | None, *, picks: bool) -> Callable[..., Any]:
    """A filter that ticks, bounds its result before creating it and counts it afterward.

    Args:
        check: called with the budget and the filter's arguments first.
        picks: the filter returns something that already exists, or passes items on lazily.
    """
    pass_kind = getattr(function, "jinja_pass_arg", None)

    @pass_context
    def counted(context: Context, *args: Any, **kwargs: Any) -> Any:
        budget = budget_of(context)
        budget.tick()
        if not picks:
            budget.size_of(args)
        if check is not None:
            check(budget, *args, **kwargs)
        result = function(*_leading(context, pass_kind), *args, **kwargs)
        return result if picks else budget.made(result)

    return counted


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _check_tojson(
    budget: Budget,
    value: Any,
    ensure_ascii: Any = False,
    indent: Any = None,
    separators: Any = None,
    *_: Any,
    **__: Any,
) -> None:
    width = len(indent) if isinstance(indent, str) else indent
    if isinstance(width, int) and width > _MAX_INDENT:
        raise SecurityError(f"the template indents JSON by {width}")
    if separators is not None and (len(separators) != 2 or max(map(len, separators)) > _MAX_INDENT):
        raise SecurityError("the template writes JSON with separators that are too long")


def _list(value: Any) -> list[Any]:
    return list(value)


def _limited_list(budget: Budget, value: Any, *_: Any) -> None:
    if hasattr(value, "__len__"):
        budget.check(len(value) * ELEMENT_SIZE)


@pass_context
def _to_list(context: Context, value: Any) -> list[Any]:
    """`list`, which also ends a chain of lazy filters: it consumes items one by one."""
    budget = budget_of(context)
    _limited_list(budget, value)
    limit = budget.max_value // ELEMENT_SIZE
    items = list(islice(value, limit + 1))
    budget.check(len(items) * ELEMENT_SIZE)
    return cast(list[Any], budget.made(items))


def _check_width(budget: Budget, value: Any, width: Any = 0, *_: Any, **keywords: Any) -> None:
    for number in (width, *keywords.values()):
        if isinstance(number, int) and number > MAX_WIDTH:
            raise SecurityError(f"the template asks for a width of {number}")


def _check_indent(budget: Budget, value: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    size = width if isinstance(width, int) else len(str(width))
    text = str(value)
    budget.check(len(text) + (text.count("\n") + 1) * max(0, size))


def _check_filter_replace(budget: Budget, value: Any, old: Any = "", new: Any = "", *_: Any, **__: Any) -> None:
    check_replace(budget, str(value), str(old), str(new))


@pass_context
def _join(context: Context, value: Any, d: Any = "", attribute: Any = None) -> str:
    budget = budget_of(context)
    items = _to_list(context, value)
    budget.check(budget.size_of(items) + len(items) * budget.size_of(d))
    return cast(str, JINJA_FILTERS["join"](context.eval_ctx, items, d, attribute))


def _check_format(budget: Budget, value: Any, *args: Any, **kwargs: Any) -> None:
    check_percent(budget, str(value), kwargs or args)


def _identity(value: Any) -> Any:
    """`safe`: nothing is escaped here, so there is nothing to mark."""
    return value


def _items(value: Any) -> list[Any]:
    return [] if isinstance(value, Undefined) else list(cast(Mapping[Any, Any], value).items())


def _build() -> dict[str, Callable[..., Any]]:
    checks: dict[str, Check | None] = {
        "center": _check_width, "batch": _check_width, "slice": _check_width, "truncate": None,
        "indent": _check_indent, "replace": _check_filter_replace, "format": _check_format,
        "trim": None, "upper": None, "lower": None, "title": None, "capitalize": None, "string": None,
        "escape": None, "e": None, "dictsort": None, "sort": None, "unique": None, "sum": None, "wordcount": None,
    }  # fmt: skip
    picking = (
        "length", "count", "first", "last", "default", "d", "select", "selectattr", "reject", "rejectattr", "map",
        "reverse", "min", "max", "int", "float", "round", "abs",
    )  # fmt: skip
    table = {name: _counted(JINJA_FILTERS[name], check, picks=False) for name, check in checks.items()}
    table.update({name: _counted(JINJA_FILTERS[name], None, picks=True) for name in picking})
    table["tojson"] = _counted(_tojson, _check_tojson, picks=False)
    table["safe"] = _counted(_identity, None, picks=True)
    table["items"] = _counted(_items, None, picks=False)
    table["list"] = _to_list
    table["join"] = _join
    return table


FILTERS = _build()

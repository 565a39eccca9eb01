"""The sandbox that chat templates run in. A template is part of a downloaded checkpoint: untrusted code.

Jinja's own sandbox keeps a template away from Python's internals but not from the machine's time and memory. Here
every construct that can do work is counted against a `Budget`: loop iterations, calls, filters, tests and operators
tick; every string or list is measured before it is created.

Not covered: a single Jinja or Python step on values within the size limit is not interrupted (it takes milliseconds),
and bugs in the Jinja sandbox itself. Templates do not inherit the trust of the messages' authors: what they write is
text, and nothing is executed or loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from types import BuiltinMethodType
from typing import Any, cast

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateAssertionError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from glm4.chat.template.budget import MAX_INT_BITS, bounded_method, budget_of, check_percent, check_times, length_of
from glm4.chat.template.filters import FILTERS, counted_test, raise_exception, strftime_now

_STR_METHODS = """
    strip lstrip rstrip split rsplit splitlines partition rpartition removeprefix removesuffix replace join
    startswith endswith find rfind index rindex count lower upper title capitalize swapcase casefold
    isdigit isalpha isalnum isspace isupper islower istitle isnumeric isdecimal isidentifier isascii
    center ljust rjust zfill
"""
_SAFE_METHODS: tuple[tuple[type, frozenset[str]], ...] = (
    (str, frozenset(_STR_METHODS.split())),
    (dict, frozenset({"get", "items", "keys", "values"})),
    (list, frozenset({"index", "count"})),
    (tuple, frozenset({"index", "count"})),
)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Jinja with Transformers' settings, a list of permitted methods and filters, and a budget."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", GenerationTag],
            finalize=_finalize,
            cache_size=0,
        )
        self.filters = dict(FILTERS)
        self.tests = {name: counted_test(cast(Callable[..., bool], test)) for name, test in self.tests.items()}
        self.globals = {
            "range": self.globals["range"],
            "dict": dict,
            "namespace": Namespace,
            "raise_exception": raise_exception,
            "strftime_now": strftime_now,
        }

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Counting().visit(source), *args, **kwargs)

    # Called by generated code

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Data, loop variables, namespaces, and the listed methods of strings and containers."""
        for kind, names in _SAFE_METHODS:
            if isinstance(obj, kind):
                return attr in names
        return isinstance(obj, (Namespace, LoopContext, Macro, Undefined)) and super().is_safe_attribute(
            obj, attr, value
        )

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Reject immediately, not at first use."""
        raise SecurityError(
            f"the template reads the attribute {attribute!r} of a {type(obj).__name__}, which it may not"
        )

    def wrap_str_format(self, value: Any) -> None:
        """Jinja would provide a guarded `str.format`; its widths are not bounded, so it is not available at all."""

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what the template calls, within its budget."""
        if getattr(obj, "__self__", None) is self:
            return obj(context, *args)
        budget = budget_of(context)
        budget.tick()
        if isinstance(obj, BuiltinMethodType) and isinstance(obj.__self__, str):
            args = bounded_method(budget, obj.__self__, obj.__name__, args, kwargs)
        return budget.made(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator within the budget."""
        budget = budget_of(context)
        budget.tick()
        if operator == "%" and isinstance(left, str):
            check_percent(budget, left, right)
        elif operator == "*":
            check_times(budget, left, right)
        elif operator == "**" and (abs(right) > MAX_INT_BITS or abs(left) > 1 << 64):
            raise SecurityError("the template computes with numbers that are too large")
        elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            budget.check(length_of(left) + length_of(right))
        return budget.made(super().call_binop(context, operator, left, right))

    def loop_turn(self, context: Context, text_size: int) -> None:
        """One iteration of a loop body or one macro call, which writes `text_size` characters of constant text."""
        budget = budget_of(context)
        budget.tick()
        budget.spend(text_size)

    def concatenate(self, context: Context, *parts: Any) -> str:
        """The `~` operator."""
        budget = budget_of(context)
        budget.check(sum(budget.size_of(part) for part in parts))
        return cast(str, budget.made("".join(map(str, parts))))

    def literal(self, context: Context, value: Any) -> Any:
        """A list, tuple or dict display."""
        return budget_of(context).made(value)

    def slice_of(self, context: Context, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """`value[start:stop:step]`."""
        budget = budget_of(context)
        budget.tick()
        return budget.made(value[start:stop:step])


@pass_context
def _finalize(context: Context, value: Any) -> Any:
    """Runs on every `{{ … }}` before it is converted to text."""
    budget = budget_of(context)
    budget.tick()
    budget.spend(budget.size_of(value))
    return value


class GenerationTag(Extension):
    """`{% generation %} … {% endgeneration %}`, which marks the model's own text for training; here it is just text."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Keep the contents."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Counting(NodeTransformer):
    """Rewrites a template's syntax tree so that constructs without a Jinja hook go through the environment."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if isinstance(node, (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            raise TemplateAssertionError("chat templates may not load other templates", node.lineno)
        return super().visit(node, *args, **kwargs)

    def _counted_body(self, node: nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block) -> nodes.Node:
        size = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        turn = _hook("loop_turn", [nodes.Const(size)], node.lineno)
        node.body.insert(0, nodes.ExprStmt(turn, lineno=node.lineno))
        return node

    visit_For = visit_Macro = visit_CallBlock = visit_Block = _counted_body  # noqa: N815 (names Jinja looks up)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _hook("concatenate", node.nodes, node.lineno)

    def _literal(self, node: nodes.List | nodes.Tuple | nodes.Dict) -> nodes.Node:
        constant = not list(node.find_all((nodes.Name, nodes.Call, nodes.Filter, nodes.List, nodes.Tuple, nodes.Dict)))
        self.generic_visit(node)
        if constant or getattr(node, "ctx", "load") != "load":
            return node
        return _hook("literal", [node], node.lineno)

    visit_List = visit_Tuple = visit_Dict = _literal  # noqa: N815

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = [bound or nodes.Const(None) for bound in (node.arg.start, node.arg.stop, node.arg.step)]
        return _hook("slice_of", [node.node, *bounds], node.lineno)


def _hook(name: str, args: list[nodes.Expr], lineno: int) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name, lineno=lineno)
    return nodes.Call(function, args, [], None, None, lineno=lineno)

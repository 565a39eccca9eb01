"""`@tool`: a Python function as a tool. Its type hints become the schema of its arguments.

>>> from glm4 import tool
>>> @tool
... def add(a: int, b: int = 1) -> int:
...     '''Add two numbers.
...
...     Args:
...         b: one if it is left out.
...     '''
...     return a + b
>>> add(2, 3)
5
>>> add.functions[0].parameters["required"]
['a']

A function that is not async cannot be interrupted: one that takes long should take a parameter of type `ToolContext`,
which models do not see, and look at its `cancelled` now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import inspect
import json
import logging
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, Optional, ParamSpec, TypeVar, get_args, get_origin, get_type_hints, overload

from glm4.agent.arguments import ArgumentsError, check, read_object
from glm4.agent.docstrings import read_docstring
from glm4.agent.returned import as_json, as_result, error_text
from glm4.agent.tool import Approval, Function, Invocation, Tool, ToolContext, ToolResult
from glm4.agent.type_schemas import JSONType, TypeSchemas, UnsupportedTypeError, object_schema
from glm4.errors import Glm4Error, ToolError

_P = ParamSpec("_P")
_R = TypeVar("_R")

log = logging.getLogger("glm4.agent")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_POLL_SECONDS = 0.1


class FunctionTool(Tool, Generic[_P, _R]):
    """A function as a tool; it can still be called as the function it is.

    Args:
        function: with a type hint for each parameter, and a docstring.
        name: for models; the function's own if not given.
        approval, timeout: see `Tool`.
        parallel: whether calls of it may run at the same time.

    Raises:
        ToolError: it cannot be a tool; says what to change.
    """

    def __init__(
        self,
        function: Callable[_P, _R],
        *,
        name: str | None = None,
        approval: Approval = "always",
        timeout: float = 60.0,
        parallel: bool = False,
    ) -> None:
        if not callable(function) or isinstance(function, type):
            raise ToolError("@tool stands in front of a function; options have names: @tool(name=…)")
        functools.update_wrapper(self, function)
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        if not _NAME.fullmatch(self.name):
            raise ToolError(
                f"{self.name!r} is no name for a tool: models take letters, digits, _ and -, at most 64; give it one"
                " with @tool(name=…)"
            )
        if approval not in get_args(Approval):
            raise ToolError(f"tool {self.name}: approval must be always, ask or never, not {approval!r}")
        if not timeout > 0:
            raise ToolError(f"tool {self.name}: timeout must be a number of seconds above 0, not {timeout!r}")
        self.approval, self.timeout, self._parallel = approval, float(timeout), parallel
        self._function = function
        self._signature = _Signature(function, self.name)
        self.functions = (Function(self.name, self._signature.description, self._signature.schema),)

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Call the function itself."""
        return self._function(*args, **kwargs)

    @property
    def parallel(self) -> bool:
        """See `Tool`."""
        return self._parallel

    def run(self, invocation: Invocation, context: ToolContext) -> ToolResult:
        """See `Tool`. Arguments that do not fit, and what the function raises, come back in words for the model."""
        try:
            bound = self._signature.bind(invocation.arguments, context)
        except ArgumentsError as error:
            return ToolResult.error(f"{self.name} was not called: {error}")
        try:
            value: Any = self._function(*bound.args, **bound.kwargs)
            if inspect.isawaitable(value):
                value = asyncio.run(_awaited(value, context))
        except Glm4Error:
            raise
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            log.info("tool %s failed", self.name, exc_info=True)
            return ToolResult.error(error_text(error))
        return as_result(value, self.name, context)


@overload
def tool(function: Callable[_P, _R], /) -> FunctionTool[_P, _R]: ...


@overload
def tool(
    *, name: str | None = None, approval: Approval = "always", timeout: float = 60.0, parallel: bool = False
) -> Callable[[Callable[_P, _R]], FunctionTool[_P, _R]]: ...


def tool(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a tool of a function: `@tool`, or `@tool(name=…, approval="ask", timeout=…)`; see `FunctionTool`."""
    if function is None:
        return lambda function: FunctionTool(function, **options)
    return FunctionTool(function)


class _Signature:
    """A function's parameters as a schema, and back."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self._tool = name
        self._parameters: dict[str, JSONType] = {}
        self._contexts: list[str] = []
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise self._error("it yields; return a value instead")
        docstring = read_docstring(inspect.getdoc(_routine(function)))
        if not docstring.text:
            raise self._error("it has no docstring; write one: it tells the model what the function does")
        self.description = docstring.text
        self._signature = inspect.signature(function)
        try:
            hints = get_type_hints(_routine(function), include_extras=True)
        except Exception as error:  # whatever evaluating them raises
            raise self._error(f"its type hints cannot be read ({error_text(error)})") from None
        schemas, required = TypeSchemas(), []
        properties: dict[str, Any] = {}
        for parameter in self._signature.parameters.values():
            made = self._parameter(parameter, hints, schemas)
            if made is None:
                continue
            said = docstring.parameters.get(parameter.name)
            self._parameters[parameter.name] = made
            properties[parameter.name] = _property(made.schema, said, parameter.default)
            if parameter.default is parameter.empty:
                required.append(parameter.name)
        self.schema = object_schema(properties, required)
        if schemas.definitions:
            self.schema["$defs"] = schemas.definitions

    def _error(self, what: str) -> ToolError:
        return ToolError(f"tool {self._tool}: {what}")

    def _parameter(
        self, parameter: inspect.Parameter, hints: Mapping[str, Any], schemas: TypeSchemas
    ) -> JSONType | None:
        """A parameter's type; None for one that is not the model's."""
        name, hint = parameter.name, hints.get(parameter.name)
        if parameter.kind is parameter.VAR_POSITIONAL:
            raise self._error(f"a model cannot write *{name}; take a list: {name}: list[…]")
        if parameter.kind is parameter.VAR_KEYWORD:
            raise self._error(f"a model cannot write **{name}; take a dictionary: {name}: dict[str, …]")
        if name not in hints:
            hint_words = f"parameter {name} has no type hint; write one, such as {name}: str (Any takes everything)"
            method = " (of a method, offer the bound one: tool(object.method))" if name in ("self", "cls") else ""
            raise self._error(hint_words + method)
        if isinstance(hint, type) and issubclass(hint, ToolContext):
            self._contexts.append(name)
            return None
        try:
            made = schemas.of(hint)
            takes_null = hint is None or type(None) in get_args(_bare(hint)) or not made.schema
            # `x: str = None`, as people write; and models write null for what they leave out.
            return made if parameter.default is not None or takes_null else schemas.of(Optional[hint])  # noqa: UP045
        except UnsupportedTypeError as error:
            raise self._error(f"parameter {name}: {error}") from None

    def bind(self, text: str, context: ToolContext) -> inspect.BoundArguments:
        """The arguments of a call.

        Raises:
            ArgumentsError: they do not fit.
        """
        given = read_object(text)
        check(given, self.schema)
        problems, values = [], {}
        for name, value in given.items():
            try:
                values[name] = self._parameters[name].convert(value, name)
            except ArgumentsError as error:
                problems.append(str(error))
        if problems:
            raise ArgumentsError("; ".join(problems))
        bound = self._signature.bind_partial()
        for name, parameter in self._signature.parameters.items():
            # In order, as those that are given by position have to be.
            bound.arguments[name] = context if name in self._contexts else values.get(name, parameter.default)
        return bound


def load_tools(path: Path) -> list[Tool]:
    """The tools of a Python file of the user's own, in the order in which it names them.

    The file is run with all rights of this process: whoever names it here trusts it. Its folder can be imported from.

    Raises:
        ToolError: there is no such file, it fails, or it has no tools or two of one name.
    """
    if not path.is_file():
        raise ToolError(f"{path}: there is no such file of tools")
    module_name = f"glm4_tools_{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ToolError(f"{path}: tools are in a Python file, whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that it hides nothing
    sys.modules[module_name] = module  # dataclasses and type hints look there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise ToolError(f"{path}{_line_of(error, path)}: {type(error).__name__}: {error}") from error
    tools = list({id(value): value for value in vars(module).values() if isinstance(value, Tool)}.values())
    if not tools:
        raise ToolError(f"{path} has no tools: put @tool in front of a function (from glm4 import tool)")
    names = [one.name for one in tools]
    for name in names:
        if names.count(name) > 1:
            raise ToolError(
                f"{path} has two tools of the name {name!r}; rename one, or give it a name with @tool(name=…)"
            )
    return tools


def _line_of(error: BaseException, path: Path) -> str:
    """Where in the file it went wrong."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f", line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {frames[-1].lineno}" if frames else ""


async def _awaited(value: Any, context: ToolContext) -> Any:
    """What an async function returns; it is cancelled at the deadline, or when nobody wants it anymore."""

    async def own() -> Any:
        return await value

    task = asyncio.ensure_future(own())
    while not task.done():
        left = context.left()
        if context.cancelled.is_set() or not left:
            task.cancel()
            await asyncio.wait({task}, timeout=1.0)
            raise TimeoutError("it was stopped" if context.cancelled.is_set() else "it took too long")
        await asyncio.wait({task}, timeout=min(left, _POLL_SECONDS))
    return task.result()


def _property(schema: dict[str, Any], said: str | None, default: Any) -> dict[str, Any]:
    """A parameter's schema with what the docstring and the default say."""
    made = dict(schema)
    if said and "description" not in made:
        made["description"] = said
    if default is not inspect.Parameter.empty and default is not None:
        with contextlib.suppress(TypeError, ValueError):  # of a default that only Python has
            made["default"] = json.loads(as_json(default))
    return made


def _bare(hint: Any) -> Any:
    """A hint without its annotations."""
    return _bare(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def _routine(function: Callable[..., Any]) -> Any:
    """What has the docstring and hints of a callable, which may be a partial or an object with `__call__`."""
    if isinstance(function, functools.partial):
        return _routine(function.func)
    return function if inspect.isroutine(function) else type(function).__call__

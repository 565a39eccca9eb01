"""What a model asks of the browser: GLM-4's call expressions and other dialects' JSON, read into the same actions.

`search("q", recency_days=7)`, `mclick([0, 3])`, `open_url("https://…", part=2)`: an own tokenizer and parser, nothing
is evaluated. Accepted beyond Python's form, because models write it: full-width punctuation and quotation marks, ids
without brackets, a URL without quotation marks, a name before the function (`simple_browser.search`), several calls
separated by line breaks or semicolons.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from glm4.errors import InvalidRequestError, shown

MAX_CALLS = 4
MAX_IDS = 10
_MAX_CHARS = 16_384
_MAX_QUERY = 1_000
FORMS = 'search("words", recency_days=7), mclick([0, 3]) or open_url("https://…", part=2)'


@dataclass(frozen=True)
class Search:
    """Ask the search engine. `recency_days` None: of any age."""

    query: str
    recency_days: int | None = None


@dataclass(frozen=True)
class Click:
    """Read the pages behind links of the latest list or page."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Open:
    """Show a page. `part` counts from 1."""

    url: str
    part: int = 1


Action = Search | Click | Open


class CallError(InvalidRequestError):
    """A call that cannot be read; the text tells the model how to write it."""


def parse_calls(text: str) -> list[Action]:
    """The calls of an expression, at least one.

    Raises:
        CallError: it is not one.
    """
    try:
        if len(text) > _MAX_CHARS:
            raise CallError(f"the call is longer than {_MAX_CHARS} characters")
        return _Parser(text).calls()
    except CallError as error:
        raise CallError(f"{error}; write {FORMS}") from None


def read_arguments(function: str, arguments: str) -> Action:
    """The action of a function call with JSON arguments.

    Raises:
        CallError: there is no such function, or its arguments are wrong.
    """
    action = _FUNCTIONS.get(function)
    if action is None:
        raise CallError(f"the browser has no function {shown(function)}; it has {_listed(_FUNCTIONS)}")
    try:
        given = json.loads(arguments) if len(arguments) <= _MAX_CHARS else None
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise CallError(f"the arguments of {function} must be a JSON object of at most {_MAX_CHARS} characters")
    return _bind(action, (), given)


# Arguments


def _bind(name: str, positional: Sequence[object], named: Mapping[str, object]) -> Action:
    row = _ACTIONS.get(name)
    if row is None:
        raise CallError(f"the browser has no function {shown(name)}")
    values: dict[str, Any] = {}
    if name == "mclick" and len(positional) > 1:  # mclick(0, 3)
        positional = (list(positional),)
    if len(positional) > len(row.parameters):
        raise CallError(f"{name} takes at most {len(row.parameters)} arguments")
    for key, value in (*zip(row.parameters, positional), *named.items()):  # noqa: B905  # fewer may be given
        if key not in row.parameters:
            raise CallError(f"{name} has no argument {shown(key)}; it has {_listed(row.parameters)}")
        if key in values:
            raise CallError(f"{name} has the argument {key} twice")
        values[key] = value
    return _READERS[name]({key: value for key, value in values.items() if value is not None})


def _search(values: dict[str, Any]) -> Search:
    query = _text(values, "search", "query").strip()
    if not query:
        raise CallError('search needs words to search for: search("words")')
    days = _whole(values.get("recency_days", 0), "recency_days")
    return Search(query[:_MAX_QUERY], days if days > 0 else None)


def _click(values: dict[str, Any]) -> Click:
    ids = values.get("ids")
    if isinstance(ids, (int, str)):
        ids = [ids]
    if not isinstance(ids, list) or not ids:
        raise CallError("mclick needs a list of ids, as the numbers in 【…】 before the †: mclick([0, 3])")
    numbers = tuple(dict.fromkeys(_whole(one, "ids") for one in ids))
    if len(numbers) > MAX_IDS:
        raise CallError(f"mclick takes at most {MAX_IDS} ids; choose the {MAX_IDS} best pages")
    return Click(numbers)


def _open(values: dict[str, Any]) -> Open:
    part = _whole(values.get("part", 1), "part")
    if part < 1:
        raise CallError("part counts from 1")
    return Open(_text(values, "open_url", "url").strip(), part)


def _text(values: Mapping[str, object], function: str, name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        raise CallError(f"{function} needs {name}, a text in quotation marks")
    return value


def _whole(value: object, name: str) -> int:
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > 1_000_000:
        raise CallError(f"{name} must be a whole number, not {shown(value)}")
    return value


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


# Expressions

_INTEGER = re.compile(r"[+-]?[0-9]{1,9}", re.ASCII)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "「": "」"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\n": ""}
_PUNCTUATION = {"（": "(", "）": ")", "，": ",", "、": ",", "；": ";", "［": "[", "］": "]", "＝": "="}
_SPACE = re.compile(r"[ \t\r\u3000]+")
_WORD = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_BARE_URL = re.compile(r"https?://[^\s\"'<>，、“”]+?(?=\)?\s*(?:$|[;\n])|,\s*part\s*=)", re.IGNORECASE)
_CONSTANTS: dict[str, object] = {"None": None, "null": None}


class _Parser:
    """Recursive descent over the text; `_at` is the first character not read."""

    def __init__(self, text: str) -> None:
        self._text = text.strip().removeprefix("```python").strip("`").strip()
        self._at = 0

    def calls(self) -> list[Action]:
        actions: list[Action] = []
        while True:
            while self._take("\n") or self._take(";"):
                pass
            if self._at >= len(self._text):
                break
            if len(actions) == MAX_CALLS:
                raise CallError(f"at most {MAX_CALLS} calls at a time; wait for their results")
            actions.append(self._call())
            if self._at < len(self._text) and self._peek() not in ("\n", ";"):
                self._fail("a line break or the end")
        return actions or self._fail("a call")

    def _call(self) -> Action:
        name = self._word()
        if name is None or not self._take("("):
            self._fail("a call")
        positional: list[object] = []
        named: dict[str, object] = {}
        while not self._take(")"):
            start, word = self._at, self._word()
            if word is not None and self._take("="):
                if word in named:
                    raise CallError(f"the argument {shown(word)} is given twice")
                named[word] = self._value()
            else:
                self._at = start
                if named:
                    self._fail("an argument with its name")
                positional.append(self._value())
            if not self._take(",") and self._peek() != ")":
                self._fail('"," or ")"')
        return _bind(name.rpartition(".")[2], positional, named)

    def _value(self, *, nested: bool = False) -> object:
        self._skip()
        character = self._text[self._at : self._at + 1]
        if character in _QUOTES and character:
            return self._string(_QUOTES[character])
        if match := _INTEGER.match(self._text, self._at):
            self._at = match.end()
            return int(match[0])
        if match := _BARE_URL.match(self._text, self._at):
            self._at = match.end()
            return match[0]
        if not nested and self._take("["):
            values: list[object] = []
            while not self._take("]"):
                values.append(self._value(nested=True))
                if not self._take(",") and self._peek() != "]":
                    self._fail('"," or "]"')
            return values
        word = self._word()
        if word not in _CONSTANTS:
            self._fail("a text in quotation marks, a whole number or a list of them")
        return _CONSTANTS[word]

    def _string(self, closing: str) -> str:
        start, self._at = self._at, self._at + 1
        parts: list[str] = []
        while self._at < len(self._text):
            character = self._text[self._at]
            self._at += 1
            if character == closing:
                return "".join(parts)
            if character == "\\" and self._at < len(self._text):
                character = self._text[self._at]
                self._at += 1
                parts.append(_ESCAPES.get(character, character if not character.isalnum() else f"\\{character}"))
            else:
                parts.append(character)
        self._at = start
        return self._fail(f"a text that ends with {closing}")

    def _word(self) -> str | None:
        self._skip()
        match = _WORD.match(self._text, self._at)
        if match is None:
            return None
        self._at = match.end()
        return match[0]

    def _peek(self) -> str:
        self._skip()
        character = self._text[self._at : self._at + 1]
        return _PUNCTUATION.get(character, character)

    def _take(self, wanted: str) -> bool:
        if self._peek() != wanted:
            return False
        self._at += 1
        return True

    def _skip(self) -> None:
        match = _SPACE.match(self._text, self._at)
        if match is not None:
            self._at = match.end()

    def _fail(self, expected: str) -> NoReturn:
        found = shown(self._text[self._at : self._at + 30]) if self._at < len(self._text) else "the end"
        raise CallError(f"the browser expected {expected}, and found {found}")


@dataclass(frozen=True)
class _Row:
    """A function: its name in dialects with JSON calls, and its parameters in order."""

    function: str
    parameters: tuple[str, ...]


_READERS: Mapping[str, Callable[[dict[str, Any]], Action]] = {"search": _search, "mclick": _click, "open_url": _open}
_ACTIONS = {
    "search": _Row("browser_search", ("query", "recency_days")),
    "mclick": _Row("browser_click", ("ids",)),
    "open_url": _Row("browser_open", ("url", "part")),
}
_FUNCTIONS = {row.function: name for name, row in _ACTIONS.items()}

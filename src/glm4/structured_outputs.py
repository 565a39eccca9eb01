"""`StructuredOutputs`: constraints on the text of an answer. Names follow vLLM's class.

Enforced while the text is generated, by a grammar that `grammar.py` compiles: tokens that do not fit are never sampled.
"""

from __future__ import annotations

import json as json_library
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from glm4.errors import InvalidRequestError

MAX_CHARACTERS = 1 << 20
"""Maximum characters of a schema (as JSON), an expression, a grammar, or all choices together."""


@dataclass(frozen=True)
class StructuredOutputs:
    """Constraints; exactly one must be given.

    JSON is on one line, with one space after `:` and `,` and no other whitespace, so that a small model cannot get lost
    in it. Keywords of JSON Schema that cannot be enforced (`not`, `if`, `uniqueItems`, `dependentRequired` …) are
    refused by name when the request is prepared. `oneOf` is treated as `anyOf`: an answer matches at least one branch.

    Attributes:
        json: a JSON schema, as an object or a string.
        json_object: any JSON object.
        regex: a regular expression for the whole text (without look-around and back-references).
        choice: one of these strings.
        grammar: a grammar in llguidance's dialect of Lark; its first rule is `start`.
        param: the request field that errors name.

    Raises:
        InvalidRequestError: not exactly one of them, a wrong type, or too large; `.param` as given.
    """

    json: Mapping[str, Any] | str | None = None
    json_object: bool = False
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    param: str = field(default="structured_outputs", compare=False)

    def __post_init__(self) -> None:
        given = [f.name for f in fields(self) if f.name != "param" and getattr(self, f.name) not in (None, False)]
        if len(given) != 1:
            said = " and ".join(given) if given else "none"
            raise self.error(f"exactly one of json, json_object, regex, choice and grammar must be given, not {said}")
        if self.json_object not in (True, False):
            raise self.error("json_object must be true or false")
        for name in ("regex", "grammar"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise self.error(f"{name} must be a non-empty string")
            self._check_size(name, value or "")
        if self.choice is not None:
            self._check_choice(self.choice)
        if self.json is not None:
            object.__setattr__(self, "json", self._parsed(self.json))

    def _check_choice(self, choice: Sequence[str]) -> None:
        if isinstance(choice, str) or not isinstance(choice, Sequence) or not choice:
            raise self.error("choice must be a non-empty list of strings")
        if not all(isinstance(text, str) and text for text in choice):
            raise self.error("choice must be a list of non-empty strings")
        self._check_size("choice", "".join(choice))
        object.__setattr__(self, "choice", tuple(choice))

    def _parsed(self, schema: object) -> Mapping[str, Any]:
        """The schema as plain JSON objects, copied so that later changes do not affect it."""
        try:
            text = schema if isinstance(schema, str) else json_library.dumps(schema, allow_nan=False)
            self._check_size("the JSON schema", text)
            value = json_library.loads(text)
        except (ValueError, TypeError) as error:
            raise self.error(f"the JSON schema is not valid JSON ({error})") from None
        except RecursionError:
            raise self.error("the JSON schema nests too deeply") from None
        if not isinstance(value, dict):
            raise self.error("the JSON schema must be an object")
        return value

    @property
    def schema(self) -> Mapping[str, Any]:
        """The schema that `json` or `json_object` gives; any JSON if neither is given."""
        if self.json_object:
            return {"type": "object"}
        return self.json if isinstance(self.json, Mapping) else {}

    def _check_size(self, name: str, text: str) -> None:
        if len(text) > MAX_CHARACTERS:
            raise self.error(f"{name} has {len(text)} characters; the limit is {MAX_CHARACTERS}")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise self.error(f"{name} is not valid Unicode")

    def error(self, message: str) -> InvalidRequestError:
        """An error that names the request's field."""
        return InvalidRequestError(f"{self.param}: {message}", param=self.param)

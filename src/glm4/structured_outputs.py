"""`StructuredOutputs`: what an answer must look like. Names follow vLLM's class.

Enforced while the text is generated, by a grammar that `grammar.py` compiles: tokens that do not fit are never sampled.
"""

from __future__ import annotations

import json as json_library
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from glm4.errors import InvalidRequestError

MAX_CHARACTERS = 1 << 20
"""Of a schema (as JSON), an expression, a grammar, or all choices together."""


@dataclass(frozen=True)
class StructuredOutputs:
    """Exactly one of these is given.

    JSON comes on one line, with one space after `:` and `,` and none elsewhere, so that a small model cannot lose
    itself in whitespace. Keywords of JSON Schema that cannot be enforced (`not`, `if`, `uniqueItems`,
    `dependentRequired` …) are refused by name when the request is prepared. `oneOf` is read as `anyOf`: an answer fits
    one branch at least.

    Attributes:
        json: a JSON schema, as an object or as text.
        json_object: any JSON object.
        regex: a regular expression for the whole text (without look-around and back-references).
        choice: one of these texts.
        grammar: a grammar in Lark's notation, in llguidance's dialect of it; its first rule is `start`.
        param: the request field that errors name.

    Raises:
        InvalidRequestError: not exactly one of them, of a wrong type, or too large; `.param` as given.
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
                raise self.error(f"{name} must be a text that is not empty")
            self._check_size(name, value or "")
        if self.choice is not None:
            self._check_choice(self.choice)
        if self.json is not None:
            object.__setattr__(self, "json", self._parsed(self.json))

    def _check_choice(self, choice: Sequence[str]) -> None:
        if isinstance(choice, str) or not isinstance(choice, Sequence) or not choice:
            raise self.error("choice must be a list of texts that is not empty")
        if not all(isinstance(text, str) and text for text in choice):
            raise self.error("choice must be a list of texts, none of them empty")
        self._check_size("choice", "".join(choice))
        object.__setattr__(self, "choice", tuple(choice))

    def _parsed(self, schema: object) -> Mapping[str, Any]:
        """The schema as plain JSON objects, so that nobody can change it later."""
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
        """The schema that `json` or `json_object` asks for; of any JSON where neither is given."""
        if self.json_object:
            return {"type": "object"}
        return self.json if isinstance(self.json, Mapping) else {}

    def _check_size(self, name: str, text: str) -> None:
        if len(text) > MAX_CHARACTERS:
            raise self.error(f"{name} has {len(text)} characters; more than {MAX_CHARACTERS} are refused")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise self.error(f"{name} is not valid Unicode")

    def error(self, message: str) -> InvalidRequestError:
        """An error that names the request's field."""
        return InvalidRequestError(f"{self.param}: {message}", param=self.param)

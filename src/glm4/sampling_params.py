"""`SamplingParams`: how the next token is chosen, when to stop, and (`StructuredOutputs`) what the text must look like.

Names and meanings follow vLLM's classes. Structured outputs are enforced while the text is generated, by a grammar that
`requests/grammar_compiler.py` compiles: tokens that do not fit are never sampled.
"""

from __future__ import annotations

import json as json_library
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from glm4.errors import InvalidRequestError, shown

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 8192  # of all stop strings together
MAX_STOP_IDS = 1024
MAX_BIASES = 16_384
MAX_N = 128
MAX_TEMPERATURE = 100.0
MIN_REPETITION_PENALTY = 0.01
MAX_REPETITION_PENALTY = 100.0
# Below this, sampling is greedy: dividing by less would exceed the range of float32.
_GREEDY_BELOW = 1e-5
_INT64 = 1 << 63
_DEFAULTS = {
    "max_tokens": "; leave it out for as many as the context holds",
    **dict.fromkeys(("temperature", "top_p", "top_k", "min_p"), "; leave it out for the model's own value"),
}
"""What errors say about the options that old clients set to 0 or -1 where they mean the default."""
MAX_CHARACTERS = 1 << 20
"""Maximum characters of a schema (as JSON), an expression, a grammar, or all choices together."""

MAX_CONSTANT = 1 << 16
"""Maximum characters of one text that an answer must repeat: a choice, or a string of `enum` and `const`."""


@dataclass(frozen=True)
class StructuredOutputs:
    """Constraints; exactly one must be given.

    JSON is on one line, with one space after `:` and `,` and no other whitespace, so that a small model cannot get lost
    in it. Keywords of JSON Schema that cannot be enforced (`not`, `if`, `contains`, `dependentRequired` …) are refused
    by name when the request is prepared, and so are numbers that would not stay exact. Annotations have no effect.
    `oneOf` is treated as `anyOf`: an answer matches at least one branch.

    Attributes:
        json: a JSON schema, as an object or a string.
        json_object: any JSON object.
        regex: a regular expression for the whole text (without look-around and back-references).
        choice: one of these strings.
        grammar: a grammar in llguidance's dialect of Lark; its first rule is `start`.
        param: the request field that errors name.
        strict: refuse `uniqueItems`, which cannot be enforced, and which is otherwise left to the model.

    Raises:
        InvalidRequestError: not exactly one of them, a wrong type, or too large; `.param` as given.
    """

    json: Mapping[str, Any] | str | None = None
    json_object: bool = False
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    param: str = field(default="structured_outputs", compare=False)
    strict: bool = False

    def __post_init__(self) -> None:
        given = [
            f.name
            for f in fields(self)
            if f.name not in ("param", "strict") and getattr(self, f.name) not in (None, False)
        ]
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
        longest = max(map(len, choice))
        if longest > MAX_CONSTANT:
            raise self.error(f"choice has a text of {longest} characters; the limit is {MAX_CONSTANT}")
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


@dataclass(frozen=True)
class SamplingParams:
    """Sampling options of one request.

    Attributes:
        n: completions per prompt; each is an independent sample.
        temperature: 0 (or nearly 0) is greedy; otherwise logits are divided by it. At most 100.
        top_p: keep the smallest set of tokens whose probability reaches this, in [0, 1]; 0 keeps the most likely one.
        top_k: keep this many of the most likely tokens; 0 or -1 keeps all.
        min_p: drop tokens less likely than this fraction of the most likely one, in [0, 1].
        repetition_penalty: >1 discourages every token already in prompt or output (multiplicative, on logits),
            in [0.01, 100].
        presence_penalty: subtracted once from every token already in the output, in [-2, 2].
        frequency_penalty: subtracted per occurrence in the output, in [-2, 2].
        logit_bias: token id → value added to its logit, each in [-100, 100]; at most 16,384.
        seed: same seed and same request give the same text, whatever else is in the batch. None draws a random one.
        stop: strings that end the text, at most 16 of 8,192 characters in all; the match is not returned unless
            `include_stop_str_in_output`. None is the same as an empty list.
        stop_token_ids: token ids that end the text, in addition to the model's own; at most 1,024. None is the same as
            an empty list.
        ignore_eos: continue when the model emits its own stop ids.
        min_tokens: no stop id is sampled, and no stop string is honored, before this many tokens.
        max_tokens: maximum number of new tokens; None means until the context is full.
        logprobs: return this many of the most likely tokens at each step (plus the sampled one); None turns it off.
        prompt_logprobs: the same for every prompt token; None turns it off.
        skip_special_tokens: leave special tokens out of the text.
        include_stop_str_in_output: keep the matched stop string in the text.
        structured_outputs: constraint on the text. Penalties and logit_bias apply to the tokens it allows; stop
            strings, stop_token_ids and max_tokens may still cut the text short; a text that can only end there ends
            before min_tokens.

    NumPy's numbers and arrays count as Python's.

    Raises:
        InvalidRequestError: a value is out of range; `.param` names the field.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    structured_outputs: StructuredOutputs | None = None
    stop_strings: tuple[str, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        for one in fields(self):
            if one.init:
                object.__setattr__(self, one.name, _plain(getattr(self, one.name)))
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            if value is None:
                value = ()
                object.__setattr__(self, name, value)
            _require(isinstance(value, Sequence) and not isinstance(value, bytes), name, "a list", value)
        _require_at_most(MAX_STOP_IDS, "stop_token_ids", "ids", len(self.stop_token_ids))
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        _require_at_most(MAX_STOP_STRINGS, "stop", "strings", len(stop))
        object.__setattr__(self, "stop_strings", stop)
        object.__setattr__(self, "stop_token_ids", tuple(map(_plain, self.stop_token_ids)))
        _require(
            self.logit_bias is None or isinstance(self.logit_bias, Mapping), "logit_bias", "a mapping", self.logit_bias
        )
        if self.logit_bias is not None:
            bias = {_plain(token): _plain(value) for token, value in self.logit_bias.items()}
            object.__setattr__(self, "logit_bias", bias)
        _require(
            self.structured_outputs is None or isinstance(self.structured_outputs, StructuredOutputs),
            "structured_outputs",
            "a StructuredOutputs object",
            self.structured_outputs,
        )
        _require_at_most(MAX_BIASES, "logit_bias", "tokens", len(self.logit_bias or ()))
        self._check_integers()
        self._check_ranges()
        self._check_stops()

    def _check_integers(self) -> None:
        for name in ("n", "top_k", "min_tokens"):
            _require_int(name, getattr(self, name))
        for name in ("seed", "max_tokens", "logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _require_int(name, getattr(self, name))

    def _check_ranges(self) -> None:
        _require(1 <= self.n <= MAX_N, "n", f"between 1 and {MAX_N}", self.n)
        _require_number("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        _require_number("top_p", self.top_p, 0.0, 1.0)
        _require(self.top_k >= -1, "top_k", "at least 1, or 0 (or -1) for no limit", self.top_k)
        _require_number("min_p", self.min_p, 0.0, 1.0)
        _require_number("repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY)
        _require_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _require_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _require(self.min_tokens >= 0, "min_tokens", "at least 0", self.min_tokens)
        if self.max_tokens is not None:
            _require(self.max_tokens >= 1, "max_tokens", "at least 1", self.max_tokens)
            _require(self.min_tokens <= self.max_tokens, "min_tokens", "at most max_tokens", self.min_tokens)
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            _require(value is None or 0 <= value <= MAX_LOGPROBS, name, f"between 0 and {MAX_LOGPROBS}", value)
        if self.logit_bias is not None:
            for token, value in self.logit_bias.items():
                _require_int("logit_bias", token)
                _require_number("logit_bias", value, -100.0, 100.0)

    def _check_stops(self) -> None:
        for text in self.stop_strings:
            _require(isinstance(text, str) and text != "", "stop", "a non-empty string or a list of them", self.stop)
        _require_at_most(MAX_STOP_CHARACTERS, "stop", "characters in all", sum(map(len, self.stop_strings)))
        for token in self.stop_token_ids:
            _require_int("stop_token_ids", token)

    @property
    def greedy(self) -> bool:
        """True if the most likely token is always chosen."""
        return self.temperature < _GREEDY_BELOW

    def replace(self, **changes: Any) -> SamplingParams:
        """A copy with some fields changed, validated again."""
        return replace(self, **changes)


def _plain(value: Any) -> Any:
    """A number or an array of NumPy (or of a library like it) as Python's; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _require(condition: bool, name: str, expectation: str, value: object) -> None:
    if not condition:
        default = _DEFAULTS.get(name, "")
        raise InvalidRequestError(f"{name} must be {expectation}, not {shown(value)}{default}", param=name)


def _require_at_most(limit: int, name: str, what: str, count: int) -> None:
    if count > limit:
        raise InvalidRequestError(f"{name} has {count} {what}; the limit is {limit}", param=name)


def _require_int(name: str, value: object) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    _require(whole, name, "a whole number", value)
    _require(-_INT64 <= value < _INT64, name, "a whole number of at most 64 bits", value)  # type: ignore[operator]


def _require_number(name: str, value: object, low: float, high: float) -> None:
    expectation = f"a number between {low:g} and {high:g}"
    # Compared as it is: an integer of hundreds of digits, or NaN, is in no range and does not fit a float.
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    _require(fits, name, expectation, value)

"""Mutations of good requests, and what may come of each: never a 5xx, and never another meaning without a word.

What can be checked of a meaning, at temperature 0 with a model whose answers depend on every token of the prompt:

- null is "not given": the answer is the one without the field, or both are refused.
- A value of another type is refused, or it is read as the value that was meant: the answer is the original's.
- A key that is there twice counts once, and it is the last, as JSON readers have it.
- Results of tools in another order are matched by id: the answer is the original's.
- Messages in another order reach the prompt in that order.
- An error is JSON, names the field, and tells nothing of the server's insides.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from raw_http import LEAKS

Site = tuple[str | int, ...]

# What differs between two answers to one request: names, times, and what the prefix cache had.
_VOLATILE = {
    "id", "created", "created_at", "completed_at", "request_id", "item_id", "call_id", "response_id", "timings",
    "tool_call_id", "total_duration", "prompt_eval_duration", "eval_duration", "cached_tokens",
    "cache_read_input_tokens", "cache_creation_input_tokens", "tokens_cached",
}  # fmt: skip
_STREAMED = {
    "content", "text", "delta", "arguments", "partial_json", "thinking", "response", "finish_reason", "stop_reason",
}  # fmt: skip
# JSON of the user's own, where null and every type have a meaning.
_OPAQUE = {
    "parameters",
    "arguments",
    "format",
    "input_schema",
    "schema",
    "metadata",
    "chat_template_kwargs",
    "logit_bias",
}
# Members that may have one of several types, each with a meaning of its own.
_SEVERAL_TYPES = {
    "prompt", "input", "content", "system", "stop", "tool_choice", "output", "arguments", "response_format", "tokens",
    "logprobs", "truncation", "reasoning", "thinking", "text", "dimensions", "user", "seed", "echo",
}  # fmt: skip
# Without them every answer may be another one.
_RANDOM = {"seed", "temperature"}
_VALUES: tuple[Any, ...] = (7, 2.5, True, "x", [], {}, [[]], {"a": 1}, ["x"], [None])


@dataclass(frozen=True)
class Good:
    """A request that is answered."""

    path: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Mutation:
    """A request made from a good one.

    Attributes:
        kind: "drop", "null", "retype", "repeat", "twice" (a list's item) or "shuffle".
        site: where, as keys and indices.
        body: of the request; `repeated` is a pair (key, value) to write again at the end of the object at `site`.
    """

    good: Good
    kind: str
    site: Site
    body: Any
    repeated: tuple[str, Any] | None = None


@dataclass
class Answer:
    """What came back, without what differs between two answers to one request."""

    status: int
    value: Any = field(repr=False)
    text: str = field(repr=False)

    def same(self, other: Answer) -> bool:
        """Both refused, or both answered alike."""
        if self.status >= 400 or other.status >= 400:
            return self.status >= 400 and other.status >= 400
        return bool(self.value == other.value)


def mutations(goods: list[Good], seed: int, count: int) -> Iterator[Mutation]:
    """`count` mutations, the same ones for a seed."""
    rng = random.Random(seed)
    makers = (_drop, _null, _null, _retype, _retype, _retype, _repeat, _twice, _shuffle)
    while count:
        made = rng.choice(makers)(rng.choice(goods), rng)
        if made is not None:
            count -= 1
            yield made


class Fuzzer:
    """Sends mutations and says what is wrong with the answers."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._known: dict[tuple[str, bytes], Answer] = {}

    def findings(self, mutation: Mutation) -> list[str]:
        """What the answer to a mutation should not be; empty if all is well."""
        answer = self._ask(mutation.good.path, _encode(mutation))
        if answer.status >= 500 or answer.status == 0:
            return [f"status {answer.status}: {answer.text[:200]}"]
        found = _error_findings(mutation, answer) if answer.status >= 400 else []
        checks = {
            "null": self._null,
            "retype": self._retyped,
            "repeat": self._repeated,
            "shuffle": self._shuffled,
        }
        return found + (checks[mutation.kind](mutation, answer) if mutation.kind in checks else [])

    def _null(self, mutation: Mutation, answer: Answer) -> list[str]:
        if mutation.site[-1] in _RANDOM:
            return []
        if isinstance(mutation.site[-1], int):
            return [] if answer.status >= 400 else ["null in a list is taken"]
        without = self._plain(mutation.good.path, _without(mutation.good.body, mutation.site))
        return [] if answer.same(without) else [f"null: {answer.status}, not given: {without.status}"]

    def _retyped(self, mutation: Mutation, answer: Answer) -> list[str]:
        if answer.status >= 400 or _SEVERAL_TYPES & set(map(str, mutation.site[-2:])):
            return []
        original = self._plain(mutation.good.path, mutation.good.body)
        return [] if answer.same(original) else [f"taken as {_at(mutation.body, mutation.site)!r:.60}: another answer"]

    def _repeated(self, mutation: Mutation, answer: Answer) -> list[str]:
        assert mutation.repeated is not None
        if mutation.repeated[0] in _RANDOM:
            return []
        last = _replaced(mutation.body, (*mutation.site, mutation.repeated[0]), mutation.repeated[1])
        return [] if answer.status >= 400 or answer.same(self._plain(mutation.good.path, last)) else ["not the last"]

    def _shuffled(self, mutation: Mutation, answer: Answer) -> list[str]:
        if _only_results_moved(mutation):
            original = self._plain(mutation.good.path, mutation.good.body)
            return [] if answer.same(original) else ["results of tools are not matched by id"]
        if answer.status >= 400 or not mutation.good.path.endswith("/chat/completions"):
            return []
        rendered = self._plain(mutation.good.path + "/render", mutation.body)
        others = [m for m in mutation.body["messages"] if _result_id(m) is None]  # results go to their calls
        texts = [m["content"] for m in others if isinstance(m.get("content"), str)]
        at = [rendered.value["prompt"].find(text) for text in texts if text]
        return [] if at == sorted(at) and -1 not in at else ["messages are in another order in the prompt"]

    def _plain(self, path: str, body: Any) -> Answer:
        return self._ask(path, json.dumps(body).encode())

    def _ask(self, path: str, data: bytes) -> Answer:
        if (path, data) not in self._known:
            response = self._client.post(path, content=data, headers={"content-type": "application/json"})
            self._known[path, data] = Answer(response.status_code, _value(response), response.text)
        return self._known[path, data]


def _error_findings(mutation: Mutation, answer: Answer) -> list[str]:
    found = [f"tells {word!r}: {answer.text[:200]}" for word in LEAKS if word in answer.text]
    error = answer.value.get("error") if isinstance(answer.value, dict) else None
    if isinstance(error, str):  # Ollama's form
        error = {"message": error}
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return [*found, f"not an error in JSON: {answer.text[:200]}"]
    said = f"{error['message']} {error.get('param')}"
    names = [str(part) for part in mutation.site if isinstance(part, str)]
    if mutation.kind in ("null", "retype") and names and not any(name in said for name in names):
        found.append(f"does not name the field: {said[:200]}")
    return found


def _value(response: httpx.Response) -> Any:
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        texts: dict[str, str] = {}
        for line in response.text.splitlines():
            if line.startswith("data: {"):
                _collect(json.loads(line[6:]), texts)
        return texts
    if response.headers.get("content-type") == "application/x-ndjson":
        lines: dict[str, str] = {}
        for line in response.text.splitlines():
            _collect(json.loads(line), lines)
        return lines
    try:
        return _stripped(response.json())
    except ValueError:
        return response.text


def _collect(value: Any, texts: dict[str, str], place: str = "") -> None:
    """Text of a stream by index and key, joined: pieces may be cut anywhere, and choices come in any order."""
    if isinstance(value, dict) and "index" in value:
        place = f"{place}/{value['index']}"
    for key, part in value.items() if isinstance(value, dict) else ((None, item) for item in value):
        if isinstance(part, str) and key in _STREAMED:
            texts[f"{place}/{key}"] = texts.get(f"{place}/{key}", "") + part
        elif isinstance(part, (dict, list)):
            _collect(part, texts, place)


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        if "cache_read_input_tokens" in value:  # Anthropic counts cached tokens apart
            value = {**value, "input_tokens": value["input_tokens"] + value["cache_read_input_tokens"]}
        return {key: _stripped(part) for key, part in value.items() if key not in _VOLATILE}
    return [_stripped(part) for part in value] if isinstance(value, list) else value


def _sites(value: Any, site: Site = ()) -> Iterator[Site]:
    """Every member and item, those within the user's own JSON left out."""
    pairs: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in pairs:
        yield (*site, key)
        arguments = key == "input" and value.get("type") == "tool_use"
        if key not in _OPAQUE and not arguments:
            yield from _sites(part, (*site, key))


def _at(value: Any, site: Site) -> Any:
    for key in site:
        value = value[key]
    return value


def _replaced(body: Any, site: Site, value: Any) -> Any:
    changed = copy.deepcopy(body)
    _at(changed, site[:-1])[site[-1]] = value
    return changed


def _without(body: Any, site: Site) -> Any:
    changed = copy.deepcopy(body)
    del _at(changed, site[:-1])[site[-1]]
    return changed


def _drop(good: Good, rng: random.Random) -> Mutation:
    site = rng.choice(list(_sites(good.body)))
    return Mutation(good, "drop", site, _without(good.body, site))


def _null(good: Good, rng: random.Random) -> Mutation:
    site = rng.choice(list(_sites(good.body)))
    return Mutation(good, "null", site, _replaced(good.body, site, None))


def _retype(good: Good, rng: random.Random) -> Mutation | None:
    site = rng.choice(list(_sites(good.body)))
    old, new = _at(good.body, site), rng.choice(_VALUES)
    if type(new) is type(old) or (isinstance(old, float) and type(new) is int):
        return None
    return Mutation(good, "retype", site, _replaced(good.body, site, new))


def _repeat(good: Good, rng: random.Random) -> Mutation | None:
    site = rng.choice([site for site in _sites(good.body) if isinstance(site[-1], str)])
    key, value = site[-1], rng.choice([_at(good.body, site), rng.choice(_VALUES), None])
    return Mutation(good, "repeat", site[:-1], good.body, (str(key), value))


def _twice(good: Good, rng: random.Random) -> Mutation | None:
    lists = [site for site in _sites(good.body) if isinstance(_at(good.body, site), list) and _at(good.body, site)]
    if not lists:
        return None
    site = rng.choice(lists)
    items = [*_at(good.body, site)]
    items.insert(rng.randrange(len(items) + 1), rng.choice(items))
    return Mutation(good, "twice", site, _replaced(good.body, site, items))


def _shuffle(good: Good, rng: random.Random) -> Mutation | None:
    lists = [site for site in _sites(good.body) if site[-1] in ("messages", "input", "content")]
    lists = [site for site in lists if isinstance(_at(good.body, site), list) and len(_at(good.body, site)) > 1]
    if not lists:
        return None
    site = rng.choice(lists)
    items = [*_at(good.body, site)]
    results = [index for index, item in enumerate(items) if _result_id(item) is not None]
    if results and rng.random() < 0.5:
        order = rng.sample(results, len(results))
        items = [items[order[results.index(i)]] if i in results else item for i, item in enumerate(items)]
    else:
        rng.shuffle(items)
    return Mutation(good, "shuffle", site, _replaced(good.body, site, items))


def _result_id(item: Any) -> Any:
    """The id of the call that a tool's result belongs to; None for anything else."""
    if not isinstance(item, dict):
        return None
    if item.get("role") == "tool" or item.get("type") in ("function_call_output", "tool_result"):
        return item.get("tool_call_id") or item.get("call_id") or item.get("tool_use_id")
    return None


def _only_results_moved(mutation: Mutation) -> bool:
    before, after = _at(mutation.good.body, mutation.site), _at(mutation.body, mutation.site)
    return all(a == b or (_result_id(a) and _result_id(b)) for a, b in zip(before, after, strict=True))


def _encode(mutation: Mutation) -> bytes:
    if mutation.repeated is None:
        return json.dumps(mutation.body).encode()
    key, value = mutation.repeated
    mark = "a key to be written again"
    target = _at(mutation.body, mutation.site)
    marked = {**target, mark: value}
    body = _replaced(mutation.body, mutation.site, marked) if mutation.site else marked
    return json.dumps(body).replace(json.dumps(mark), json.dumps(key)).encode()

"""What a grammar costs inside a decode step: accept a token, find what is forced, compute the mask of the next one.

    python benchmarks/grammar.py
    python benchmarks/grammar.py --model starter --steps 300 --seeds 8 --json

Each grammar is followed with the model's own vocabulary along seeded walks over tokens that it allows: a third of the
tokens are any that fit, a third are short ones (they close strings and lists), a third continue an ordinary text where
that fits. No weights are loaded. Times are milliseconds of one thread, wall clock and processor time; on a shared
machine the wall clock is an upper bound. They are set beside the shortest possible step of the 9B shape in int4: all
its weights, read at this machine's bandwidth. Hostile grammars are made to be slow and do not count in "all".
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import harness
from glm4.benchmark import read_bandwidth
from glm4.chat.call_grammar import callables
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.engine.grammar import GrammarState
from glm4.engine.protocol import TokenConstraint
from glm4.errors import GrammarError, InvalidRequestError
from glm4.hub import resolve
from glm4.model.precision import PRECISIONS, weight_nbytes
from glm4.model.shapes import SHAPES
from glm4.requests.grammar_compiler import GrammarCompiler
from glm4.requests.processor import Processor
from glm4.sampling_params import StructuredOutputs

SHARE = 0.02  # of a step that the 99th percentile may take
TEXT = (
    'The order of Ms Miller, "urgent", came on 2024-05-03 at 12:30: two breads (3.20 each), one milk, from Berlin to '
    "https://example.org/a?b=c. 北京今天的天气很好。 def add(a, b): return a + b\n"
)
COLORS = ("red", "green", "blue", "dark", "light", "pale", "deep", "north", "south", "left", "right", "small", "large")
WORDS = (*COLORS, "fast", "slow", "old", "new", "first", "last")


def _object(properties: Mapping[str, Any], *, optional: bool = False) -> dict[str, Any]:
    required = [] if optional else list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _names(count: int) -> list[str]:
    return [f"{WORDS[i % 19]}_{WORDS[i // 19 % 19]}_{i}" for i in range(count)]


_TEXT, _NUMBER = {"type": "string"}, {"type": "number"}
_ADDRESS = _object({"street": _TEXT, "zip": {"type": "string", "pattern": "^[0-9]{5}(-[0-9]{4})?$"}, "country": _TEXT})
_LINE = _object({"article": {"enum": _names(12)}, "count": {"type": "integer", "minimum": 1, "maximum": 99}})
INVOICE = _object(
    {
        "customer": {"type": "string", "maxLength": 60},
        "date": {"type": "string", "format": "date"},
        "address": _ADDRESS,
        "lines": {"type": "array", "items": _LINE, "minItems": 1, "maxItems": 20},
        "paid": {"type": ["boolean", "null"]},
    }
)
TREE = {"$defs": {"tree": {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/tree"}, _NUMBER, _TEXT]}}}}
FORMATS = ("date-time", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
SHAPES_OF_EVENTS = [_object({"kind": {"const": name}, name: _NUMBER, "note": _TEXT}) for name in _names(40)]
ALL_TYPES = {"type": "array", "items": {}, "minItems": 3}

SCHEMAS: dict[str, dict[str, Any]] = {
    "invoice: nested, patterns, bounds": INVOICE,
    "any JSON object": {"type": "object"},
    "array of any JSON": ALL_TYPES,
    "enum of 2,000": _object({"value": {"enum": _names(2000)}, "other": {"enum": _names(2000)}}),
    "recursive array": {**TREE, "$ref": "#/$defs/tree"},
    "100 optional properties": _object(dict.fromkeys(_names(100), _TEXT), optional=True),
    "anyOf 40 objects": {"type": "array", "items": {"anyOf": SHAPES_OF_EVENTS}, "minItems": 4},
    "formats": _object({name: {"type": "string", "format": name} for name in FORMATS}),
    "string of 200 to 400": _object({"text": {"type": "string", "minLength": 200, "maxLength": 400}}),
    "string of at most 20,000": _object({"text": {"type": "string", "maxLength": 20_000}}),
    "pattern with alternatives": _object({"text": {"type": "string", "pattern": "^(.*foo.*|.*bar.*){1,4}[a-z]+$"}}),
    "numbers in ranges": {"type": "array", "items": {"type": "number", "minimum": -12.5, "maximum": 9999.75}},
}
EXPRESSIONS = {
    "telephone": r"\+?[0-9]{1,3} \([0-9]{2,5}\) [0-9]{3,8}(-[0-9]{1,4})?",
    "e-mail": r"[A-Za-z0-9._%+-]{1,64}@([A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}",
    "prose in sentences": r"([A-Z][a-z]*( [a-z]+){2,30}[.!?] ){3,20}",
    "letters of any script": r"(\p{L}{1,40} ){5,200}",
    "exponential for backtrackers": "(x+x+)+y",
    "nested counts": "((a{0,50}b?){0,50}c?){0,50}",
    "300 behind an a or b": r"(.|\n)*(a|b)(.|\n){300}",
    "12 behind an a": r"(.|\n)*a(.|\n){12}",
    "20 words in any order": f"(({'|'.join(WORDS)}) ?)*",
    "contains one of 200": rf"(.|\n)*({'|'.join(_names(200))})(.|\n)*",
    "not too many vowels": r"([^aeiou]*[aeiou]){0,60}[^aeiou]*",
    "two intervals": r"(.{0,80}foo.{0,80}bar){1,6}",
}
GRAMMARS = {
    "arithmetic": 'start: sum\nsum: product (("+" | "-") product)*\nproduct: atom (("*" | "/") atom)*\n'
    'atom: /[0-9]+(\\.[0-9]+)?/ | NAME | "(" sum ")" | NAME "(" sum ("," sum)* ")"\nNAME: /[a-z_][a-z_0-9]{0,30}/',
    "SQL": 'start: "SELECT " columns " FROM " NAME (" WHERE " test (" AND " test)*)? (" ORDER BY " NAME)? ";"\n'
    'columns: "*" | NAME (", " NAME)*\ntest: NAME (" = " | " < " | " > " | " LIKE ") value\n'
    "value: NAME | /[0-9]+/ | /'[^'\\n]*'/\nNAME: /[a-zA-Z_][a-zA-Z_0-9]*/",
    "ambiguous lists": 'start: item+\nitem: word | word item | "(" item* ")"\nword: /[a-z]+/ | /[a-z]+[0-9]*/ | /\\w+/',
    "many terminals": "start: (" + " | ".join(f"w{i}" for i in range(300)) + ")+\n"
    + "\n".join(f'w{i}: "{name}" /[a-z]*/ ";"' for i, name in enumerate(_names(300))),
    "lazy until stop": 'start: a "b"\na[stop="xyz"]: /(.|\\n)*/',
}  # fmt: skip
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": f"{WORDS[i]}_tool",
            "parameters": _object({"query": _TEXT, "limit": {"type": "integer", "maximum": 50}, "invoice": INVOICE}),
        },
    }
    for i in range(12)
]


HOSTILE = {
    "every way to split": StructuredOutputs(grammar='start: s\ns: s s | s s s | "a" | "b" | ""'),
    "ambiguous": StructuredOutputs(grammar='start: start start | "a" | "ab" | "b" start "b"'),
    "100 overlapping terminals": StructuredOutputs(
        grammar="start: (" + " | ".join(f"W{i}" for i in range(100)) + ")+\n"
        + "\n".join(f"W{i}: /[a-z]*{chr(97 + i % 26)}[a-z]{{{i % 10}}};?/" for i in range(100))
    ),
    "long words of any script": StructuredOutputs(regex=r"(\P{L}{1,40}\p{L}{1,40}){5,200}"),
    "long words in JSON": StructuredOutputs(
        json=_object({"text": {"type": "string", "pattern": r"^(\p{L}{1,60}[ ,]){10,100}$"}})
    ),
    "1,000 properties": StructuredOutputs(json=_object({name: {**_TEXT, "maxLength": 9} for name in _names(1000)})),
    "18 behind a vowel": StructuredOutputs(regex=r"(.|\n)*[aeiou](.|\n){18}(.|\n)*[xyz](.|\n){18}"),
}  # fmt: skip
COLUMNS = ("tokens", "cut", *(f"{kind} {part}" for kind in ("wall", "processor") for part in ("p50", "p99", "max")))


@dataclass
class Times:
    """Of one grammar, in seconds: an entry for each token.

    Attributes:
        compiled, started: compiling it, and the longest start of a sequence.
        cut: walks that one of the library's limits ended; 1 without tokens is a grammar that is refused.
    """

    grammar: str
    compiled: float = 0.0
    started: float = 0.0
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    cut: int = 0

    def add(self, other: Times) -> None:
        """Count another grammar's in."""
        self.compiled, self.started = max(self.compiled, other.compiled), max(self.started, other.started)
        self.wall += other.wall
        self.processor += other.processor
        self.cut += other.cut

    def row(self) -> dict[str, Any]:
        """Figures in milliseconds."""
        found: dict[str, Any] = {"grammar": self.grammar, "tokens": len(self.wall), "cut": self.cut}
        for name, values in (("wall", self.wall), ("processor", self.processor)):
            parts = np.percentile(values, (50, 99, 100)) * 1e3 if values else ()
            found |= {f"{name} {part}": float(value) for part, value in zip(("p50", "p99", "max"), parts, strict=False)}
        return found | {"start": self.started * 1e3, "compile": self.compiled * 1e3}


class Walker:
    """Follows grammars over one vocabulary.

    Args:
        pieces: the bytes of each id.
        text: ids of an ordinary text.
        steps: the most tokens of a walk.
    """

    def __init__(self, pieces: Sequence[bytes], text: Sequence[int], steps: int) -> None:
        self._short = np.array([0 < len(piece) <= 2 for piece in pieces])
        self._text = text
        self._steps = steps

    def walk(self, constraint: TokenConstraint, seed: int, times: Times) -> None:
        """One sequence; adds to `times` what each of its tokens takes."""
        rng = np.random.default_rng(seed)
        before = time.perf_counter()
        state = GrammarState(constraint, np.empty(0, np.int64))
        times.started = max(times.started, time.perf_counter() - before)
        token: int | None = None
        for _ in range(self._steps):
            wall, processor = time.perf_counter(), time.thread_time()
            mask: NDArray[np.bool_] | None = None
            try:
                if token is not None:
                    state.accept(token)
                state.forced.clear()
                mask = None if state.finished() else state.allowed()
            except GrammarError:
                times.cut += 1
            times.processor.append(time.thread_time() - processor)
            times.wall.append(time.perf_counter() - wall)
            if mask is None:
                return
            token = self._choose(mask, rng)

    def _choose(self, mask: NDArray[np.bool_], rng: np.random.Generator) -> int:
        kind = rng.integers(3)
        if kind == 1 and (mask & self._short).any():
            mask = mask & self._short
        if kind == 2 and (fitting := [token for token in self._text if mask[token]]):
            return int(rng.choice(fitting))
        return int(rng.choice(np.flatnonzero(mask)))


def cases(compiler: GrammarCompiler) -> dict[str, Callable[[], TokenConstraint]]:
    """Name → what compiles the grammar."""
    outputs = {f"schema: {name}": StructuredOutputs(json=schema) for name, schema in SCHEMAS.items()}
    outputs |= {f"regex: {name}": StructuredOutputs(regex=regex) for name, regex in EXPRESSIONS.items()}
    outputs |= {f"lark: {name}": StructuredOutputs(grammar=grammar) for name, grammar in GRAMMARS.items()}
    outputs |= {"choice of 1,000": StructuredOutputs(choice=_names(1000))}
    outputs |= {f"hostile: {name}": grammar for name, grammar in HOSTILE.items()}
    tools, invoice = callables(TOOLS, ()), StructuredOutputs(json=INVOICE)
    raw: dict[str, Callable[[], TokenConstraint]] = {
        name: partial(compiler.raw, given) for name, given in outputs.items()
    }
    return raw | {
        "12 tools, one call or more": partial(compiler.answer, None, tools, parallel=True),
        "12 tools, text free but for calls": partial(compiler.calls, tools),
        "1 of 12 tools": partial(compiler.answer, None, tools[:1], parallel=False),
        "12 tools, or an answer by schema": partial(compiler.answer, invoice, tools, parallel=False),
    }


def measure(model: str, seeds: int, steps: int, wanted: str) -> list[Times]:
    """All grammars whose name holds `wanted`, and "all" of them but the hostile ones."""
    with open_checkpoint(resolve(model)) as checkpoint:
        text, vocab_size = Processor.load(checkpoint), checkpoint.config.vocab_size
    unnamed = set(text.tokenizer.unnamed_ids(vocab_size).tolist())
    pieces = [b"" if i in unnamed else text.tokenizer.token_bytes(i) for i in range(vocab_size)]
    walker = Walker(pieces, text.tokenizer.encode(TEXT), steps)
    compiler = GrammarCompiler(text.tokenizer, vocab_size, text.dialect)
    compiler.raw(StructuredOutputs(choice=["a"]))  # makes the vocabulary
    found, every = [], Times("all")
    for name, make in cases(compiler).items():
        if wanted not in name:
            continue
        harness.progress(name)
        times, hostile, start = Times(name), name.startswith("hostile"), time.perf_counter()
        found.append(times)
        try:
            constraint = make()
        except InvalidRequestError:
            times.cut += 1
            continue
        times.compiled = time.perf_counter() - start
        for seed in range(1 if hostile else seeds):
            walker.walk(constraint, seed, times)
        if not hostile:
            every.add(times)
    harness.progress("")
    return [*found, every]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter", help="whose vocabulary")
    parser.add_argument("--steps", type=int, default=300, help="the most tokens of a walk")
    parser.add_argument("--seeds", type=int, default=8, help="walks through each grammar; 1 through hostile ones")
    parser.add_argument("--only", default="", metavar="TEXT", help="grammars whose name holds this text")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    facts = harness.facts(arguments.seeds)
    facts["rounds"] = f"{arguments.seeds} walks of at most {arguments.steps} tokens through each grammar"
    step = weight_nbytes(SHAPES["glm-4-9b"], PRECISIONS["int4"]) / read_bandwidth() * 1e3
    facts["shortest step of the 9B shape"] = f"{step:.0f} ms; {SHARE:.0%} of it: {step * SHARE:.1f} ms"
    rows = [times.row() for times in measure(arguments.model, arguments.seeds, arguments.steps, arguments.only)]
    if arguments.json:
        print(json.dumps({"facts": facts, "rows": rows}, indent=2))
    else:
        titles = ("grammar", *COLUMNS, "start", "compile")
        cells = ([row.get(title) for title in titles] for row in rows)
        print(harness.bullets(facts), harness.table(titles, cells), sep="\n\n")


if __name__ == "__main__":
    main()

"""Grammars over tokens: what `StructuredOutputs` and tool choice ask for, compiled with llguidance.

The library is loaded with the first grammar; programs without grammars never load it. It sees text as bytes, and forces
only tokens that our tokenizer would produce, so that the model never sees a tokenization it was not trained on.

Hostile grammars: the library bounds the compiled size, the work per step and the nesting depth, matches expressions
without backtracking, and fetches nothing. A grammar that exceeds a bound is refused, or ends the text.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glm4.chat.call_grammar import CallableTool, with_options
from glm4.chat.dialects.table import Dialect
from glm4.engine.protocol import TokenConstraint
from glm4.errors import GrammarError, InvalidRequestError
from glm4.sampling_params import StructuredOutputs
from glm4.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# Number of compiled grammars cached: agents send the same tools with every turn.
_KEPT = 16
# Per matcher, one or two kilobytes each; schemas need hundreds, and some expressions add more with every token.
_MAX_LEXER_STATES = 50_000
_TOO_COMPLEX = "it is too complex"
_NOTHING_FITS = "no text can satisfy this"
_MAX_REASON = 300  # maximum characters of the library's explanation in an error


class GrammarCompiler:
    """Compiles grammars for one vocabulary. Thread-safe.

    Args:
        tokenizer: the checkpoint's.
        vocab_size: rows of the model's vocabulary, including those without a token.
        dialect: says how the model writes calls and answers, and how it ends them.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, dialect: Dialect) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._dialect = dialect
        self._lock, self._making = threading.Lock(), threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._compiled: OrderedDict[str, _Grammar] = OrderedDict()

    def raw(self, outputs: StructuredOutputs) -> TokenConstraint:
        """The constraint of a raw completion.

        Raises:
            InvalidRequestError: it cannot be compiled or enforced; the message says why.
        """
        return self._compile([{"name": "start", **_text_grammar(outputs)}], outputs.param, outputs.param)

    def answer(
        self, outputs: StructuredOutputs | None, tools: Sequence[CallableTool], *, parallel: bool
    ) -> TokenConstraint:
        """The constraint of an answer in a chat: calls of these tools, text in the format of `outputs`, or either.

        Raises:
            InvalidRequestError: it cannot be compiled or enforced; `.param` names the field at fault.
        """
        try:
            return self._answer(outputs, tools, parallel)
        except InvalidRequestError:
            # Find out which part failed; only a refused request pays for this.
            if outputs is not None:
                self.raw(outputs)
            for tool in tools:
                schema = {"name": "start", "json_schema": with_options(tool.schema or {})}
                self._compile([schema], tool.param, f"the parameters of function {tool.name!r}")
            raise

    def _answer(
        self,
        outputs: StructuredOutputs | None,
        tools: Sequence[CallableTool],
        parallel: bool,
    ) -> TokenConstraint:
        lark = self._dialect.answer_grammar(tools, self._tokenizer, parallel=parallel, structured=outputs is not None)
        grammars = [{"name": "start", "lark_grammar": lark}]
        if outputs is not None:
            grammars.append({"name": "answer", **_text_grammar(outputs)})
        blamed = "tools" if outputs is None else outputs.param
        return self._compile(grammars, blamed, blamed)

    def _compile(self, grammars: list[dict[str, Any]], param: str, what: str) -> TokenConstraint:
        try:
            text = json.dumps({"grammars": grammars})
        except RecursionError:
            raise InvalidRequestError(f"{what}: the JSON schema nests too deeply", param=param) from None
        with self._lock:
            if text in self._compiled:
                self._compiled.move_to_end(text)
                return self._compiled[text]
        grammar = _Grammar(self._matcher(text, param, what), self._usable)
        with self._lock:
            self._compiled[text] = grammar
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        return grammar

    def _matcher(self, text: str, param: str, what: str) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(verbose_errors=False, max_lexer_states=_MAX_LEXER_STATES)
        vocabulary = self._library_tokenizer()
        with _panics_as(InvalidRequestError(f"{what}: {_TOO_COMPLEX}", param=param)):
            matcher = LLMatcher(vocabulary, text, log_level=0, limits=limits)
            if not matcher.is_error():
                matcher.compute_bitmask()  # the first mask is the most expensive; copies of the matcher reuse it
            # The mask after the tokens forced at the start shows whether any text fits at all.
            probe = matcher.deep_copy()
            forced = probe.compute_ff_tokens()
            probe.try_consume_tokens(forced)
            if not probe.is_error() and not probe.is_stopped():
                probe.compute_bitmask()
        if probe.is_error():
            raise InvalidRequestError(f"{what}: {_reason(probe.get_error())}", param=param)
        if not self._usable[forced].all() or (probe.is_stopped() and not probe.is_accepting()):
            raise InvalidRequestError(f"{what}: {_NOTHING_FITS}", param=param)
        return matcher

    @property
    def _end_id(self) -> int:
        """The end-of-text token; dialect grammars never name it."""
        added = self._tokenizer.added_tokens
        return next(added[name].id for name in self._dialect.stop_names if name in added)

    @cached_property
    def _usable(self) -> NDArray[np.bool_]:
        """Ids allowed in a text: bool [vocab_size]. Grammars may name others: rows without a token, the end token."""
        usable = np.ones(self._vocab_size, np.bool_)
        usable[self._tokenizer.unnamed_ids(self._vocab_size)] = False
        usable[self._end_id] = False
        return usable

    def _library_tokenizer(self) -> LLTokenizer:
        """The vocabulary in the library's form; built once, in a second or less for 150,000 tokens."""
        from llguidance import LLTokenizer, TokenizerWrapper

        with self._making:
            if self._vocabulary is None:
                vocabulary = _Vocabulary(self._tokenizer, self._vocab_size, self._end_id)
                self._vocabulary = LLTokenizer(TokenizerWrapper(vocabulary))
            return self._vocabulary


class _Vocabulary:
    """The tokenizer interface the library expects: the bytes of every id, and the canonical ids of bytes."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_id: int) -> None:
        unnamed = set(tokenizer.unnamed_ids(vocab_size).tolist())
        self.tokens = [b"" if i in unnamed else tokenizer.token_bytes(i) for i in range(vocab_size)]
        self.special_token_ids = sorted(token.id for token in tokenizer.added_tokens.values())
        self.eos_token_id = end_id
        self.bos_token_id = None
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        ids = self._tokenizer.encode(text.decode("utf-8", "replace"))
        if b"".join(map(self.tokens.__getitem__, ids)) == text:
            return ids
        # A tokenizer that normalizes would spell something other than the grammar's text.
        return self._longest_first(text)

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {piece: i for i, piece in enumerate(self.tokens) if piece and i not in special}

    def _longest_first(self, text: bytes) -> list[int]:
        ids: list[int] = []
        at = 0
        while at < len(text):
            size = next((n for n in range(min(32, len(text) - at), 0, -1) if text[at : at + n] in self._ids), 0)
            if not size:
                break  # the vocabulary cannot encode the rest
            ids.append(self._ids[text[at : at + size]])
            at += size
        return ids


def _text_grammar(outputs: StructuredOutputs) -> dict[str, Any]:
    """The library's description of one grammar."""
    if outputs.json is not None or outputs.json_object:
        return {"json_schema": with_options(outputs.schema)}
    if outputs.choice is not None:
        return {"lark_grammar": "start: " + " | ".join(json.dumps(text) for text in outputs.choice)}
    if outputs.regex is not None:
        from llguidance import LLMatcher

        lark: str = json.loads(LLMatcher.grammar_from_regex(outputs.regex))["grammars"][0]["lark_grammar"]
        return {"lark_grammar": lark}
    return {"lark_grammar": outputs.grammar}


def _reason(error: str) -> str:
    """The library's explanation, in a form that helps the author of the grammar."""
    unknown = error.removeprefix("Unimplemented keys: ")
    if unknown != error:
        try:
            keys = ", ".join(map(repr, json.loads(unknown.splitlines()[0])))
        except ValueError:
            keys = unknown
        return f"JSON schema keywords that cannot be enforced: {keys}"
    if error.startswith("NoExtension"):
        return _NOTHING_FITS
    return error.replace("<non-verbose/>", "").strip()[:_MAX_REASON]


@contextlib.contextmanager
def _panics_as(error: Exception) -> Iterator[None]:
    """Turn a library panic, which is not an `Exception`, into `error`: it affects only one request."""
    try:
        yield
    except BaseException as panic:
        if type(panic).__name__ != "PanicException":
            raise
        raise error from None


class _Grammar:
    """A `TokenConstraint`: a matcher kept in its initial state and copied for each sequence."""

    def __init__(self, matcher: LLMatcher, usable: NDArray[np.bool_]) -> None:
        self._matcher = matcher
        self._usable = usable
        self._lock = threading.Lock()

    def start(self) -> _Matcher:
        """See `TokenConstraint`."""
        with self._lock:
            return _Matcher(self._matcher.deep_copy(), self._usable)


class _Matcher:
    """See `TokenMatcher`."""

    def __init__(self, matcher: LLMatcher, usable: NDArray[np.bool_]) -> None:
        self._matcher = matcher
        self._usable = usable

    def accept(self, token_ids: Sequence[int]) -> int:
        """See `TokenMatcher`."""
        with self._checked():
            return self._matcher.try_consume_tokens(list(token_ids))

    def forced(self) -> list[int]:
        """See `TokenMatcher`."""
        with self._checked():
            tokens = [] if self._matcher.is_stopped() else self._matcher.compute_ff_tokens()
        return list(itertools.takewhile(self._usable.__getitem__, tokens))

    def allowed(self) -> NDArray[np.bool_]:
        """See `TokenMatcher`."""
        with self._checked():
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, bitorder="little")[: len(self._usable)].view(np.bool_)
        mask &= self._usable
        return mask

    def is_complete(self) -> bool:
        """See `TokenMatcher`."""
        with self._checked():
            return self._matcher.is_accepting()

    def is_finished(self) -> bool:
        """See `TokenMatcher`."""
        with self._checked():
            return self._matcher.is_stopped()

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        with _panics_as(GrammarError(_TOO_COMPLEX)):
            yield
        if self._matcher.is_error():
            raise GrammarError(_reason(self._matcher.get_error()))

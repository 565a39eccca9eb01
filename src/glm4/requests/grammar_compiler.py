"""Grammars over tokens: what `StructuredOutputs` and tool choice ask for, compiled with llguidance.

The library is loaded with the first grammar; programs without grammars never load it. It sees text as bytes, and forces
only tokens that our tokenizer would produce, so that the model never sees a tokenization it was not trained on.

Hostile grammars: what is not known to be harmless is tried in a helper process first (`grammar_guard.py`). The library
bounds the work per step, matches expressions without backtracking, and fetches nothing. A grammar that exceeds a bound
is refused, or ends the text.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glm4.chat.call_grammar import CallableTool, with_options
from glm4.chat.dialects.table import Dialect
from glm4.engine.protocol import TokenConstraint
from glm4.errors import InvalidRequestError
from glm4.requests.declared_grammar import form_schema
from glm4.requests.grammar_guard import PLAIN_CHARACTERS, STACK_BYTES, GrammarGuard, is_plain, is_plain_form
from glm4.requests.grammar_matcher import NOTHING_FITS, TOO_COMPLEX, Grammar, panics_as, reason
from glm4.requests.grammar_trial import MAX_LEXER_STATES, describe
from glm4.sampling_params import StructuredOutputs
from glm4.system.helper import call_with_stack
from glm4.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

# Number of compiled grammars cached: agents send the same tools with every turn.
_KEPT = 16


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
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()
        self._guard = GrammarGuard(lambda: describe(*self._described))

    def raw(self, outputs: StructuredOutputs) -> TokenConstraint:
        """The constraint of a raw completion.

        Raises:
            InvalidRequestError: it cannot be compiled or enforced; the message says why.
        """
        schema = form_schema(outputs)
        grammars = [{"name": "start", **_text_grammar(outputs, schema)}]
        return self._compile(grammars, outputs.param, outputs.param, plain=lambda: is_plain_form(outputs, schema))

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
                what = f"the parameters of function {tool.name!r}"
                self._compile([schema], tool.param, what, plain=partial(is_plain, tool.schema or {}))
            raise

    def close(self) -> None:
        """End the process that tries grammars, if there is one."""
        self._guard.close()

    def _answer(
        self,
        outputs: StructuredOutputs | None,
        tools: Sequence[CallableTool],
        parallel: bool,
    ) -> TokenConstraint:
        lark = self._dialect.answer_grammar(tools, self._tokenizer, parallel=parallel, structured=outputs is not None)
        grammars = [{"name": "start", "lark_grammar": lark}]
        schema = {} if outputs is None else form_schema(outputs)
        if outputs is not None:
            grammars.append({"name": "answer", **_text_grammar(outputs, schema)})

        def plain() -> bool:
            form = outputs is None or is_plain_form(outputs, schema)
            return form and all(is_plain(tool.schema or {}) for tool in tools)

        blamed = "tools" if outputs is None else outputs.param
        return self._compile(grammars, blamed, blamed, plain=plain)

    def _compile(
        self, grammars: list[dict[str, Any]], param: str, what: str, *, plain: Callable[[], bool]
    ) -> TokenConstraint:
        """Compile, or take what is compiled already.

        Args:
            plain: whether the parts are known to be harmless, as they are unless together they are large.
        """
        text = json.dumps({"grammars": grammars})
        with self._lock:
            if text in self._compiled:
                self._compiled.move_to_end(text)
                return self._compiled[text]
        harmless = len(text) <= 2 * PLAIN_CHARACTERS and plain()
        why_not = None if harmless else self._guard.why_not(text)
        if why_not is not None:
            raise InvalidRequestError(f"{what}: {why_not}", param=param)
        grammar = call_with_stack(lambda: self._grammar(text, param, what), STACK_BYTES)
        with self._lock:
            self._compiled[text] = grammar
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        return grammar

    def _grammar(self, text: str, param: str, what: str) -> Grammar:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(verbose_errors=False, max_lexer_states=MAX_LEXER_STATES)
        vocabulary = self._library_tokenizer()
        with panics_as(InvalidRequestError(f"{what}: {TOO_COMPLEX}", param=param)):
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
            raise InvalidRequestError(f"{what}: {reason(probe.get_error())}", param=param)
        if not self._usable[forced].all() or (probe.is_stopped() and not probe.is_accepting()):
            raise InvalidRequestError(f"{what}: {NOTHING_FITS}", param=param)
        return Grammar(matcher, self._usable, forced, probe)

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
                vocabulary = _Vocabulary(self._tokenizer, *self._described)
                self._vocabulary = LLTokenizer(TokenizerWrapper(vocabulary))
            return self._vocabulary

    @property
    def _described(self) -> tuple[list[bytes], list[int], int]:
        """The vocabulary: bytes of each id, special ids, and the id that ends a text."""
        unnamed = set(self._tokenizer.unnamed_ids(self._vocab_size).tolist())
        tokens = [b"" if i in unnamed else self._tokenizer.token_bytes(i) for i in range(self._vocab_size)]
        return tokens, sorted(token.id for token in self._tokenizer.added_tokens.values()), self._end_id


class _Vocabulary:
    """The tokenizer interface the library expects: the bytes of every id, and the canonical ids of bytes."""

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], special: list[int], end_id: int) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special, end_id
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


def _text_grammar(outputs: StructuredOutputs, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The library's description of one grammar; `schema` is the form's enforceable schema."""
    if outputs.json is not None or outputs.json_object:
        return {"json_schema": with_options(schema)}
    if outputs.choice is not None:
        return {"lark_grammar": "start: " + " | ".join(json.dumps(text) for text in outputs.choice)}
    if outputs.regex is not None:
        from llguidance import LLMatcher

        lark: str = json.loads(LLMatcher.grammar_from_regex(outputs.regex))["grammars"][0]["lark_grammar"]
        return {"lark_grammar": lark}
    return {"lark_grammar": outputs.grammar}

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
from typing import Any

from glm4.chat.call_grammar import CallableTool, with_options
from glm4.chat.dialects.table import Dialect
from glm4.engine.protocol import TokenConstraint
from glm4.errors import InvalidRequestError
from glm4.grammars.matcher import Grammar
from glm4.grammars.trial import describe
from glm4.grammars.vocabulary import GrammarVocabulary
from glm4.requests.declared_grammar import form_schema
from glm4.requests.grammar_guard import PLAIN_CHARACTERS, STACK_BYTES, GrammarGuard, is_plain, is_plain_form
from glm4.sampling_params import StructuredOutputs
from glm4.system.helper import call_with_stack
from glm4.tokenizer import Tokenizer

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
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()
        self._guard = GrammarGuard(lambda: describe(*self._vocabulary.described))

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
            self._check_tools(tools)
            raise

    def calls(self, tools: Sequence[CallableTool]) -> TokenConstraint:
        """The constraint of an answer that is free but for its calls.

        Raises:
            InvalidRequestError: as `answer`.
        """
        lark = self._dialect.free_grammar(tools, self._tokenizer)
        own_ends = self._dialect.call_ending_ids(self._tokenizer)
        grammars = [{"name": "start", "lark_grammar": lark}]
        try:
            return self._compile(grammars, "tools", "tools", plain=partial(_are_plain, tools), own_ends=own_ends)
        except InvalidRequestError:
            self._check_tools(tools)
            raise

    def _check_tools(self, tools: Sequence[CallableTool]) -> None:
        """Compile each tool's schema by itself: raises for the one at fault."""
        for tool in tools:
            schema = {"name": "start", "json_schema": with_options(tool.schema or {})}
            what = f"the parameters of function {tool.name!r}"
            self._compile([schema], tool.param, what, plain=partial(is_plain, tool.schema or {}))

    @cached_property
    def _vocabulary(self) -> GrammarVocabulary:
        added = self._tokenizer.added_tokens
        end_id = next(added[name].id for name in self._dialect.stop_names if name in added)
        return GrammarVocabulary(self._tokenizer, self._vocab_size, end_id)

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
            return (outputs is None or is_plain_form(outputs, schema)) and _are_plain(tools)

        blamed = "tools" if outputs is None else outputs.param
        return self._compile(grammars, blamed, blamed, plain=plain)

    def _compile(
        self,
        grammars: list[dict[str, Any]],
        param: str,
        what: str,
        *,
        plain: Callable[[], bool],
        own_ends: frozenset[int] = frozenset(),
    ) -> TokenConstraint:
        """Compile, or take what is compiled already.

        Args:
            plain: whether the parts are known to be harmless, as they are unless together they are large.
            own_ends: see `TokenConstraint`.
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
        grammar = call_with_stack(lambda: self._vocabulary.compile(text, param, what, own_ends), STACK_BYTES)
        with self._lock:
            self._compiled[text] = grammar
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        return grammar


def _are_plain(tools: Sequence[CallableTool]) -> bool:
    return all(is_plain(tool.schema or {}) for tool in tools)


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

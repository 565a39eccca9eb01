"""Grammars as source text, for backends that compile them: they allow the same answers as `grammar_compiler`.

A chat answer is more than what the caller described: the dialect adds a prefix, or writes calls instead. All of it
becomes one grammar in llguidance's dialect of Lark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from glm4.chat.call_grammar import CallableTool, json_rule, literal
from glm4.chat.dialects.table import Dialect
from glm4.chat.json_schemas import enforceable
from glm4.sampling_params import StructuredOutputs
from glm4.tokenizer import Tokenizer


class DeclaredGrammars:
    """Describes grammars for one vocabulary. Thread-safe; the counterpart of `GrammarCompiler`."""

    def __init__(self, tokenizer: Tokenizer, dialect: Dialect) -> None:
        self._tokenizer = tokenizer
        self._dialect = dialect

    def raw(self, outputs: StructuredOutputs) -> StructuredOutputs:
        """The description of a raw completion: the caller's own, or what can be enforced of its schema."""
        return outputs if outputs.json is None else replace(outputs, json=form_schema(outputs))

    def answer(
        self, outputs: StructuredOutputs | None, tools: Sequence[CallableTool], *, parallel: bool
    ) -> StructuredOutputs:
        """The description of an answer in a chat; see `GrammarCompiler.answer`."""
        lark = self._dialect.answer_grammar(tools, self._tokenizer, parallel=parallel, structured=outputs is not None)
        lark = self._without_stop_ids(lark)
        if outputs is None:
            return StructuredOutputs(grammar=lark, param="tools")
        lark = lark.replace("@answer", "structured_answer", 1)
        return StructuredOutputs(grammar=f"{lark}structured_answer: {_rule(outputs)}\n", param=outputs.param)

    def calls(self, tools: Sequence[CallableTool]) -> StructuredOutputs:
        """The description of an answer that is free but for its calls; see `GrammarCompiler.calls`.

        The token that ends calls may end any text here, so a line that is a tool's name can become a call without
        arguments.
        """
        lark = self._dialect.free_grammar(tools, self._tokenizer)
        return StructuredOutputs(grammar=self._without_stop_ids(lark), param="tools")

    def _without_stop_ids(self, lark: str) -> str:
        """Without the token that ends a call: it is a stop id, and servers allow those only after the grammar ends."""
        for token in self._dialect.stop_ids(self._tokenizer):
            lark = lark.replace(f" <[{token}]>\n", "\n")
        return lark


def form_schema(outputs: StructuredOutputs) -> dict[str, Any]:
    """The enforceable schema of a form; {} if it has none.

    Raises:
        InvalidRequestError: it cannot be enforced.
    """
    return enforceable(outputs.schema, outputs.error, strict=outputs.strict)


def _rule(outputs: StructuredOutputs) -> str:
    """The right-hand side of a rule for what the caller described."""
    if outputs.json is not None or outputs.json_object:
        return json_rule(form_schema(outputs))
    if outputs.choice is not None:
        return " | ".join(map(literal, outputs.choice))
    if outputs.regex is not None:
        return f"/{_with_slashes_escaped(outputs.regex)}/"
    return f"%lark {{\n{outputs.grammar}\n}}"


def _with_slashes_escaped(regex: str) -> str:
    """The expression escaped for use between slashes."""
    parts = regex.split("\\\\")  # an escaped backslash escapes nothing that follows it
    return "\\\\".join(part.replace("\\/", "/").replace("/", "\\/").replace("\n", "\\n") for part in parts)

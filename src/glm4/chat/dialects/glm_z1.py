"""GLM-Z1-0414 (9B and 32B): GLM-4-0414 that thinks first.

The prompt ends with `<|assistant|>\\n<think>`; the answer is `thinking</think>answer`. Thinking from earlier turns is
not shown to the model again. `<think>` and `</think>` are plain text in this vocabulary.

Not verified: our own template (used only if a checkpoint has none) follows a published copy of the checkpoint's
template; the space after a call's name is taken from its sibling GLM-4-0414. The line breaks around `</think>` in
`loss_mask` follow what the models write, not a published training format.
"""

from __future__ import annotations

from collections.abc import Callable

from glm4.chat.dialects.base import Rendering, Tools
from glm4.chat.dialects.glm4 import OBSERVATION, USER
from glm4.chat.dialects.glm4_0414 import GLM40414Dialect
from glm4.chat.parsers.base import ReasoningParser, StreamParser, new_call_id
from glm4.tokenizer import Tokenizer


class GLMZ1Dialect(GLM40414Dialect):
    """GLM-Z1-9B-0414 and GLM-Z1-32B-0414."""

    name = "glm_z1"
    template_name = "glm_z1"
    answer_opening = call_opening = "\n\n"
    thinking_closing = "</think>"

    def segments(self, rendering: Rendering) -> list[tuple[str, bool]]:
        """Trained: the last message, if it is the model's, with its thinking. Earlier turns no longer have theirs."""
        count = len(rendering.messages)
        last = rendering.messages[-1] if count else {"role": ""}
        if last["role"] != "assistant":
            return [(rendering.text(count, False), False)]
        call = last.get("metadata")
        thinking = f"\n{last['reasoning_content']}" if last.get("reasoning_content") else ""
        answer = f"{call}\n{last['content']}" if call else last["content"]
        written = f"{thinking}\n</think>\n\n{answer}" + (OBSERVATION if call else USER)
        return [(rendering.text(count - 1, True), False), (written, True)]

    def parser(
        self, tools: Tools = (), tokenizer: Tokenizer | None = None, *, call_id: Callable[[], str] = new_call_id
    ) -> StreamParser:
        """See `TemplateDialect.parser`."""
        return ReasoningParser(super().parser(tools, tokenizer, call_id=call_id))

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
from glm4.chat.dialects.glm4 import ASSISTANT, OBSERVATION, USER
from glm4.chat.dialects.glm4_0414 import GLM40414Dialect
from glm4.chat.parsers.base import ReasoningParser, StreamParser, new_call_id
from glm4.tokenizer import Tokenizer


class GLMZ1Dialect(GLM40414Dialect):
    """GLM-Z1-9B-0414 and GLM-Z1-32B-0414."""

    name = "glm_z1"
    template_name = "glm_z1"
    answer_opening = call_opening = "\n\n"
    thinking_closing = "</think>"

    def segments(self, rendering: Rendering) -> list[tuple[str, int | None]]:
        """The model's: the last message, with its thinking. Earlier turns no longer have theirs and are not trained."""
        messages = rendering.messages
        turn = rendering.turns[-1] if messages and messages[-1]["role"] == "assistant" else None
        if turn is None:
            return [(rendering.whole, None)]
        start = rendering.turns.index(turn)  # a message may have become several: its text and its calls
        thinking = f"\n{said}" if (said := messages[start].get("reasoning_content")) else ""
        parts = [f"{m['metadata']}\n{m['content']}" if m.get("metadata") else m["content"] for m in messages[start:]]
        closing = OBSERVATION if messages[-1].get("metadata") else USER
        written = f"{thinking}\n</think>\n\n{ASSISTANT.join(parts)}{closing}"
        return [(rendering.text(start, True), None), (written, turn)]

    def parser(
        self, tools: Tools = (), tokenizer: Tokenizer | None = None, *, call_id: Callable[[], str] = new_call_id
    ) -> StreamParser:
        """See `TemplateDialect.parser`."""
        return ReasoningParser(super().parser(tools, tokenizer, call_id=call_id))

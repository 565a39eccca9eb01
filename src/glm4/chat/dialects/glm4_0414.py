"""GLM-4-0414 (9B and 32B): GLM-4's role tags with a different tool prompt.

Tools come first in a separate system block (without the identity sentence), then system messages, then the turns; the
template writes a space after the name of a call. Verified against the template inside published GGUF files of
GLM-4-0414; the form used in training is not public. This template does not support built-in tools (python,
simple_browser, cogview).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glm4.chat.dialects.base import Tools
from glm4.chat.dialects.glm4 import GLM4Dialect, glm_messages
from glm4.chat.messages import Message


class GLM40414Dialect(GLM4Dialect):
    """GLM-4-9B-0414 and GLM-4-32B-0414."""

    name = "glm4_0414"
    template_name = "glm4_0414"
    builtin_tools = ()
    media = frozenset()  # none of these models sees in this way
    name_ending = " \n"

    def prepare(self, messages: Sequence[Message], tools: Tools) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Tools are a separate variable; those attached to messages are removed."""
        prepared = glm_messages(messages)
        attached = [tool for message in prepared for tool in message.pop("tools", ())]
        return prepared, [*attached, *map(dict, tools)]

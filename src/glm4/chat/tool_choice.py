"""`tool_choice` as OpenAI defines it: whether to call tools, and which ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from glm4.chat.call_grammar import CallableTool
from glm4.errors import InvalidRequestError, shown

Mode = Literal["auto", "none", "required"]
ToolChoiceValue = str | Mapping[str, Any]
"""As OpenAI writes it; see `ToolChoice.read`."""


@dataclass(frozen=True)
class ToolChoice:
    """Whether to call tools.

    Attributes:
        mode: "auto" leaves it to the model; "none" leaves the tools out of the prompt and parses no calls from the
            answer; "required" forces a call.
        name: with "required": the one tool to call, once; None lets the model choose.
    """

    mode: Mode
    name: str | None = None

    @classmethod
    def read(cls, value: ToolChoiceValue | None) -> ToolChoice:
        """Read "none", "auto", "required" or {"type": "function", "function": {"name": …}}; None is "auto".

        Raises:
            InvalidRequestError: anything else; `.param` is "tool_choice".
        """
        if value is None or value == "auto":
            return cls("auto")
        if value == "none":
            return cls("none")
        if value == "required":
            return cls("required")
        function = value.get("function") if isinstance(value, Mapping) and value.get("type") == "function" else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str):
            raise InvalidRequestError(
                'tool_choice must be "none", "auto", "required" or {"type": "function", "function": {"name": …}}',
                param="tool_choice",
            )
        return cls("required", name)

    def among(self, tools: list[CallableTool]) -> list[CallableTool]:
        """The tools of which at least one must be called; empty if none must be.

        Raises:
            InvalidRequestError: there is no such tool; `.param` is "tool_choice".
        """
        if self.mode != "required":
            return []
        chosen = [tool for tool in tools if self.name in (None, tool.name)]
        if not chosen:
            said = "no tools are offered" if self.name is None else f"there is no tool {shown(self.name)}"
            raise InvalidRequestError(f"tool_choice asks for a call, but {said}", param="tool_choice")
        return chosen


AUTO = ToolChoice("auto")
"""The model decides."""

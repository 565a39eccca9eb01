"""Reading tools and tool choice: Anthropic's format → OpenAI's, which the rest of glm4 uses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glm4.api.anthropic.members import check_cache_control, kind, members, one_of, refusal, string
from glm4.chat.tool_choice import ToolChoiceValue
from glm4.errors import shown

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_KNOWN = (
    "name",
    "description",
    "input_schema",
    "type",
    "cache_control",
    "strict",
    "input_examples",
    "eager_input_streaming",
    "defer_loading",
    "allowed_callers",
)


@dataclass(frozen=True)
class Choice:
    """`tool_choice` in OpenAI's terms."""

    tool_choice: ToolChoiceValue = "auto"
    parallel: bool = True


def read_tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Client-side tools, as OpenAI function tools.

    Raises:
        InvalidRequestError: a tool is malformed, or needs Anthropic's servers or training.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise refusal("tools", "must be a list")
    tools = [_tool(f"tools.{index}", tool) for index, tool in enumerate(value)]
    names: set[str] = set()
    for index, tool in enumerate(tools):
        name = tool["function"]["name"]
        if name in names:
            raise refusal(f"tools.{index}.name", f"there is a tool {name!r} already")
        names.add(name)
    return tuple(tools)


def _tool(where: str, raw: Any) -> dict[str, Any]:
    if isinstance(raw, Mapping) and raw.get("type", "custom") not in ("custom", None):
        raise refusal(
            f"{where}.type",
            f"{shown(kind(where, raw))} is a tool of Anthropic's own, which is not available here; describe a tool of"
            " yours with name, description and input_schema",
        )
    given = members(where, raw, _KNOWN, ("name", "input_schema"))
    check_cache_control(where, given)
    name = string(f"{where}.name", given["name"])
    if not _NAME.fullmatch(name):
        raise refusal(f"{where}.name", "must be 1 to 128 letters, digits, underscores or hyphens")
    if not isinstance(given["input_schema"], Mapping):
        raise refusal(f"{where}.input_schema", "must be an object")
    # Every input is streamed as it is generated, so this option changes nothing.
    one_of(f"{where}.eager_input_streaming", given.get("eager_input_streaming", True), [True, False])
    one_of(f"{where}.defer_loading", given.get("defer_loading", False), [False])
    one_of(f"{where}.allowed_callers", given.get("allowed_callers", ["direct"]), [["direct"]])
    function: dict[str, Any] = {"name": name}
    if description := _description(where, given):
        function["description"] = description
    function["parameters"] = given["input_schema"]
    if one_of(f"{where}.strict", given.get("strict", False), [True, False]):
        function["strict"] = True
    return {"type": "function", "function": function}


def _description(where: str, given: Mapping[str, Any]) -> str:
    """The description with the examples appended: prompts have no other field for them."""
    text = string(f"{where}.description", given.get("description", ""))
    examples = given.get("input_examples", [])
    if not isinstance(examples, list) or not all(isinstance(one, Mapping) for one in examples):
        raise refusal(f"{where}.input_examples", "must be a list of objects")
    lines = [f"Example of an input: {json.dumps(one, ensure_ascii=False)}" for one in examples]
    return "\n".join(filter(None, (text, *lines)))


def read_tool_choice(value: Any) -> Choice:
    """Whether tools must be called, and which ones.

    Raises:
        InvalidRequestError: `.param` is a path under tool_choice.
    """
    what = one_of("tool_choice.type", kind("tool_choice", value), ["auto", "any", "tool", "none"])
    known = ["type", *(["name"] if what == "tool" else []), *(["disable_parallel_tool_use"] if what != "none" else [])]
    given = members("tool_choice", value, known, ["name"] if what == "tool" else [])
    alone = one_of(
        "tool_choice.disable_parallel_tool_use", given.get("disable_parallel_tool_use", False), [False, True]
    )
    if what == "tool":
        name = string("tool_choice.name", given["name"])
        return Choice({"type": "function", "function": {"name": name}}, parallel=not alone)
    return Choice({"auto": "auto", "any": "required", "none": "none"}[what], parallel=not alone)

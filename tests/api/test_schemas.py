"""The schema files: valid JSON schema once written out, and in step with what the readers check."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import jsonschema
import pytest

from glm4.api.anthropic.fields import EFFORTS, THINKING
from glm4.api.responses.items import MAX_ITEMS
from glm4.api.schemas import components, schemas
from glm4.chat.dialects.glm4 import RAW_TOOLS
from glm4.chat.parts import AUDIO_FORMATS, DETAILS

APIS = ("anthropic", "openai", "responses", "vllm")


@pytest.mark.parametrize("api", APIS)
def test_every_schema_is_valid_and_used(api: str) -> None:
    for schema in schemas(api).values():
        jsonschema.Draft202012Validator.check_schema(schema)
    with (resources.files("glm4.api") / api / "schemas.json").open(encoding="utf-8") as file:
        written = json.load(file)
    with (
        resources.files("glm4.api") / api / f"{'request' if api in ('responses', 'vllm') else 'fields'}.py"
    ).open() as code:
        source = code.read()
    named = {name.rstrip("?[]") for name in strings(written)}
    for name in written:
        assert name in components(api) or name in named or f'"{name}"' in source, f"{name} is not used"


def strings(schema: Any) -> list[str]:
    if isinstance(schema, (dict, list)):
        return [name for one in (schema.values() if isinstance(schema, dict) else schema) for name in strings(one)]
    return [schema] if isinstance(schema, str) else []


def test_the_short_form() -> None:
    usage = schemas("openai")["Usage"]
    assert usage["additionalProperties"] is False
    assert usage["required"] == list(usage["properties"])
    assert usage["properties"]["prompt_tokens"] == {"type": "integer", "minimum": 0}
    delta = schemas("openai")["ChatDelta"]
    assert delta["required"] == []
    assert delta["properties"]["content"] == {"type": "string"}
    choice = schemas("openai")["ChatChoice"]["properties"]
    assert choice["message"] == {"$ref": "#/components/schemas/ChatMessage"}
    assert choice["logprobs"] == {"anyOf": [{"$ref": "#/components/schemas/ChatLogprobs"}, {"type": "null"}]}
    assert choice["token_ids"] == {"type": "array", "items": {"type": "integer", "minimum": 0}}


def test_the_files_are_in_step_with_the_readers() -> None:
    responses, anthropic = schemas("responses"), schemas("anthropic")
    assert responses["input"]["anyOf"][1]["maxItems"] == MAX_ITEMS
    raw_tool = responses["tools"]["items"]["anyOf"][1]
    assert raw_tool["properties"]["type"]["enum"] == list(RAW_TOOLS)
    assert anthropic["output_config"]["properties"]["effort"]["enum"] == list(EFFORTS)
    kinds = [one["properties"]["type"] for one in anthropic["thinking"]["anyOf"]]
    assert {name for kind in kinds for name in kind.get("enum", [kind.get("const")])} == set(THINKING)
    parts = schemas("openai")["messages"]["items"]["properties"]["content"]["anyOf"][1]["items"]["anyOf"]
    assert parts[3]["properties"]["image_url"]["properties"]["detail"]["enum"] == list(DETAILS)
    assert parts[4]["properties"]["input_audio"]["properties"]["format"]["enum"] == list(AUDIO_FORMATS)
    messages = responses["input"]["anyOf"][1]["items"]["anyOf"][0]["properties"]["content"]["anyOf"][1]["items"]
    assert messages["anyOf"][1]["properties"]["detail"]["enum"] == list(DETAILS)

"""Schemas of every type in pydantic's documentation, and of zod, MCP and OpenAPI tools: all can be enforced.

field_types.json holds what `TypeAdapter(type).json_schema()` gives, by name of the type, and what other tools write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from glm4 import LLM, SamplingParams, StructuredOutputs
from glm4.chat.template.template import default_template
from tiny import write_folder, write_gguf

TYPES: dict[str, Any] = json.loads(Path(__file__).with_name("field_types.json").read_text())
CHAT = [{"role": "user", "content": "hello"}]
# A random model would write numbers and strings for ever.
ENDS = {ord(character): 100.0 - 20 * rank for rank, character in enumerate('"]@}')}
PARAMS = SamplingParams(temperature=1.0, seed=1, max_tokens=400, logit_bias=ENDS)


def model_of(name: str) -> dict[str, Any]:
    """An object with one field of this type, as pydantic writes it."""
    field = {key: value for key, value in TYPES[name].items() if key != "$defs"}
    model = {"type": "object", "title": "Model", "properties": {"v": field}, "required": ["v"]}
    return model | {"additionalProperties": False, "$defs": TYPES[name].get("$defs", {})}


def check(name: str, value: object) -> None:
    """The value fits the schema, `uniqueItems` and nulls aside."""
    model = json.loads(json.dumps(model_of(name)).replace('"uniqueItems": true', '"title": ""'))
    field = model["properties"]["v"]
    model["properties"]["v"] = {key: one for key, one in field.items() if one is not None}
    jsonschema.validate(value, model, jsonschema.Draft202012Validator)


@pytest.fixture(scope="module", params=["glm4", "chatml"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("model")
    if request.param == "glm4":
        path = write_folder(folder, chat_template=None)
    else:
        path = write_gguf(folder / "m.gguf", architecture="qwen2", chat_template=default_template("chatml").source)
    with LLM(str(path), dtype="fp32", max_model_len=4096, max_num_seqs=8) as made:
        yield made


def test_answers_of_every_type(llm: LLM) -> None:
    forms = [PARAMS.replace(structured_outputs=StructuredOutputs(json=model_of(name))) for name in TYPES]
    for name, output in zip(TYPES, llm.chat([CHAT] * len(forms), forms), strict=True):
        (sample,) = output.outputs
        assert sample.finish_reason == "stop", (name, sample.text)
        check(name, json.loads(sample.text))


def test_calls_with_arguments_of_every_type(llm: LLM) -> None:
    for name in TYPES:
        tool = {"type": "function", "function": {"name": "f", "parameters": model_of(name)}}
        (output,) = llm.chat(CHAT, PARAMS, tools=[tool], tool_choice="required", parallel_tool_calls=False)
        (call,) = output.outputs[0].tool_calls
        check(name, json.loads(call.arguments))

"""What models see of a server's tools, when the server is hostile or only careless."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from mcp_helpers import call as call_tool
from mcp_helpers import context, opened, raw, said, sdk

from glm4.agent.mcp.config import McpServer
from glm4.agent.mcp.connection import MAX_TOOLS
from glm4.agent.mcp.functions import MAX_DESCRIPTION, MAX_SCHEMA, MAX_SCHEMAS, Names, functions, prefix
from glm4.agent.mcp.tools import McpTool, open_mcp
from glm4.agent.tool import Function, Invocation
from glm4.agent.toolbox import ToolServices, open_tools
from glm4.chat.call_grammar import callables
from glm4.errors import InvalidRequestError
from glm4.requests.grammar_compiler import GrammarCompiler
from glm4.requests.processor import Processor
from hostile_grammars import HOSTILE
from tiny import VOCAB_SIZE, write_folder

VALID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
PATH = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}

CARELESS: dict[str, Any] = {
    "nothing": {},
    "string": {"type": "string"},
    "list of types": {"type": ["object", "null"], **{k: v for k, v in PATH.items() if k != "type"}},
    "pydantic": {
        "$defs": {"P": {"properties": {"x": {"default": 1, "type": "integer"}}, "title": "P", "type": "object"}},
        "properties": {"p": {"$ref": "#/$defs/P"}, "o": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
        "required": ["p"],
        "type": "object",
    },
    "zod": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {"url": {"type": "string", "format": "uri"}, "n": {"type": "number", "exclusiveMinimum": 0}},
        "required": ["url"],
        "additionalProperties": False,
    },
    "looks around": {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?!x).*$"}}},
    "dangling": {"type": "object", "properties": {"a": {"$ref": "#/components/schemas/Missing"}}},
    "remote": {"type": "object", "properties": {"a": {"$ref": "https://example.org/schema.json"}}},
    "endless": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "impossible": {"type": "object", "properties": {"a": False}, "required": ["a"]},
    "not": {"type": "object", "properties": {"a": {"type": "string", "not": {"const": "x"}}}},
    "conditions": {
        "type": "object",
        **PATH,
        "if": {"properties": {"path": {"const": "/"}}},
        "then": {"required": ["b"]},
    },
    "dependent": {"type": "object", "dependentRequired": {"a": ["b"]}, "properties": {"a": {}, "b": {}}},
    "big number": {"type": "object", "properties": {"a": {"type": "integer", "enum": [2**60]}}},
    "wrong kinds": {"type": "object", "properties": {"a": 7, "b": []}, "required": "a"},
    "wrong type": {"type": "object", "properties": {"a": {"type": "file"}}},
    "wrong enum": {"type": "object", "properties": {"a": {"enum": []}}},
    "wrong items": {"type": "object", "properties": {"a": {"type": "array", "items": "string"}}},
    "no properties": {"type": "object", "properties": None, "required": ["a"]},
    "deep": {"type": "object", "properties": {"a": json.loads('{"type":"array","items":' * 90 + "{}" + "}" * 90)}},
    "wide": {
        "type": "object",
        "properties": {f"p{i}": {"type": "string", "description": "d" * 300} for i in range(300)},
    },
    "marks": {"type": "object", "properties": {"a<|user|>\x1b[2J": {"type": "string", "enum": ["<|observation|>"]}}},
    "guidance": {"type": "object", "x-guidance": {"whitespace_flexible": True}, "properties": {"a": {"type": "null"}}},
    **{name: form["json"] for name, form in HOSTILE.items() if "json" in form and name in ("patterns", "copies")},
}


def listed(name: str, schema: Any = PATH, description: str | None = None) -> types.Tool:
    return types.Tool(name=name, description=description, input_schema=schema)


def seen(*tools: types.Tool) -> list[Function]:
    return functions("files", list(tools), Names("files"))


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrammarCompiler]:
    text = Processor.open(write_folder(tmp_path_factory.mktemp("model")))
    made = GrammarCompiler(text.tokenizer, VOCAB_SIZE, text.dialect)
    yield made
    made.close()


@pytest.mark.parametrize("name", CARELESS)
def test_no_schema_breaks_a_request(compiler: GrammarCompiler, name: str) -> None:
    [function] = seen(listed("tool", CARELESS[name], "About it."))
    assert function.description.startswith("About it.")
    assert len(json.dumps(function.parameters)) <= MAX_SCHEMA + 100
    tools = callables([function.definition()], ())
    assert compiler.answer(None, tools, parallel=True).start().allowed().any()


def test_what_is_ordinary_is_passed_on_and_what_is_not_is_simplified_or_told(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("pydantic", "zod", "list of types"):
        assert seen(listed("tool", CARELESS[name]))[0].parameters == {**CARELESS[name], "type": "object"}
    assert not caplog.records
    [function] = seen(listed("tool", CARELESS["conditions"]))
    assert function.parameters == PATH
    assert "the schema of files__tool cannot be enforced as it is" in caplog.text
    caplog.clear()
    [function] = seen(listed("tool", CARELESS["string"], "Says."))
    assert function.parameters == {"type": "object"}
    assert function.description == 'Says.\nJSON schema of the arguments: {"type": "string"}'
    assert "the arguments of files__tool are not constrained" in caplog.text


def test_all_schemas_of_a_server_together_are_bounded() -> None:
    big = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(300)}}
    found = seen(*(listed(f"tool{i}", big) for i in range(100)))
    assert len(found) == 100
    assert sum(len(json.dumps(function.parameters)) for function in found) < MAX_SCHEMAS + 5000
    assert found[0].parameters == big
    assert found[-1].parameters == {"type": "object"}


def test_names_are_valid_unique_and_stay() -> None:
    hostile = ["a", "a ", "a/b", "a.b", "a b", "读取", "", "x" * 100, "x" * 101, "a\n<|user|>", "__", "-", "a_b"]
    names = Names("files")
    given = [names.of(tool) for tool in hostile]
    assert all(VALID.fullmatch(name) for name in given)
    assert len(set(given)) == len(hostile)
    assert given[0] == "files__a"
    assert [names.tool(name) for name in given] == hostile
    assert [names.of(tool) for tool in reversed(hostile)] == given[::-1]
    assert names.tool("files__zzz") is None


def test_servers_never_share_a_name() -> None:
    taken: dict[str, str] = {}
    for server in ["a", "a_", "a__b", "a_b", "a b", "文件", "搜索", "", "_", "s" * 40, "s" * 41, "a-2", "a"]:
        taken[prefix(server, taken)] = server
    assert len(taken) == 13
    assert all(VALID.fullmatch(name) and "__" not in name and not name.endswith("_") for name in taken)
    tools = ["b", "_b", "__b", "b__c", "-2__b"]
    given = [Names(name).of(tool) for name in taken for tool in tools]
    assert len(set(given)) == len(given)


def test_descriptions_are_cut_and_lose_what_cannot_be_seen() -> None:
    hidden = "Reads\x00 a\x1b[31m file.\u202e\u200b\U000e0041\r\n\ue000\ud800"
    [function] = seen(listed("read", PATH, hidden))
    assert function.description == "Reads a[31m file."
    [function] = seen(listed("read", PATH, "很" * 100_000))
    assert len(function.description) == MAX_DESCRIPTION
    schema = {"type": "object", "properties": {"a": {"type": "string", "description": "x\x07" * 9000}}}
    [function] = seen(listed("read", schema))
    assert len(function.parameters["properties"]["a"]["description"]) == 500


def test_a_tool_that_is_listed_twice_is_there_once() -> None:
    assert len(seen(listed("a"), listed("a"))) == 1


def test_hostile_names_over_the_wire(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(json.dumps([["a b", "\x1b]0;x\x07text"], ["a/b", "x" * 9999], ["a b", "again"], ["", ""]]))
    with opened(raw("names", str(path))) as tool:
        given = [(function.name, len(function.description)) for function in tool.functions]
        assert given == [("raw__a_b", 8), ("raw__a_b_2", MAX_DESCRIPTION), ("raw__", 0)]
        assert said(call_tool(tool, "a_b_2")).startswith("a/b ")


def test_hostile_schemas_over_the_wire(tmp_path: Path, compiler: GrammarCompiler) -> None:
    path = tmp_path / "schemas.json"
    wrong = ("wrong kinds", "no properties")  # MCP refuses a list with these, or with another type than "object"
    small = {name: schema for name, schema in CARELESS.items() if len(json.dumps(schema)) < 5000 and name not in wrong}
    small = {name: schema for name, schema in small.items() if schema.get("type") == "object"}
    path.write_text(json.dumps(small))
    with opened(raw("schemas", str(path))) as tool:
        definitions = [function.definition() for function in tool.functions]
        assert len(definitions) == len(small)
        assert compiler.answer(None, callables(definitions, ()), parallel=True).start().allowed().any()


def test_a_giant_list_and_one_without_end_are_cut(caplog: pytest.LogCaptureFixture) -> None:
    with opened(raw("many")) as tool:
        assert len(tool.functions) == MAX_TOOLS
        assert "offers too many tools" in caplog.text
    with opened(raw("endless_pages")) as tool:
        assert 0 < len(tool.functions) <= MAX_TOOLS


def test_only_allowed_tools_are_offered_and_run() -> None:
    server = raw("normal", tools=("ok", "crash", "hang"), approvals={"ok": "always", "crash": "never"})
    with opened(server) as tool:
        assert [function.name for function in tool.functions] == ["raw__ok", "raw__hang"]
        assert (tool.approval, tool.approval_of("raw__ok"), tool.approval_of("raw__hang")) == ("ask", "always", "ask")
        assert tool.approval_of("raw__slow") == "never"
        assert said(call_tool(tool, "slow")) == "mcp:raw has no function raw__slow"
        assert said(call_tool(tool, "crash")) == "mcp:raw has no function raw__crash"


def test_what_the_user_is_asked_is_one_short_line() -> None:
    with opened(sdk()) as tool:
        text = tool.about(Invocation("1", "sdk__echo", '{"text": "a\\nb\n\x1b[2J' + "x" * 9000))
        assert text.startswith('sdk: sdk__echo {"text": "a\\nb [2Jxxx')
        assert "\n" not in text
        assert "\x1b" not in text
        assert len(text) <= 500


@pytest.mark.parametrize("arguments", ["{", "[]", '"a"', "[" * 100_000])
def test_arguments_that_are_no_object(arguments: str) -> None:
    with opened(raw("normal")) as tool:
        name = tool.functions[0].name
        result = tool.run(Invocation("1", name, arguments), context()[0])
        assert result.failed
        assert said(result).startswith("the arguments ")


def test_a_list_that_is_fresh_costs_no_time() -> None:
    with opened(raw("normal")) as tool:
        first = tool.functions
        began = time.thread_time()
        assert all(tool.functions is first for _ in range(1000))
        assert time.thread_time() - began < 5


def test_opening_starts_nothing() -> None:
    tools = open_mcp([McpServer("a b", "no-such-program"), McpServer("a_b", "no-such-program")])
    assert [tool.name for tool in tools] == ["mcp:a b", "mcp:a_b"]
    assert all(isinstance(tool, McpTool) for tool in tools)
    assert open_mcp([]) == []


def test_the_toolbox_opens_a_server_by_name(tmp_path: Path) -> None:
    path, chosen = tmp_path / "mcp.json", raw("normal")
    entry = {"command": chosen.command, "args": chosen.args}
    path.write_text(json.dumps({"mcpServers": {"o/n/e": {"command": "none"}, "o_n_e": entry}}))
    services = ToolServices(mcp_config=path)
    [tool] = open_tools(["mcp:o_n_e"], services)
    assert isinstance(tool, McpTool)
    try:
        assert said(call_tool(tool, "ok")).startswith("ok ")
        assert tool.functions[0].name == "o_n_e-2__ok", "whatever else is opened"
        assert tool.approval_of("o_n_e-2__ok") == "ask"
    finally:
        tool.close()
    assert [other.name for other in open_tools(["mcp:"], services)] == ["mcp:o/n/e", "mcp:o_n_e"]
    with pytest.raises(InvalidRequestError, match=r"has no server 'three' \(it has: o/n/e, o_n_e\)"):
        open_tools(["mcp:three"], services)

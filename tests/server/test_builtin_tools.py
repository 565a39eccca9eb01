"""Built-in tools of /v1/responses, asked for by OpenAI's client: whole and streamed answers, strictly typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from builtin_tools import KEY, asked, both, kinds, upload, web
from python_conversations import make_bare_home, make_environment_once, needs_sandbox, png_size

CODE: Any = {"type": "code_interpreter", "container": {"type": "auto"}}
SEARCH: Any = {"type": "web_search"}
MCP: Any = {"type": "mcp", "server_label": "tests", "require_approval": "never"}
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a place.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
ASK: Any = {"model": "m", "temperature": 0}


@pytest.fixture
def bare_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The python tool without its packages."""
    monkeypatch.setenv("GLM4_HOME", str(make_bare_home(tmp_path / "home")))


def called(dialect: str, name: str, **arguments: Any) -> str:
    """A call as a dialect writes it."""
    if dialect == "glm4":
        return f"{name}\n{arguments['code'] if name == 'python' else json.dumps(arguments)}"
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@needs_sandbox
@pytest.mark.usefixtures("bare_home")
@pytest.mark.parametrize("dialect", ["glm4", "chatml"])
def test_code_is_run_and_its_state_stays(tmp_path: Path, dialect: str) -> None:
    rules = [
        ("4321", "It is 4321."),
        ("again", called(dialect, "python", code="print(n * 1000 + 321)")),
        ("42", "It is 42."),
        ("What", called(dialect, "python", code="n = 4\nprint(n, n // 2, sep='')")),
    ]
    with asked(tmp_path, rules, "python", dialect=dialect) as (client, live):
        whole = both(live, {**ASK, "input": "What is it?", "tools": [CODE]})
        assert kinds(whole["output"]) == ["code_interpreter_call", "message"]
        call, message = whole["output"]
        assert (call["status"], call["code"]) == ("completed", "n = 4\nprint(n, n // 2, sep='')")
        assert call["outputs"] == [{"type": "logs", "logs": "42\n"}]
        assert message["content"][0]["text"] == "It is 42."
        assert whole["usage"]["output_tokens"] > len("It is 42.")
        # Its variables are there for who knows its name, and for a response that goes on.
        tool: Any = {"type": "code_interpreter", "container": call["container_id"]}
        later = client.responses.create(**ASK, input="And again?", tools=[tool], previous_response_id=whole["id"])
        assert kinds(later.output) == ["code_interpreter_call", "message"]
        again: Any = later.output[0]
        assert again.container_id == call["container_id"]
        assert again.outputs[0].logs == "4321\n"
        other: Any = {**tool, "container": "cntr_other"}
        with pytest.raises(openai.BadRequestError, match="there is no container") as caught:
            client.responses.create(**ASK, input="x", tools=[other])
        assert caught.value.param == "tools"
        # Stored as it was, and gone when deleted.
        assert client.responses.retrieve(whole["id"]).to_dict()["output"] == whole["output"]
        client.responses.delete(whole["id"])
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(whole["id"])


@needs_sandbox
@pytest.mark.usefixtures("bare_home")
def test_pictures_are_outputs_and_other_files_are_cited(tmp_path: Path) -> None:
    png = (
        "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c020000000b4944415478da6364f80f00010501012718"
        "e3660000000049454e44ae426082"
    )
    code = (
        f"open('/mnt/data/dot.png', 'wb').write(bytes.fromhex('{png}'))\nopen('/mnt/data/table.csv', 'w').write('a,b')"
    )
    rules = [("dot.png is offered", "x"), ("table.csv", "Here is table.csv, as asked."), ("Draw", f"python\n{code}")]
    with asked(tmp_path, rules, "python") as (_client, live):
        whole = both(live, {**ASK, "input": "Draw!", "tools": [CODE], "include": ["code_interpreter_call.outputs"]})
        call, message = whole["output"]
        (image,) = [one for one in call["outputs"] if one["type"] == "image"]
        (cited,) = message["content"][0]["annotations"]
        assert cited["type"] == "container_file_citation"
        assert (cited["container_id"], cited["filename"]) == (call["container_id"], "table.csv")
        assert message["content"][0]["text"][cited["start_index"] : cited["end_index"]] == "table.csv"
        with live.client() as http:
            assert http.get(image["url"]).status_code == 401
            key = {"Authorization": f"Bearer {KEY}"}
            shown = http.get(image["url"], headers=key)
            assert (shown.headers["content-type"], shown.content.hex()) == ("image/png", png)
            table = http.get(f"/v1/agent/files/{cited['file_id']}", headers=key)
            assert (table.content, table.headers["content-type"]) == (b"a,b", "application/octet-stream")


@needs_sandbox
@pytest.mark.tools
def test_figures_are_outputs(tmp_path: Path) -> None:
    make_environment_once()
    rules = [
        ("figure 1 is shown", "That is it."),
        ("Plot", "python\nimport matplotlib.pyplot as plt\nplt.plot([1, 3])\nplt.show()"),
    ]
    with asked(tmp_path, rules, "python") as (client, live):
        made = client.responses.create(**ASK, input="Plot it", tools=[CODE])
        call: Any = made.output[0]
        (image,) = [one for one in call.outputs if one.type == "image"]
        with live.client(headers={"Authorization": f"Bearer {KEY}"}) as http:
            assert min(png_size(http.get(image.url).content)) > 300


@needs_sandbox
@pytest.mark.usefixtures("bare_home")
def test_code_that_fails_goes_on_and_files_reach_it(tmp_path: Path) -> None:
    rules = [
        ("seven", "It says seven."),
        ("ZeroDivisionError", "python\nprint(open('/mnt/data/notes.txt').read())"),
        ("Divide", "python\n1 / 0"),
    ]
    with asked(tmp_path, rules, "python") as (_client, live):
        tool = {
            "type": "code_interpreter",
            "container": {"type": "auto", "file_ids": [upload(live, "notes.txt", b"seven")]},
        }
        whole = both(live, {**ASK, "input": "Divide!", "tools": [tool]})
        first, second, message = whole["output"]
        assert "ZeroDivisionError" in first["outputs"][0]["logs"]
        assert second["outputs"][0]["logs"] == "seven\n"
        assert message["content"][0]["text"] == "It says seven."


@pytest.mark.parametrize("dialect", ["glm4", "chatml"])
def test_the_web_is_searched_and_cited(tmp_path: Path, dialect: str) -> None:
    search = (
        'simple_browser\nsearch("highest tide")'
        if dialect == "glm4"
        else called(dialect, "browser_search", query="highest tide")
    )
    click = "simple_browser\nmclick([0])" if dialect == "glm4" else called(dialect, "browser_click", ids=[0])
    rules = [("rises 16 m", "Up to 16 m【7†source】, in Fundy."), ("On tides", click), ("How", search)]
    with web() as found, asked(tmp_path, rules, "browser", searched=found, dialect=dialect) as (client, live):
        whole = both(live, {**ASK, "input": "How high are tides?", "tools": [SEARCH]})
        searched, opened, message = whole["output"]
        assert searched["action"] == {"type": "search", "query": "highest tide"}
        assert opened["action"]["type"] == "open_page"
        assert {searched["status"], opened["status"]} == {"completed"}
        (cited,) = message["content"][0]["annotations"]
        assert (cited["type"], cited["title"], cited["url"]) == (
            "url_citation", "On tides", f"http://127.0.0.1:{found.port}/tides"
        )  # fmt: skip
        text = message["content"][0]["text"]
        assert text[cited["start_index"] : cited["end_index"]] == "【7†source】"
        assert any("/search?q=highest+tide" in request for request in found.requests)
        # A response that goes on keeps what was said.
        later = client.responses.create(**ASK, input="Thanks", previous_response_id=whole["id"], tools=[SEARCH])
        assert later.status == "completed"


@needs_sandbox
@pytest.mark.parametrize("dialect", ["glm4", "chatml"])
def test_files_are_searched_and_cited(tmp_path: Path, dialect: str) -> None:
    rules = [
        ("heron nests in March", "In March【7†notes】."),
        ("When", called(dialect, "search_files", query="heron nests")),
    ]
    with asked(tmp_path, rules, "files", dialect=dialect) as (client, live):
        name = upload(live, "birds.md", b"# Birds\n\nThe heron nests in March.\n\n# Fish\n\nPike wait.\n")
        whole = both(live, {**ASK, "input": "When?", "tools": [{"type": "file_search", "vector_store_ids": [name]}]})
        call, message = whole["output"]
        assert (call["status"], call["queries"], call["results"]) == ("completed", ["heron nests"], None)
        assert message["content"][0]["annotations"] == [
            {"type": "file_citation", "file_id": name, "filename": "birds.md", "index": 8}
        ]
        with pytest.raises(openai.BadRequestError, match="there is no file") as caught:
            client.responses.create(**ASK, input="x", tools=[{"type": "file_search", "vector_store_ids": ["0" * 64]}])
        assert caught.value.param == "tools"


@pytest.mark.parametrize("dialect", ["glm4", "chatml"])
def test_functions_of_an_mcp_server(tmp_path: Path, dialect: str) -> None:
    rules = [
        ("no such file", "It fails."),
        ("fail", called(dialect, "tests__fail")),
        ('"sum": 5', "Five."),
        ("Add", called(dialect, "tests__add", a=2, b=3)),
    ]
    with asked(tmp_path, rules, "mcp:tests", dialect=dialect) as (client, live):
        allowed: Any = {**MCP, "allowed_tools": ["add", "fail"]}
        whole = both(live, {**ASK, "input": "Add!", "tools": [{**MCP, "allowed_tools": ["add"]}]})
        listed, call, message = whole["output"]
        assert [one["name"] for one in listed["tools"]] == ["add"]
        assert listed["tools"][0]["input_schema"]["required"] == ["a", "b"]
        assert (call["name"], json.loads(call["arguments"]), call["server_label"]) == ("add", {"a": 2, "b": 3}, "tests")
        assert (json.loads(call["output"]), call["error"], call["status"]) == ({"sum": 5}, None, "completed")
        assert message["content"][0]["text"] == "Five."
        whole = both(live, {**ASK, "input": "fail", "tools": [{**MCP, "allowed_tools": {"tool_names": ["fail"]}}]})
        listed, call, message = whole["output"]
        assert (call["output"], call["status"], call["error"]["type"]) == (None, "failed", "mcp_tool_execution_error")
        assert "no such file" in call["error"]["content"][0]["text"]
        assert message["content"][0]["text"] == "It fails."
        # The model reads such a call again when the conversation goes on, by its id or by its items.
        later = client.responses.create(**ASK, input="And?", previous_response_id=whole["id"], tools=[allowed])
        assert later.output_text == "It fails."
        items: Any = [{"role": "user", "content": "go"}, *whole["output"], {"role": "user", "content": "And?"}]
        assert client.responses.create(**ASK, input=items, tools=[allowed]).output_text == "It fails."


@needs_sandbox
@pytest.mark.usefixtures("bare_home")
@pytest.mark.parametrize("dialect", ["glm4", "chatml"])
def test_functions_of_the_client_beside_them(tmp_path: Path, dialect: str) -> None:
    rules = [
        ("rain", "Rain, and 42."),
        ("42", called(dialect, "get_weather", city="Oslo")),
        ("What", called(dialect, "python", code="print(6 * 7)")),
    ]
    with asked(tmp_path, rules, "python", dialect=dialect) as (client, live):
        tools = [CODE, WEATHER]
        whole = both(live, {**ASK, "input": "What?", "tools": tools})
        assert kinds(whole["output"]) == ["code_interpreter_call", "function_call"]
        assert whole["status"] == "completed"
        call = whole["output"][1]
        assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Oslo"})
        output: Any = {"type": "function_call_output", "call_id": call["call_id"], "output": "rain"}
        later = client.responses.create(**ASK, input=[output], previous_response_id=whole["id"], tools=tools)
        assert (kinds(later.output), later.output_text) == (["message"], "Rain, and 42.")
        items: Any = [{"role": "user", "content": "What?"}, *whole["output"], output]
        again = client.responses.create(**ASK, input=items, tools=tools, store=False)
        assert (kinds(again.output), again.output_text) == (["message"], "Rain, and 42.")


@pytest.mark.parametrize("arguments", ['{"town": 5}', '{"city": 5}'])
def test_whatever_is_called_of_the_clients_is_handed_over_once(tmp_path: Path, arguments: str) -> None:
    rules = [("What", f"get_weather\n{arguments}")]
    with asked(tmp_path, rules, "mcp:tests", dialect="glm4") as (_, live):
        whole = both(live, {**ASK, "input": "What?", "tools": [MCP, WEATHER], "temperature": 0})
        assert kinds(whole["output"]) == ["mcp_list_tools", "function_call"]
        assert whole["output"][1]["arguments"] == arguments


def test_a_function_that_nobody_has_is_not_shown(tmp_path: Path) -> None:
    rules = [("There is no function", "I cannot."), ("What", called("chatml", "launch", what="it"))]
    with asked(tmp_path, rules, "mcp:tests", dialect="chatml") as (_, live):
        whole = both(live, {**ASK, "input": "What?", "tools": [MCP, WEATHER]})
        assert kinds(whole["output"]) == ["mcp_list_tools", "message"]


def test_a_call_that_the_turn_did_not_come_to_is_incomplete(tmp_path: Path) -> None:
    two = called("chatml", "get_weather", city="Oslo") + "\n" + called("chatml", "tests__add", a=1, b=2)
    rules = [("rain", "Rain."), ("What", two)]
    with asked(tmp_path, rules, "mcp:tests", dialect="chatml") as (client, live):
        whole = both(live, {**ASK, "input": "What?", "tools": [MCP, WEATHER]})
        _, call, added = whole["output"]
        assert (call["type"], call["status"], added["type"], added["status"]) == (
            "function_call", "completed", "mcp_call", "incomplete",
        )  # fmt: skip
        output: Any = {"type": "function_call_output", "call_id": call["call_id"], "output": "rain"}
        later = client.responses.create(**ASK, input=[output], previous_response_id=whole["id"], tools=[MCP, WEATHER])
        assert later.output_text == "Rain."


def test_limits(tmp_path: Path) -> None:
    rules = [
        ("long", "word " * 200),
        ('"sum": 5', called("chatml", "tests__add", a=3, b=4)),
        ('"sum": 7', "x"),
        ("Add", called("chatml", "tests__add", a=2, b=3)),
    ]
    with asked(tmp_path, rules, "mcp:tests", dialect="chatml") as (_, live):
        # Behind the last call the model is asked without tools; it says what it would call, as text.
        whole = both(live, {**ASK, "input": "Add!", "tools": [MCP], "max_tool_calls": 1})
        assert kinds(whole["output"]) == ["mcp_list_tools", "mcp_call", "message"]
        assert (whole["status"], whole["max_tool_calls"]) == ("completed", 1)
        cut = both(live, {**ASK, "input": "long", "tools": [MCP], "max_output_tokens": 40})
        assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert cut["output"][-1]["status"] == "incomplete"
        short = both(live, {**ASK, "input": "Add!", "tools": [MCP], "max_output_tokens": 90})
        assert short["status"] == "incomplete"
        assert short["usage"]["output_tokens"] <= 90


def test_thinking_is_told_apart(tmp_path: Path) -> None:
    def model(prompt: str) -> str:
        if '"sum": 5' in prompt:
            return "Two and three.</think>\nFive."
        return "I need a sum.</think>\n" + 'tests__add\n{"a": 2, "b": 3}'

    with asked(
        tmp_path, [('"sum": 5', "Two and three.</think>\nFive."), ("Add", model(""))], "mcp:tests", dialect="glm_z1"
    ) as (_, live):
        whole = both(live, {**ASK, "input": "Add!", "tools": [MCP]})
        assert kinds(whole["output"]) == ["mcp_list_tools", "reasoning", "mcp_call", "reasoning", "message"]
        assert whole["output"][1]["content"][0]["text"].strip() == "I need a sum."
        assert whole["usage"]["output_tokens_details"]["reasoning_tokens"] > 10


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "image_generation"}]}, "tools[0].type"),
    ({"tools": [{"type": "code_interpreter"}]}, "tools"),  # this server has none
    (
        {"tools": [{"type": "code_interpreter", "container": {"type": "auto", "memory_limit": "4g"}}]},
        "tools[0].container.memory_limit",
    ),
    ({"tools": [{"type": "code_interpreter", "container": 5}]}, "tools[0].container"),
    ({"tools": [{"type": "web_search", "user_location": {"type": "approximate"}}]}, "tools[0].user_location"),
    ({"tools": [{"type": "web_search", "filters": {"allowed_domains": ["a.com"]}}]}, "tools[0].filters"),
    ({"tools": [{"type": "web_search", "search_context_size": "huge"}]}, "tools[0].search_context_size"),
    ({"tools": [{"type": "file_search"}]}, "tools[0].vector_store_ids"),
    ({"tools": [{"type": "file_search", "vector_store_ids": "x"}]}, "tools[0].vector_store_ids"),
    ({"tools": [{"type": "file_search", "vector_store_ids": [], "max_num_results": 3}]}, "tools[0].max_num_results"),
    ({"tools": [{"type": "mcp", "server_label": "tests"}]}, "tools[0].require_approval"),
    ({"tools": [{**MCP, "server_url": "http://127.0.0.1:1/"}]}, "tools[0].server_url"),
    ({"tools": [{**MCP, "require_approval": "always"}]}, "tools[0].require_approval"),
    ({"tools": [{**MCP, "allowed_tools": {"read_only": True}}]}, "tools[0].allowed_tools"),
    ({"tools": [{**MCP, "server_label": "other"}]}, "tools"),
    ({"tools": [MCP], "tool_choice": "required"}, "tool_choice"),
    ({"tools": [MCP], "tool_choice": {"type": "mcp", "server_label": "tests"}}, "tool_choice"),
    ({"tools": [MCP], "top_logprobs": 2}, "top_logprobs"),
    ({"tools": [MCP], "include": ["message.output_text.logprobs"]}, "include"),
    ({"tools": [MCP], "include": ["file_search_call.results"]}, "include"),
    ({"tools": [MCP], "max_tool_calls": 0}, "max_tool_calls"),
    ({"tools": [MCP], "input": "x" * 20000}, "input"),
    ({"tools": [MCP], "input": []}, "input"),
]  # fmt: skip


def test_what_is_refused_is_named(tmp_path: Path) -> None:
    with asked(tmp_path, [("hi", "Hello.")], "mcp:tests") as (client, live):
        for body, param in REFUSED:
            for stream in (False, True):
                with pytest.raises(openai.BadRequestError) as caught:
                    client.responses.create(**{"model": "m", "input": "hi", **body, "stream": stream})
                assert caught.value.param == param, (body, caught.value)
        with live.client(headers={"Authorization": f"Bearer {KEY}"}) as http:
            counted = http.post("/v1/responses/input_tokens", json={"input": "hi", "tools": [MCP]})
            assert (counted.status_code, counted.json()["error"]["param"]) == (400, "tools")
        # Without being used, they are only repeated.
        plain = client.responses.create(model="m", input="hi", tools=[MCP], tool_choice="none")
        assert (plain.output_text, kinds(plain.output)) == ("Hello.", ["message"])


def test_a_tool_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with asked(tmp_path, [("hi", "Hello.")], "mcp:tests") as (client, _live):
        (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": {"tests": {"command": "/no/such/program"}}}))
        with pytest.raises(openai.APIStatusError, match="not installed") as caught:
            client.responses.create(model="m", input="hi", tools=[MCP])
        assert caught.value.status_code == 424

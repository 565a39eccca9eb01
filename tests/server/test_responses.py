"""/v1/responses through the openai library, and every object and event against its types, strictly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import openai_schema
import pytest
from openai.types.responses import FunctionToolParam
from response_stream import plain, rebuilt

from live import LiveServer, config, serve
from scripted_llm import scripted_llm

WEATHER: FunctionToolParam = {"type": "function", "name": "get_weather", "description": "w", "strict": None,
           "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}  # fmt: skip


def answer(prompt: str) -> str:
    """What the model says: decided by the last thing it was asked."""
    last = prompt.rsplit("\n", 1)[-1]
    if "weather" in last:
        return 'get_weather\n{"city": "Paris"}'
    if "both" in last:
        return '\nLet me see.\nget_weather\n{"city": "Oslo"}'
    if "everything" in last:
        return "\n" + prompt.replace("\n", "|")
    if "long" in last:
        return "\n" + "word " * 400
    return "" if "nothing" in last else "\nHello, 世界!"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("model")
    with serve(config("tiny"), scripted_llm(folder, answer, dialect="glm4", max_num_seqs=8)) as running:
        yield running


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    def think(prompt: str) -> str:
        return "\nHm, 想.\n</think>\n\n" + ("get_weather\n{}" if "call it" in prompt else "The answer.")

    with serve(config("z1"), scripted_llm(tmp_path_factory.mktemp("z1"), think, dialect="glm_z1")) as running:
        yield running


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def create(http: httpx.Client, **body: Any) -> dict[str, Any]:
    response = http.post("/v1/responses", json=body)
    assert response.status_code == 200, response.text
    openai_schema.check_response(response.json())
    return response.json()


def stream(http: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream, checked: types, names, numbers, order."""
    response = http.post("/v1/responses", json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    openai_schema.check_response_stream(response.text)
    events = [json.loads(data) for data in openai_schema.events(response.text)]
    assert rebuilt(events) == events[-1]["response"]["output"]
    return events


@pytest.mark.parametrize("text", ["hi", "weather", "both", "nothing", "long"])
def test_streamed_is_what_is_whole(http: httpx.Client, text: str) -> None:
    body = {"model": "tiny", "input": text, "tools": [WEATHER], "max_output_tokens": 500}
    whole, events = create(http, **body), stream(http, **body)
    assert plain(events[-1]["response"]) == plain(whole)
    assert events[-1]["type"] == f"response.{whole['status']}"
    assert [item["type"] for item in whole["output"]] == {
        "weather": ["function_call"], "both": ["message", "function_call"]
    }.get(text, ["message"])  # fmt: skip


def test_a_call_and_its_output(http: httpx.Client) -> None:
    first = create(http, input="weather", tools=[WEATHER])
    (call,) = first["output"]
    assert (call["name"], json.loads(call["arguments"]), call["status"]) == (
        "get_weather",
        {"city": "Paris"},
        "completed",
    )
    assert first["usage"]["output_tokens"] == len('get_weather\n{"city": "Paris"}') + 1
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "everything: 21 degrees"}
    again = create(http, input=[result], previous_response_id=first["id"], tools=[WEATHER])
    assert 'get_weather|{"city": "Paris"}|everything: 21 degrees' in text_of(again)
    lost = http.post("/v1/responses", json={"input": [result | {"call_id": "call_other"}]})
    assert (lost.status_code, lost.json()["error"]["param"]) == (400, "input")


def text_of(response: dict[str, Any]) -> str:
    parts = [part for item in response["output"] if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts)


def test_cut_off(http: httpx.Client) -> None:
    whole = create(http, input="long", max_output_tokens=20)
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert whole["output"][0]["status"] == "incomplete"
    assert whole["completed_at"] is None
    assert whole["usage"]["output_tokens"] == 20
    call = create(http, input="weather", tools=[WEATHER], max_output_tokens=15)["output"][0]
    assert (call["status"], call["arguments"]) == ("incomplete", "{" + '"city'[:2])


def test_thinking(thinker: LiveServer) -> None:
    with thinker.client() as http:
        for text, kinds in (("hi", ["reasoning", "message"]), ("call it", ["reasoning", "function_call"])):
            whole, events = create(http, input=text, tools=[WEATHER]), stream(http, input=text, tools=[WEATHER])
            assert [item["type"] for item in whole["output"]] == kinds
            assert whole["output"][0]["content"] == [{"type": "reasoning_text", "text": "Hm, 想."}]
            assert plain(whole) == plain(events[-1]["response"])
            assert whole["usage"]["output_tokens_details"]["reasoning_tokens"] == len("Hm, 想.".encode())
        cut = create(http, input="hi", max_output_tokens=5)
        assert [item["type"] for item in cut["output"]] == ["reasoning"]
        assert cut["output"][0]["status"] == "incomplete"
        again = create(http, input="and then?", previous_response_id=whole["id"])
        assert again["status"] == "completed"
        for body, param in (
            ({"reasoning": {"effort": "none"}}, "reasoning.effort"),
            ({"include": ["reasoning.encrypted_content"]}, "include"),
        ):
            error = http.post("/v1/responses", json={"input": "hi", **body}).json()["error"]
            assert error["param"] == param


def test_a_conversation_by_id(http: httpx.Client) -> None:
    first = create(http, input="My name is Mark.", instructions="Be brief.")
    second = create(http, input="everything?", previous_response_id=first["id"])
    # The instructions of the first are not carried over; everything else is there, in order.
    assert text_of(second) == "|My name is Mark.|Hello, 世界!|everything?"
    third = create(http, input="everything!", previous_response_id=second["id"], instructions="Be kind.")
    seen = text_of(third)
    assert seen.startswith("|Be kind.|My name is Mark.|Hello, 世界!|everything?")
    assert seen.endswith(f"{text_of(second)}|everything!")
    assert third["previous_response_id"] == second["id"]
    branch = create(http, input="everything.", previous_response_id=first["id"])
    assert text_of(branch) == "|My name is Mark.|Hello, 世界!|everything."


def test_a_conversation_that_cannot_be_continued(http: httpx.Client) -> None:
    first = create(http, input="a")
    second = create(http, input="b", previous_response_id=first["id"])
    assert http.delete(f"/v1/responses/{first['id']}").json() == {
        "id": first["id"], "object": "response", "deleted": True
    }  # fmt: skip
    for gone in (first["id"], second["id"], "resp_none"):
        response = http.post("/v1/responses", json={"input": "c", "previous_response_id": gone})
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (
            400, "previous_response_id", "previous_response_not_found"
        )  # fmt: skip
    secret = create(http, input="a", store=False)
    assert not secret["store"]
    assert http.get(f"/v1/responses/{secret['id']}").status_code == 404
    assert http.post("/v1/responses", json={"input": "c", "previous_response_id": secret["id"]}).status_code == 400


def test_all_forms_of_input_items(http: httpx.Client) -> None:
    first = create(http, input="a")
    items = [
        {"role": "developer", "content": "rules"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "one"},
                                                       {"type": "input_text", "text": "two"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}],
         "encrypted_content": "AAAA"},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "phase": "commentary",
         "content": [{"type": "output_text", "text": "said", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":1}', "id": "fc_1"},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": ""},
        {"type": "function_call_output", "call_id": "c1", "output": "first"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "second"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"id": first["output"][0]["id"]},
        {"role": "user", "content": "everything"},
    ]  # fmt: skip
    made = create(http, input=items, instructions="system")
    assert text_of(made) == (
        '|system|rules|one|two|saidf|{"a":1}g|{}|first|second|no|Hello, 世界!|everything'
    )  # fmt: skip
    listed = http.get(f"/v1/responses/{made['id']}/input_items?order=asc").json()
    openai_schema.check_response_items(listed)
    assert [item["type"] for item in listed["data"]] == [
        "message", "message", "reasoning", "message", "function_call", "function_call", "function_call_output",
        "function_call_output", "message", "message", "message",
    ]  # fmt: skip
    assert listed["data"][3]["id"] == "msg_1"
    assert listed["data"][9] == first["output"][0]  # what the reference meant


def said(item: Any) -> Any:
    """The text of a message among the library's many kinds of items."""
    return item.content[0].text


def test_input_items_come_in_pages(client: openai.OpenAI) -> None:
    made = client.responses.create(model="tiny", input=[{"role": "user", "content": str(n)} for n in range(7)])
    page = client.responses.input_items.list(made.id, limit=3)
    assert page.has_more
    assert [said(item) for item in page] == ["6", "5", "4", "3", "2", "1", "0"]  # the library turns pages
    ascending = client.responses.input_items.list(made.id, order="asc", limit=100)
    assert [said(item) for item in ascending.data] == [str(n) for n in range(7)]
    assert not ascending.has_more
    for query in ("limit=0", "limit=101", "limit=x", "order=up", "after=msg_none", "include=x", "before=msg_1"):
        with pytest.raises(openai.BadRequestError) as caught:
            client.get(f"/responses/{made.id}/input_items?{query}", cast_to=object)
        assert caught.value.param == query.split("=")[0]


def test_log_probabilities(tmp_path: Path) -> None:
    from tiny import write_folder

    with serve(config("real", source=str(write_folder(tmp_path / "m")))) as running, running.client() as http:
        body = {"input": "a", "max_output_tokens": 12, "temperature": 0, "top_logprobs": 2, "ignore_eos": True}
        body |= {"include": ["message.output_text.logprobs"]}
        whole, events = create(http, **body), stream(http, **body)
        (part,) = whole["output"][0]["content"]
        shown = b"".join(bytes(entry["bytes"]) for entry in part["logprobs"])
        assert part["text"] == shown.decode("utf-8", "replace")
        assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])
        assert plain(events[-1]["response"]) == plain(whole)
        without = create(http, **{**body, "include": [], "top_logprobs": 0})
        assert without["output"][0]["content"][0] == part | {"logprobs": []}


def test_the_library_from_creating_to_deleting(client: openai.OpenAI) -> None:
    made = client.responses.create(model="tiny", input="hi", metadata={"k": "v"}, user="me")
    assert made.output_text == "Hello, 世界!"
    assert client.responses.retrieve(made.id).to_dict() == made.to_dict()
    assert (made.metadata, made.user) == ({"k": "v"}, "me")
    with client.responses.stream(model="tiny", input="weather", tools=[WEATHER]) as events:
        deltas = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
        final = events.get_final_response()
    assert json.loads(deltas) == {"city": "Paris"}
    assert final.output[0].type == "function_call"
    assert client.responses.retrieve(final.id).output == client.responses.retrieve(final.id).output
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
        client.responses.cancel(made.id)
    client.responses.delete(made.id)
    for call in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError, match=r"Response with id 'resp_\w+' not found"):
            call(made.id)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.retrieve(final.id, stream=True)


async def _both_turns(url: str) -> str:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.responses.create(model="tiny", input="hi", stream=True)
        events: list[Any] = [event async for event in stream]
        again = await client.responses.create(
            model="tiny", input="everything", previous_response_id=events[-1].response.id
        )
        return again.output_text


def test_the_asynchronous_library(server: LiveServer) -> None:
    import asyncio

    assert asyncio.run(_both_turns(server.url)) == "|hi|Hello, 世界!|everything"


def test_counting_tokens(http: httpx.Client, client: openai.OpenAI) -> None:
    made = create(http, input="hi", instructions="Be brief.", tools=[WEATHER])
    body = {"input": "hi", "instructions": "Be brief.", "tools": [WEATHER]}
    counted = http.post("/v1/responses/input_tokens", json=body).json()
    openai_schema.check_input_tokens(counted)
    assert counted["input_tokens"] == made["usage"]["input_tokens"]
    more = client.responses.input_tokens.count(model="tiny", input="hi", previous_response_id=made["id"])
    again = create(http, input="hi", previous_response_id=made["id"])
    assert more.input_tokens == again["usage"]["input_tokens"]


def test_a_conversation_survives_a_restart(tmp_path: Path) -> None:
    ids: list[str] = []
    for turn in range(3):
        llm = scripted_llm(tmp_path / f"m{turn}", answer, dialect="glm4")
        with serve(config("tiny", store_path=tmp_path / "s.db"), llm) as running, running.client() as http:
            previous = {"previous_response_id": ids[-1]} if ids else {}
            ids.append(create(http, input="everything" if turn == 2 else f"turn {turn}", **previous)["id"])
            assert all(http.get(f"/v1/responses/{one}").status_code == 200 for one in ids)
            last = http.get(f"/v1/responses/{ids[-1]}").json()
    assert text_of(last) == "|turn 0|Hello, 世界!|turn 1|Hello, 世界!|everything"

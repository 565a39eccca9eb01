"""Pictures over HTTP: in every API, with every option beside them, bad ones, and what others notice of them."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from neighbor import Neighbor
from picture_server import (
    CAT,
    DOG,
    HOST,
    Site,
    ask,
    data_url,
    image,
    in_base64,
    seeing_llm,
    seeing_server,
    site,
)
from PIL import Image
from raw_http import refused

from glm4.multimodal.image import encode_picture
from glm4.server.memory import LIGHT, WAITING_THREADS
from live import LiveServer, config, serve
from picture_files import encoded, gif_of_many_frames, picture, png
from stepped import stepped, until
from vision_folder import MARKS, ROWS

GREEDY = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
WORDS = "what is it?"


@pytest.fixture(scope="module")
def pictures() -> Iterator[Site]:
    with site() as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, pictures: Site) -> Iterator[LiveServer]:
    with seeing_server(tmp_path_factory.mktemp("sees"), pictures) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with server.client() as made:
        yield made


def post(client: httpx.Client, path: str, body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def chat(client: httpx.Client, messages: Any, **more: Any) -> Any:
    return post(client, "/v1/chat/completions", {"messages": messages, **GREEDY, **more})


def said(client: httpx.Client, messages: Any, **more: Any) -> str:
    content = chat(client, messages, **more)["choices"][0]["message"]["content"]
    assert isinstance(content, str)
    return content


def blocks(*sources: dict[str, Any], words: str = WORDS) -> list[dict[str, Any]]:
    """Anthropic's form."""
    content = [{"type": "text", "text": words}, *({"type": "image", "source": source} for source in sources)]
    return [{"role": "user", "content": content}]


def in_block(data: bytes, media_type: str = "image/png") -> dict[str, Any]:
    return {"type": "base64", "media_type": media_type, "data": in_base64(data)}


def items(*urls: str, words: str = WORDS) -> list[dict[str, Any]]:
    """The form of responses."""
    content = [{"type": "input_text", "text": words}, *({"type": "input_image", "image_url": url} for url in urls)]
    return [{"role": "user", "content": content}]


def nothing_left(server: LiveServer) -> bool:
    memory = server.state.memory
    held = (memory.pictures, memory.bodies, memory.preparing, memory.lanes)
    return not any(server.leftovers.values()) and all(budget.free == budget.total for budget in held)


# Every API


def test_the_same_answer_in_every_api(client: httpx.Client, pictures: Site) -> None:
    url = data_url(CAT)
    expected = said(client, ask(url))
    assert expected != said(client, ask(data_url(DOG))), "the model looks at it"
    assert expected != said(client, ask())
    assert said(client, ask(pictures.at("/cat.png"))) == expected
    for detail in ("auto", "low", "high", None):
        content = [image(url, detail=detail), {"type": "text", "text": WORDS}]
        assert said(client, [{"role": "user", "content": content}]) == expected

    answer = post(client, "/v1/responses", {"input": items(url), "max_output_tokens": 8, "temperature": 0})
    assert expected.startswith(answer["output"][0]["content"][0]["text"])
    for source in (in_block(CAT), {"type": "url", "url": pictures.at("/cat.png")}):
        body = {"model": "tiny", "max_tokens": 8, "temperature": 0, "messages": blocks(source)}
        message = post(client, "/v1/messages", body)
        assert expected.startswith(message["content"][0]["text"])
        used = message["usage"]
        assert used["input_tokens"] + used["cache_read_input_tokens"] == answer["usage"]["input_tokens"]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_data_urls_of_every_type(client: httpx.Client, format: str) -> None:
    file = encoded(picture(), format)
    assert said(client, ask(data_url(file, f"image/{format.lower()}"))) == said(client, ask(data_url(file, "image/*")))


def test_usage_counts_the_rows_and_what_was_cached(server: LiveServer, client: httpx.Client) -> None:
    words = "a picture with more words than fit into one page of the cache, so that it is found again"
    fresh = encode_picture(np.full((8, 9, 3), 77, np.uint8))
    first, again = (chat(client, ask(data_url(fresh), words=words))["usage"] for _ in range(2))
    plain = chat(client, ask(words=words))["usage"]
    assert first["prompt_tokens"] == plain["prompt_tokens"] + ROWS
    assert first["prompt_tokens_details"]["cached_tokens"] < ROWS
    assert again["prompt_tokens"] == first["prompt_tokens"]
    assert again["prompt_tokens_details"]["cached_tokens"] >= 64
    before = server.llm.stats().pictures_encoded
    other = chat(client, ask(data_url(DOG), words=words))["usage"]
    assert other["prompt_tokens_details"]["cached_tokens"] < ROWS, "another picture's pages are not used"
    chat(client, ask(data_url(DOG), words="and another question"))
    assert server.llm.stats().pictures_encoded <= before + 1
    metrics = client.get("/metrics").text
    assert 'glm4:pictures_encoded_total{model_name="tiny"}' in metrics
    assert 'glm4:picture_cache_hits_total{model_name="tiny"}' in metrics


def test_what_only_counts_counts_the_rows_and_fetches_nothing(client: httpx.Client, pictures: Site) -> None:
    chatted = {"messages": ask(pictures.at("/hangs"))}
    count = chat(client, ask(data_url(CAT)))["usage"]["prompt_tokens"]
    rendered = post(client, "/v1/chat/completions/render", chatted)
    assert rendered["count"] == len(rendered["prompt_token_ids"]) == count
    assert rendered["prompt"] == post(client, "/apply-template", chatted)["prompt"]
    assert rendered["prompt"].count(MARKS) == 1
    assert len(post(client, "/tokenize", chatted)["tokens"]) == count
    assert post(client, "/chat/completions/input_tokens", chatted)["input_tokens"] == count
    assert post(client, "/v1/responses/input_tokens", {"input": items(pictures.at("/hangs"))})["input_tokens"] == count
    source = {"type": "url", "url": pictures.at("/hangs")}
    assert (
        post(client, "/v1/messages/count_tokens", {"model": "tiny", "messages": blocks(source)})["input_tokens"]
        == count
    )
    assert "/hangs" not in pictures.asked


def test_stored_responses_keep_the_picture(client: httpx.Client) -> None:
    options = {"max_output_tokens": 4, "temperature": 0}
    first = post(client, "/v1/responses", {"input": items(data_url(CAT)), **options})
    later = {"input": "and now?", "previous_response_id": first["id"], **options}
    again = post(client, "/v1/responses", later)
    # ChatGLM's tokens of the answer, the roles, and the words
    assert again["usage"]["input_tokens"] >= first["usage"]["input_tokens"] + len("and now?") + 1
    listed = client.get(f"/v1/responses/{first['id']}/input_items").json()["data"]
    assert listed[0]["content"][1]["image_url"] == data_url(CAT)
    other = post(client, "/v1/responses", {"input": items(data_url(DOG)), **options})
    assert post(client, "/v1/responses", {**later, "previous_response_id": other["id"]})["output"] != again["output"]
    error = refused(
        client.post("/v1/responses", json={**later, "input": items(data_url(DOG))}), 400, "input[0].content[1]"
    )
    assert "one picture per conversation" in error["message"]
    body = {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}]}
    assert "file_id" in refused(client.post("/v1/responses", json=body), 400, "input[0].content[0].file_id")["message"]


def test_raw_prompts_of_llama_cpp(client: httpx.Client) -> None:
    marker = client.get("/props").json()["media_marker"]
    text = f"<|user|>\n{marker}{WORDS}"
    body = {"prompt": {"prompt_string": text, "multimodal_data": [in_base64(CAT)]}, "temperature": 0, "n_predict": 4}
    one = post(client, "/completion", body)
    assert one["tokens_evaluated"] == len(f"[]<|user|>\n{WORDS}") + ROWS
    several = post(client, "/completion", {**body, "prompt": [body["prompt"], body["prompt"], "x"]})
    assert [other["content"] for other in several[:2]] == [one["content"]] * 2
    with client.stream("POST", "/completion", json={**body, "stream": True}) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]
    assert "".join(event["content"] for event in events) == one["content"]

    bad: list[tuple[Any, str]] = [
        ({"prompt_string": WORDS, "multimodal_data": [in_base64(CAT)]}, "prompt"),
        ({"prompt_string": text + marker, "multimodal_data": [in_base64(CAT)]}, "prompt"),
        ({"prompt_string": text, "multimodal_data": ["?"]}, "prompt.multimodal_data[0]"),
        ({"prompt_string": text, "multimodal_data": [""]}, "prompt.multimodal_data[0]"),
        ({"prompt_string": text, "multimodal_data": [7]}, "prompt.multimodal_data[0]"),
        ({"prompt_string": text, "multimodal_data": [in_base64(b"hello")]}, "prompt.multimodal_data[0]"),
        ({"prompt_string": text, "multimodal_data": "x"}, "prompt.multimodal_data"),
        ({"prompt_string": text * 2, "multimodal_data": [in_base64(CAT)] * 2}, "prompt.multimodal_data[1]"),
        ({"prompt_string": text, "images": []}, "prompt"),
    ]
    for prompt, param in bad:
        refused(client.post("/completion", json={**body, "prompt": prompt}), 400, param)


def test_clients_are_told_that_the_model_sees(client: httpx.Client) -> None:
    assert client.get("/props").json()["modalities"] == {"vision": True, "audio": False}
    listed = client.get("/v1/models").json()
    assert [one["capabilities"] for one in (*listed["data"], *listed["models"])] == [["completion", "multimodal"]] * 4


# Beside other options


def streamed(client: httpx.Client, body: Any) -> str:
    text = client.post("/v1/chat/completions", json={**body, **GREEDY, "stream": True}).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


def test_streams_samples_tools_and_forms(client: httpx.Client) -> None:
    messages = ask(data_url(CAT))
    expected = said(client, messages)
    assert streamed(client, {"messages": messages}) == expected
    answer = chat(client, messages, n=2, logprobs=True, top_logprobs=2, prompt_logprobs=1)
    assert [choice["message"]["content"] for choice in answer["choices"]] == [expected] * 2
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    schema: dict[str, Any] = {"type": "object", "properties": {"cat": {"type": "boolean"}}, "required": ["cat"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "seen", "schema": schema}}
    seen = said(client, messages, response_format=form, max_tokens=100, ignore_eos=False)
    assert set(json.loads(seen)) == {"cat"}
    tool = {"type": "function", "function": {"name": "name_it", "parameters": schema}}
    called = chat(client, messages, tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=100)
    (call,) = called["choices"][0]["message"]["tool_calls"]
    assert set(json.loads(call["function"]["arguments"])) == {"cat"}
    begun = [*messages, {"role": "assistant", "content": "It is a"}]
    assert said(client, begun, continue_final_message=True, add_generation_prompt=False)


def test_one_picture_asked_about_by_many_at_once(server: LiveServer) -> None:
    fresh = data_url(encode_picture(np.full((30, 20, 3), 123, np.uint8)))
    bodies = [ask(fresh), ask(fresh), ask(), ask(data_url(DOG)), ask(fresh, words="else"), ask()]
    with server.client() as client:
        before = server.llm.stats().pictures_encoded
        answers: list[str] = [""] * len(bodies)

        def one(at: int) -> None:
            answers[at] = streamed(client, {"messages": bodies[at]})

        threads = [threading.Thread(target=one, args=(at,)) for at in range(len(bodies))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.llm.stats().pictures_encoded <= before + 2
        assert answers == [said(client, body) for body in bodies]
        assert answers[0] == answers[1] != answers[4]


# Bad input


def _svg() -> bytes:
    return b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>'


BOMB = png(50_000, 50_000, 8, 2, b"\0" * 100)
BAD: dict[str, tuple[str, str]] = {
    "truncated": (data_url(CAT[: len(CAT) // 2]), "damaged, incomplete"),
    "50,000 x 50,000": (data_url(BOMB), "more than 100 million pixels"),
    "text named .png": (data_url(b"This is a text and no picture."), "it looks like text"),
    "SVG": (data_url(_svg(), "image/svg+xml"), "it looks like SVG"),
    "SVG named .png": (data_url(_svg()), "it looks like SVG"),
    "web page": (data_url(b"<!doctype html><html></html>"), "a web page"),
    "another type": (data_url(CAT, "text/html"), "the media type must be image/"),
    "not base64": ("data:image/png;base64,@@@@", "is not valid base64"),
    "not in base64": ("data:image/png,abc", "malformed data URL"),
    "empty file": ("data:image/png;base64,", "is empty"),
    "empty": ("", "must be a data: URL or begin with http"),
    "file URL": ("file:///etc/passwd", "must be a data: URL or begin with http"),
    "path": ("/etc/passwd", "must be a data: URL or begin with http"),
    "relative path": ("cat.png", "must be a data: URL or begin with http"),
    "too large": (data_url(b"\x89PNG" + bytes(33 << 20)), "is larger than 32 MB"),
    "unreachable": (f"http://{HOST}:9/cat.png", "cannot be fetched"),
    "unknown host": ("http://nowhere.test/cat.png", "cannot be fetched"),
    "another port": ("http://example.com:22/cat.png", "cannot be fetched"),
    "private address": ("http://127.0.0.1/cat.png", "cannot be fetched"),
    "metadata": ("http://169.254.169.254/latest/meta-data", "cannot be fetched"),
    "two addresses": ("http://two.test:9/cat.png", "cannot be fetched"),
}
FETCHED = {
    "redirect to a private address": ("/to-private", "it redirects, and then 127.0.0.1"),
    "page": ("/page", "cannot be fetched"),
    "damaged": ("/broken.png", "damaged, incomplete"),
}


def test_bad_pictures_are_refused_by_place_and_neighbors_do_not_notice(server: LiveServer, pictures: Site) -> None:
    bad = {**BAD, **{name: (pictures.at(path), problem) for name, (path, problem) in FETCHED.items()}}
    with server.client() as client, Neighbor(server) as neighbor:
        until(lambda: neighbor.streams, "the neighbor has begun")
        for name, (url, problem) in bad.items():
            body = {"messages": ask(url), **GREEDY}
            error = refused(client.post("/v1/chat/completions", json=body), 400, "messages[0].content[1]")
            assert problem in error["message"], (name, error)
            if name == "too large":
                continue
            refused(client.post("/v1/chat/completions", json={**body, "stream": True}), 400, "messages[0].content[1]")
            error = refused(client.post("/v1/responses", json={"input": items(url)}), 400, "input[0].content[1]")
            assert problem in error["message"], (name, error)
            source = {"type": "url", "url": url}
            if url.startswith("data:image/png;base64,"):
                source = {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
            body = {"model": "tiny", "max_tokens": 4, "messages": blocks(source)}
            response = client.post("/v1/messages", json=body)
            assert response.status_code == 400, (name, response.text)
            assert response.json()["error"]["type"] == "invalid_request_error"
            assert problem in response.json()["error"]["message"], (name, response.text)
            assert response.json()["error"]["message"].startswith("messages.0.content.1"), (name, response.text)
        for part in (ask(data_url(CAT)), ask(pictures.at("/cat.png"))):  # in between, what is good
            assert said(client, part)
    assert len(neighbor.streams) == 1, "the neighbor's stream changed"
    until(lambda: nothing_left(server), "everything is given back")


def test_odd_pictures_are_pictures(client: httpx.Client) -> None:
    pixel, gif = encoded(Image.new("RGB", (1, 1), "red"), "PNG"), gif_of_many_frames(10_000, broken=True)
    first = Image.open(io.BytesIO(gif)).convert("RGB")
    assert said(client, ask(data_url(pixel)))
    assert said(client, ask(data_url(gif, "image/gif"))) == said(client, ask(data_url(encoded(first, "PNG"))))


def test_only_users_show_pictures_and_only_one(client: httpx.Client) -> None:
    def error(messages: Any, param: str) -> str:
        response = client.post("/v1/chat/completions", json={"messages": messages})
        return str(refused(response, 400, param)["message"])

    assert "one picture per conversation" in error(ask(*[data_url(CAT)] * 10), "messages[0].content[2]")
    assert "--allow-many-images" in error([*ask(data_url(CAT)), *ask(data_url(CAT))], "messages[1].content[1]")
    part = image(data_url(CAT))
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    used = [*ask(), {"role": "assistant", "content": None, "tool_calls": [call]}]
    result = {"role": "tool", "tool_call_id": "c1", "content": [part]}
    assert "only messages of the user" in error([*used, result], "messages[2].content[0]")
    assert "only messages of the user" in error(
        [{"role": "system", "content": [part]}, *ask()], "messages[0].content[0]"
    )
    long = ask(data_url(CAT), words="x" * 1100)
    assert "context" in error(long, "messages")
    turn = {"type": "tool_use", "id": "t1", "name": "look", "input": {}}
    content = [{"type": "image", "source": in_block(CAT)}]
    result = {"type": "tool_result", "tool_use_id": "t1", "content": content}
    used = [*blocks(), {"role": "assistant", "content": [turn]}, {"role": "user", "content": [result]}]
    response = client.post("/v1/messages", json={"model": "tiny", "max_tokens": 4, "messages": used})
    assert response.status_code == 400
    assert "only messages of the user" in response.json()["error"]["message"]


def test_many_pictures_where_they_are_allowed(tmp_path: Path) -> None:
    with seeing_server(tmp_path, allow_many_images=True) as server, server.client() as client:
        ten = chat(client, ask(*[data_url(CAT), data_url(DOG)] * 5))
        one = chat(client, ask(data_url(CAT)))
        assert ten["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"] + 9 * ROWS
        error = refused(client.post("/v1/chat/completions", json={"messages": ask("http://example.com/a.png")}), 400,
                        "messages[0].content[1]")  # fmt: skip
        assert "--media-domains" in error["message"]


# Waiting, and clients that leave


def sent(server: LiveServer, messages: Any) -> socket.socket:
    """A request on a connection of its own, which the test may close."""
    body = json.dumps({"messages": messages, **GREEDY, "stream": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection(server.address)
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def test_waiting_for_pictures_holds_up_nobody_else(server: LiveServer, pictures: Site) -> None:
    memory, asked = server.state.memory, len(pictures.asked)
    connections = [sent(server, ask(pictures.at("/hangs"))) for _ in range(2 * WAITING_THREADS)]
    until(lambda: len(pictures.asked) == asked + WAITING_THREADS, "as many as may be are being fetched")
    with server.client() as client:
        for words in ("short", "y" * 900):
            assert said(client, ask(words=words))
        # A large body, which is prepared in turn
        large = json.dumps({"messages": ask(), **GREEDY}).encode() + b" " * 2 * LIGHT
        kind = {"content-type": "application/json"}
        assert client.post("/v1/chat/completions", content=large, headers=kind).status_code == 200
    assert memory.pictures.free < memory.pictures.total
    for connection in connections:
        connection.close()
    # The clients have left: their requests are over, even though the site has not answered.
    until(lambda: nothing_left(server), "everything is given back")
    assert len(pictures.asked) == asked + WAITING_THREADS, "who had to wait does not wait any more"
    pictures.over.set()
    until(lambda: memory.waiting._free.free == WAITING_THREADS, "the threads are back")
    pictures.over.clear()
    with server.client() as client:
        assert said(client, ask(pictures.at("/cat.png"))) == said(client, ask(data_url(CAT)))


def test_a_client_that_leaves_while_its_picture_is_encoded(tmp_path: Path) -> None:
    llm = seeing_llm(tmp_path)
    backend = stepped(llm)
    with serve(config("tiny"), llm) as server:
        try:
            connection = sent(server, ask(data_url(CAT)))
            until(lambda: backend.waits, "the engine is about to encode it")
            assert llm.has_unfinished_requests()
            connection.close()
            until(lambda: server.state.memory.pictures.free == server.state.memory.pictures.total, "it is noticed")
            backend.allow()  # the step that was about to happen
            until(lambda: nothing_left(server), "its request is over")
            assert backend.steps == 1
        finally:
            backend.open()

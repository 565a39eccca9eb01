"""Pictures by services of OpenAI's form; each is a real server on this machine."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from browsing import Heard, context, only, read, refused
from memory_files import MemoryFiles
from scripted_agent import TODAY, Script, ending, files

from glm4.agent.agent import Agent
from glm4.agent.conversation import Conversation
from glm4.agent.tool import Invocation, Sources, ToolResult
from glm4.agent.tools.image import ImageTool
from glm4.chat.messages import Message
from glm4.errors import InvalidRequestError
from glm4.multimodal.fetch import FetchPolicy
from picture_files import encoded, picture
from web_sites import NAME, Answer, Site, drip, page, redirect, site

KEY = "key-that-nobody-may-see"
PATH = "/v1/images/generations"
PNG = encoded(picture(height=20, width=30), "PNG")
PROMPT = "A red fox in the snow"


def answer(*items: Any) -> bytes:
    return page(json.dumps({"created": 1, "data": list(items)}).encode(), media_type="application/json")


def inline(data: bytes) -> dict[str, str]:
    return {"b64_json": base64.b64encode(data).decode()}


def draw(
    server: Site, given: MemoryFiles | None, *, raw: bool = True, prompt: str = PROMPT, **options: Any
) -> ToolResult:
    tool = ImageTool(f"http://127.0.0.1:{server.port}/v1", "cogview-3", KEY, **options)
    try:
        arguments = prompt if raw else json.dumps({"prompt": prompt})
        return tool.run(Invocation("1", "cogview", arguments, raw=raw), context(files=given))
    finally:
        tool.close()


def failure(reply: Answer, **options: Any) -> str:
    with site({PATH: reply}) as server:
        stored = MemoryFiles()
        message = refused(draw(server, stored, **options))
    assert stored.stored == []
    assert KEY not in message
    assert message.startswith("The picture was not made: ")
    return message


@pytest.mark.parametrize(("format", "ending"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif")])
def test_a_picture_in_the_answer(format: str, ending: str) -> None:
    data = encoded(picture(height=20, width=30), format)
    with site({PATH: answer(inline(data))}) as server:
        stored, heard = MemoryFiles(), Heard()
        tool = ImageTool(f"http://127.0.0.1:{server.port}/v1", "cogview-3", KEY, size="1024x1024")
        result = tool.run(
            Invocation("1", "cogview", f"\n{PROMPT}\n", raw=True), context(files=stored, listener=heard)
        )  # fmt: skip
        tool.close()
    assert only(result).text == "CogView 已经生成并向用户展示了生成的图片。"
    assert only(result).metadata == "cogview_result"
    assert [(file.name, file.alt) for file in heard.files] == [(f"picture.{ending}", PROMPT)]
    assert stored.content[heard.files[0].sha256] == data
    assert server.requests[0].startswith(f"POST {PATH} HTTP/1.1\r\n")
    assert f"\r\nAuthorization: Bearer {KEY}\r\n" in server.requests[0]
    assert json.loads(server.bodies[0]) == {"model": "cogview-3", "size": "1024x1024", "prompt": PROMPT, "n": 1}


def test_a_picture_by_its_address_at_the_service_itself() -> None:
    with site({"/files/1.png?sig=x": page(PNG)}) as server:
        url = f"http://127.0.0.1:{server.port}/files/1.png?sig=x"
        server.answers = {**server.answers, PATH: answer({"url": url})}
        stored = MemoryFiles()
        result = draw(server, stored, raw=False)
    assert "shown to the user" in read(result)
    assert list(stored.content.values()) == [PNG]
    assert KEY not in server.requests[1]  # the key is for the service, not for files


def test_the_address_of_a_picture_goes_through_the_guarded_fetcher() -> None:
    with site({"/1.png": page(PNG)}) as private:
        policy = FetchPolicy(ports=(private.port,))
        for url in (
            private.at("/1.png", "127.0.0.1"), private.at("/1.png", "[::1]"), private.at("/1.png", "localhost"),
            "file:///etc/passwd", "http://169.254.169.254/", "ftp://127.0.0.1/", "data:image/png;base64,AAAA",
            f"http://u@{NAME}/", 7, None,
        ):  # fmt: skip
            failure(answer({"url": url}), policy=policy)
        with site({PATH: redirect("http://127.0.0.1:1/")}) as server:
            assert "it redirects" in refused(draw(server, MemoryFiles(), policy=policy))
    assert private.requests == []


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (answer(inline(b"<svg/>")), "no PNG, JPEG, WebP or GIF"),
        (answer(inline(b"%PDF-1.7")), "no PNG, JPEG, WebP or GIF"),
        (answer(inline(PNG[:60])), "cannot be decoded"),
        (answer(inline(b"\x89PNG\r\n\x1a\n" + b"x" * 100)), "cannot be decoded"),
        (answer({"b64_json": "!!!"}), "not base64"),
        (answer({"b64_json": ["x"]}), "no picture"),
        (answer(), "no picture"),
        (answer(None), "no picture"),
        (page(b"[]", media_type="application/json"), "no picture"),
        (page(b"{", media_type="application/json"), "not JSON"),
        (page(b"", status="401 Unauthorized"), "answers HTTP 401"),
        (page(b"", status="500 Oops"), "answers HTTP 500"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused(reply: bytes, problem: str) -> None:
    assert problem in failure(reply)


def test_a_service_that_never_answers() -> None:
    with site({PATH: drip(b"")}) as server:
        tool = ImageTool(f"http://127.0.0.1:{server.port}/v1")
        try:
            given = context(files=MemoryFiles(), seconds=1.5)
            message = refused(tool.run(Invocation("1", "cogview", PROMPT, raw=True), given))
        finally:
            tool.close()
    assert "did not arrive in time" in message


def test_calls_that_ask_for_nothing() -> None:
    with site({PATH: answer(inline(PNG))}) as server:
        for prompt in ("", " \n "):
            assert "describe it in words" in refused(draw(server, MemoryFiles(), prompt=prompt))
        assert "at most 4000 characters" in refused(draw(server, MemoryFiles(), prompt="x" * 4001))
        assert "keeps no files" in refused(draw(server, None))
        tool = ImageTool(f"http://127.0.0.1:{server.port}/v1")
        assert "describe it" in refused(tool.run(Invocation("1", "generate_image", "[]"), context(files=MemoryFiles())))
        assert tool.about(Invocation("1", "cogview", PROMPT, raw=True)) == f"make a picture: {PROMPT}"
        tool.close()
    assert server.requests == []


def test_settings_come_from_the_environment() -> None:
    with pytest.raises(InvalidRequestError, match="set GLM4_IMAGE_URL"):
        ImageTool(environment={})
    with pytest.raises(InvalidRequestError, match="the address of the image service cannot be used"):
        ImageTool("me.example", environment={})
    with site({PATH: answer(inline(PNG))}) as server:
        for url in (f"http://127.0.0.1:{server.port}/v1/", f"http://127.0.0.1:{server.port}{PATH}"):
            environment = {"GLM4_IMAGE_URL": url, "GLM4_IMAGE_MODEL": "m", "GLM4_IMAGE_KEY": KEY}
            tool = ImageTool(environment=environment)
            read(tool.run(Invocation("1", "cogview", PROMPT, raw=True), context(files=MemoryFiles())))
            tool.close()
    assert [json.loads(body)["model"] for body in server.bodies] == ["m", "m"]
    assert all(KEY in request for request in server.requests)


def test_glm4_draws(tmp_path: Path) -> None:
    with site({PATH: answer(inline(PNG))}) as server:
        script = Script(tmp_path, [f"cogview\n{PROMPT}<|observation|>", "\n画好了。"])
        tool = ImageTool(f"http://127.0.0.1:{server.port}/v1")
        conversation = Conversation("c", [Message("user", "画一只狐狸")], Sources(), MemoryFiles())
        events = list(Agent(script.llm, [tool], today=TODAY).run(conversation))
        tool.close()
    assert ending(events) == ("completed", "stop")
    assert files(events) == ["picture.png"]
    assert json.loads(server.bodies[0])["prompt"] == PROMPT
    assert "<|observation|>cogview_result\nCogView 已经生成并向用户展示了生成的图片。<|assistant|>" in script.prompts[1]

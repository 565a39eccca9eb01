"""`continue_final_message`: the last message of the assistant is the beginning of the answer, in every API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glm4.api.openai import parse_chat
from glm4.batch.job import BatchJob
from glm4.chat.chat_request import ChatRequest
from glm4.chat.parts import ImagePart, TextPart
from glm4.errors import InvalidRequestError
from glm4.llm import LLM
from glm4.sampling_params import SamplingParams
from live import config, serve
from scripted_llm import scripted_llm

ASK = {"role": "user", "content": "Name a river."}
CONTINUED: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}


def history(begun: str = "The river") -> list[dict[str, Any]]:
    return [ASK, {"role": "assistant", "content": begun}]


@pytest.fixture
def llm(tmp_path: Path) -> LLM:
    return scripted_llm(tmp_path / "model", lambda prompt: " Seine.", dialect="glm4")


def shown(llm: LLM, messages: list[dict[str, Any]], **options: Any) -> str:
    ids = llm.prepare(ChatRequest.of(messages, **options)).prompt_ids
    return llm.tokenizer.decode(ids, skip_special_tokens=False)


# The last: words that the template writes, too, and the tag of a role, which stays text.
@pytest.mark.parametrize("begun", ["The river", "end", "assistant", "\nuser", "Words.", "<|im_end|>", "<|user|>"])
@pytest.mark.parametrize("dialect", ["glm4", "glm4_0414", "chatml"])
def test_the_prompt_ends_with_the_beginning(tmp_path: Path, dialect: str, begun: str) -> None:
    llm = scripted_llm(tmp_path, lambda prompt: "", dialect=dialect)
    prompt, head = shown(llm, [ASK]), "" if dialect == "chatml" else "\n"
    assert shown(llm, history(begun), **CONTINUED) == prompt + head + begun
    assert shown(llm, history(begun), continue_final_message=True) == prompt + head + begun
    ids = llm.prepare(ChatRequest.of(history(begun), **CONTINUED)).prompt_ids
    assert list(ids[-len(begun) :]) == llm.tokenizer.encode(begun)  # a token a byte: nothing became special


def test_nothing_begun_is_a_new_answer(llm: LLM) -> None:
    assert shown(llm, history(""), **CONTINUED) == shown(llm, [ASK])


def test_the_answer_is_what_follows(llm: LLM) -> None:
    (output,) = llm.chat(history(), **CONTINUED)
    assert output.outputs[0].text == " Seine."
    chunks = list(llm.stream_chat(history(), **CONTINUED))
    assert "".join(event.text for chunk in chunks for event in chunk.events) == " Seine."  # type: ignore[union-attr]


def test_chats_and_their_tokens_over_http(llm: LLM) -> None:
    body = {"model": "tiny", "messages": history(), **CONTINUED}
    with serve(config("tiny"), llm) as server, server.client() as client:
        answer = client.post("/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"] == " Seine."
        rendered = client.post("/v1/chat/completions/render", json=body).json()
        assert rendered["prompt"].endswith("<|assistant|>\nThe river")
        tokens = client.post("/tokenize", json=body).json()
        assert tokens["tokens"] == rendered["prompt_token_ids"]
        assert answer["usage"]["prompt_tokens"] == tokens["count"]
        assert client.post("/apply-template", json=body).json()["prompt"] == rendered["prompt"]
        refused = client.post("/v1/chat/completions", json=body | {"add_generation_prompt": True})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "continue_final_message")


def test_rows_of_a_batch(llm: LLM, tmp_path: Path) -> None:
    row = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": history()}}
    row["body"] = {"messages": history(), **CONTINUED}
    (tmp_path / "in").write_text(json.dumps(row))
    with BatchJob(tmp_path / "in", tmp_path / "out") as job:
        job.run(llm, model="tiny")
    written = json.loads((tmp_path / "out").read_text(encoding="utf-8"))
    assert written["response"]["body"]["choices"][0]["message"]["content"] == " Seine."


def test_a_form_is_one_of_what_follows(llm: LLM) -> None:
    """As in vLLM: the grammar does not know what the caller wrote."""
    params = {"structured_outputs": {"choice": ["x"]}}
    prepared = llm.prepare(parse_chat({"messages": history("{"), **CONTINUED, **params}, SamplingParams()).request)
    assert prepared.constraint is not None
    matcher = prepared.constraint.start()  # type: ignore[union-attr]
    assert matcher.forced() == llm.tokenizer.encode("x")


@pytest.mark.parametrize(
    ("messages", "options", "param", "problem"),
    [
        ([ASK], {}, "continue_final_message", "needs a last message of the assistant"),
        (history(), {"add_generation_prompt": True}, "continue_final_message", "exclude each other"),
        ([ASK, {"role": "assistant", "content": "a", "reasoning_content": "b"}], {}, "continue_final_message", "text"),
        ([ASK, {"role": "assistant", "content": [TextPart("a"), ImagePart(b"x")]}], {},
         "continue_final_message", "alone"),
        ([ASK, {"role": "assistant", "tool_calls": [{"id": "A", "function": {"name": "f"}}]}], {},
         "continue_final_message", "text alone"),
        (history(), {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
         "continue_final_message", "asks for a call"),
        (history(), {"template_kwargs": {"continue_final_message": True}}, "template_kwargs", "may not set"),
    ],
)  # fmt: skip
def test_what_cannot_be_continued_is_named(
    llm: LLM, messages: Any, options: dict[str, Any], param: str, problem: str
) -> None:
    with pytest.raises(InvalidRequestError, match=problem) as caught:
        llm.prepare(ChatRequest.of(messages, **{"continue_final_message": True, **options}))
    assert caught.value.param == param


def test_a_model_that_thinks_first_has_no_prefill(tmp_path: Path) -> None:
    llm = scripted_llm(tmp_path, lambda prompt: "", dialect="glm_z1")
    with pytest.raises(InvalidRequestError, match="it thinks first") as caught:
        llm.prepare(ChatRequest.of(history(), **CONTINUED))
    assert caught.value.param == "messages"


def test_efforts_of_reasoning(tmp_path: Path) -> None:
    """They reach the template; a model that always thinks refuses to think not at all."""
    body = {"messages": [ASK]}
    request = parse_chat(body | {"reasoning_effort": "high"}, SamplingParams()).request
    assert request.template_kwargs == {"reasoning_effort": "high"}
    silent = parse_chat(body | {"reasoning_effort": "none"}, SamplingParams()).request
    assert silent.template_kwargs == {"reasoning_effort": "none", "enable_thinking": False}
    own = body | {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}
    assert parse_chat(own, SamplingParams()).request.template_kwargs["enable_thinking"] is True
    thinks = scripted_llm(tmp_path / "z1", lambda prompt: "", dialect="glm_z1")
    plain = scripted_llm(tmp_path / "glm4", lambda prompt: "", dialect="glm4")
    for model, asked in ((thinks, request), (plain, request), (plain, silent)):
        assert model.prepare(asked).prompt_ids == model.prepare(ChatRequest.of([ASK])).prompt_ids
    with pytest.raises(InvalidRequestError, match="always thinks") as caught:
        thinks.prepare(silent)
    assert caught.value.param == "reasoning_effort"

"""Pictures on their way into a request: what is checked before they are fetched and decoded, and what backends get."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glm4 import LLM, ImagePart, Message, SamplingParams, TextPart
from glm4.backends.base import Capability
from glm4.backends.scripted import ScriptedBackend
from glm4.chat.chat_request import ChatRequest
from glm4.chat.pictures import has_addresses
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.text_files import read_text_files
from glm4.errors import InvalidRequestError, PromptTooLongError, TokenizerError
from glm4.multimodal.fetch import Fetcher, FetchPolicy
from glm4.multimodal.image import encode_picture
from glm4.open_model import open_model
from glm4.prompt import ImageLayout, MediaSpan, Prompt
from glm4.requests.image_inputs import ImageInputs, ImageOptions
from glm4.requests.local_images import with_local_images
from glm4.requests.processor import Processor
from glm4.requests.requirements import GRAMMARS
from tiny import VOCAB_SIZE, special_id, tiny_model, write_folder
from vision_folder import BEGIN, END, END_OF_TEXT, MARKS, ROWS, SIZE, write_vision_folder

PLACE = [BEGIN, END_OF_TEXT, END]
PARAMS = SamplingParams(temperature=0.0, max_tokens=4)
CAT, DOG = (encode_picture(np.full((9, 12, 3), shade, np.uint8)) for shade in (40, 200))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vision_folder(tmp_path_factory.mktemp("sees"))


@pytest.fixture(scope="module")
def text(folder: Path) -> Iterator[Processor]:
    processor = Processor.open(folder)
    yield processor
    assert processor.images is not None
    processor.images.close()


def llm_of(text: Processor, capabilities: frozenset[Capability] = frozenset(Capability), length: int = 256) -> LLM:
    backend = ScriptedBackend(
        lambda prompt: [97], vocab_size=VOCAB_SIZE, capabilities=capabilities, max_model_len=length
    )
    return LLM.from_backend(backend, text)


def ask(*images: object, words: str = "hi") -> list[Any]:
    return [
        {"role": "user", "content": [{"type": "text", "text": words}, *({"type": "image", "image": i} for i in images)]}
    ]


def address(url: str) -> list[Any]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def test_a_checkpoint_says_how_a_picture_stands_in_prompts(folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.text_files.image == read_text_files(folder).image
        assert checkpoint.variant == read_text_files(folder).variant


def test_config_json_says_how_a_picture_stands_in_prompts(folder: Path, tmp_path: Path) -> None:
    files = read_text_files(folder)
    assert files.image == ImageLayout(SIZE, ROWS, BEGIN, END, most=1)
    assert files.variant.name == "generic-chatglm"
    assert read_text_files(write_folder(tmp_path, tiny_model("chatglm"))).image is None


def test_the_prompt_of_a_picture_has_its_pixels(text: Processor) -> None:
    llm = llm_of(text)
    prompt = llm.prepare_chat(ask(CAT), PARAMS).prompt
    ids = [*text.tokenizer.prefix_ids, special_id("<|user|>"), 10, BEGIN, *[END_OF_TEXT] * (ROWS - 2), END, *b"hi"]
    assert list(prompt.ids) == [*ids, special_id("<|assistant|>")]
    (span,) = prompt.spans
    assert span == MediaSpan(4, ROWS, "image", str(ImagePart(CAT).digest), (0, 1, 1, 1, 1, 2))
    pixels = prompt.pixels[span.digest]
    assert pixels.shape == (SIZE, SIZE, 3)
    assert pixels.dtype == np.uint8
    assert set(pixels.ravel()) == {40}
    (output,) = llm.chat(ask(CAT), PARAMS)
    assert output.prompt_token_ids == list(prompt.ids)
    assert len(output.prompt_token_ids or ()) == len(llm.prepare_chat(ask(), PARAMS).prompt) + ROWS


def test_the_text_of_a_prompt_has_the_marks(text: Processor) -> None:
    prompt = llm_of(text).prepare_chat(ask(CAT), PARAMS).prompt
    assert text.text_of(prompt) == f"[gMASK]<sop><|user|>\n{MARKS}hi<|assistant|>"
    assert text.text_of(Prompt([97, 98])) == "ab"
    spans = tuple(MediaSpan(start, length, "image", "x") for start, length in ((0, 1), (1, 2), (3, 3), (6, 4), (10, 5)))
    assert bytes(Prompt(list(b"abcdefghijklmnopq"), spans).short_ids) == b"abcdefghjklopq"


def test_all_forms_of_a_picture_are_one(text: Processor, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(CAT)
    llm = llm_of(text)
    expected = llm.prepare_chat(ask(CAT), PARAMS).prompt
    forms = [ask(path), ask(str(path)), ask(np.full((9, 12, 3), 40, np.uint8)), ask(ImagePart(CAT)),
             [{"role": "user", "image": path, "content": "hi"}],
             [Message("user", [ImagePart.open(path), TextPart("hi")])]]  # fmt: skip
    for form in forms:
        assert llm.prepare_chat(form, PARAMS).prompt == expected
        assert next(iter(llm.stream_chat(form, PARAMS))).request_id


def test_what_is_counted_is_not_decoded(text: Processor) -> None:
    llm = llm_of(text)
    prompt = llm.render(ChatRequest.of(address("https://example.com/a.png")))
    assert [span.length for span in prompt.spans] == [ROWS]
    assert not prompt.pixels


def test_the_second_picture_is_refused_unless_it_is_allowed(folder: Path, text: Processor) -> None:
    with pytest.raises(InvalidRequestError, match="trained with one picture per conversation") as caught:
        llm_of(text).chat(ask(CAT, DOG), PARAMS)
    assert caught.value.param == "messages[0].content[2]"
    many = Processor.of(read_text_files(folder), ImageOptions(allow_many_images=True))
    with llm_of(many) as llm:
        prompt = llm.prepare_chat([*ask(CAT, DOG), Message("assistant", "a"), *ask(CAT)], PARAMS).prompt
    assert [span.digest for span in prompt.spans] == [ImagePart(one).digest for one in (CAT, DOG, CAT)]
    assert [int(prompt.pixels[span.digest][0, 0, 0]) for span in prompt.spans] == [40, 200, 40]


def test_closing_the_model_ends_the_process_that_decodes(folder: Path) -> None:
    with LLM(str(folder), dtype="fp32", max_model_len=64) as llm:
        assert llm.chat(ask(CAT), PARAMS)[0].outputs[0].token_ids
        images = llm.processor.images
        assert images is not None
        process = images.decoder._helper._process
        assert process is not None
        assert process.poll() is None
    assert process.poll() is not None


def test_damaged_pictures_are_named(text: Processor) -> None:
    with pytest.raises(InvalidRequestError, match="the image cannot be decoded") as caught:
        llm_of(text).chat(ask(b"not a picture"), PARAMS)
    assert caught.value.param == "messages[0].content[1]"


class Counting:
    """Stands where a fetcher or decoder would, and must not be asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def fetch(self, url: str, **_: object) -> None:
        self.asked.append(url)
        raise AssertionError

    def decode(self, *_: object) -> None:
        self.asked.append("decode")
        raise AssertionError

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("messages", "missing", "length", "problem"),
    [
        (address("https://example.com/a"), {Capability.MEDIA}, 256, "the scripted backend has no pictures or sounds"),
        (ask(CAT), {Capability.MEDIA}, 256, "the scripted backend has no pictures or sounds"),
        (address("https://example.com/a"), set(), 5, "the prompt has at least 6 tokens, but the context holds 5"),
        ([*address("https://example.com/a"), *ask(CAT)], set(), 256, "trained with one picture"),
        ([Message("tool", [ImagePart(CAT)])], set(), 256, "only messages of the user"),
        (ask(CAT, words="x" * 300), set(), 256, "the prompt has 311 tokens, but the context holds 256"),
    ],
)
def test_a_request_that_cannot_run_is_refused_before_anything_is_fetched_or_decoded(
    text: Processor, messages: Any, missing: set[Capability], length: int, problem: str
) -> None:
    assert text.images is not None
    watched: Any = Counting()
    images = ImageInputs(text.images.layout, watched, watched)
    llm = llm_of(replace(text, images=images), frozenset(Capability) - missing, length)
    with pytest.raises(InvalidRequestError, match=problem):
        llm.chat(messages, PARAMS)
    if "has 311 tokens" not in problem:  # known once it is encoded
        with pytest.raises(InvalidRequestError, match=problem):
            llm.fetched(ChatRequest.of(with_local_images(messages), PARAMS))
    assert not watched.asked
    assert not llm.has_unfinished_requests()


def test_a_text_model_refuses_them_as_before(tmp_path: Path) -> None:
    llm = llm_of(Processor.open(write_folder(tmp_path, tiny_model("chatglm"))), GRAMMARS)
    for messages in (ask(CAT), address("https://example.com/a.png")):
        with pytest.raises(InvalidRequestError, match="this model takes text only; cannot use a content part of type"):
            llm.chat(messages, PARAMS)
    with pytest.raises(InvalidRequestError, match="this model takes text only; leave multi_modal_data out"):
        llm.generate({"prompt": "a", "multi_modal_data": {"image": CAT}}, PARAMS)


class Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind, body = ("image/png", CAT) if self.path == "/cat.png" else ("text/html", b"<html>")
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_addresses_are_fetched_where_that_is_allowed(text: Processor, site: str) -> None:
    assert text.images is not None
    port = int(site.rpartition(":")[2])
    fetcher = Fetcher(FetchPolicy(allowed_hosts=(), private_hosts=("127.0.0.1",), ports=(port,)))
    llm = llm_of(replace(text, images=replace(text.images, fetcher=fetcher)))
    prompt = llm.prepare_chat(address(f"{site}/cat.png"), PARAMS).prompt
    assert prompt == llm.prepare_chat([Message("user", [ImagePart(CAT)])], PARAMS).prompt
    asked = ChatRequest.of(address(f"{site}/cat.png"), PARAMS)
    found = llm.fetched(asked)
    assert found.messages == (Message("user", [ImagePart(CAT)]),)
    assert has_addresses(asked.messages)
    assert not has_addresses(found.messages)
    assert llm.fetched(found) is found
    assert set(prompt.pixels) == {ImagePart(CAT).digest}
    raw = llm.prepare_prompt({"prompt_token_ids": PLACE, "multi_modal_data": {"image": f"{site}/cat.png"}}, PARAMS)
    assert raw.prompt.spans[0].digest == ImagePart(CAT).digest
    for url in (f"{site}/page", "http://127.0.0.2/cat.png"):
        with pytest.raises(InvalidRequestError, match=r"messages\[0\]\.content\[0\]: ") as caught:
            llm.chat(address(url), PARAMS)
        assert caught.value.param == "messages[0].content[0]"


def test_nothing_is_fetched_unless_asked_for(folder: Path, text: Processor, site: str) -> None:
    assert text.images is not None
    assert text.images.fetcher is None
    with pytest.raises(InvalidRequestError, match=r"media_domains \(`--media-domains`\)") as caught:
        llm_of(text).chat(address(f"{site}/cat.png"), PARAMS)
    assert caught.value.param == "messages[0].content[0]"
    files = read_text_files(folder)
    for domains, hosts in ((["example.com"], ("example.com",)), (("*",), None), ((), ())):
        made = Processor.of(files, ImageOptions(media_domains=domains)).images
        assert made is not None
        assert made.fetcher is not None
        assert made.fetcher.policy.allowed_hosts == hosts
        with pytest.raises(InvalidRequestError):  # a private address, whatever is allowed
            llm_of(replace(text, images=made)).chat(address(f"{site}/cat.png"), PARAMS)


@pytest.mark.parametrize("domains", ["example.com", [""], [7], 7, b"x"])
def test_options_are_checked(folder: Path, domains: Any) -> None:
    for backend in ("local", "remote"):
        with pytest.raises(InvalidRequestError, match="media_domains is a list of host names") as caught:
            open_model(str(folder), backend=backend, options={"media_domains": domains})
        assert caught.value.param == "media_domains"


def test_raw_prompts_have_pictures_in_their_places(text: Processor) -> None:
    llm = llm_of(text)
    prefix, rows = list(text.tokenizer.prefix_ids), [BEGIN, *[END_OF_TEXT] * (ROWS - 2), END]
    digest = str(ImagePart(CAT).digest)
    words: dict[str, Any] = {"prompt": f"a{MARKS}b", "multi_modal_data": {"image": CAT}}
    prepared = llm.prepare_prompt(words, PARAMS, parse_special=True)
    assert list(prepared.prompt_ids) == [*prefix, 97, *rows, 98]
    assert prepared.prompt.spans == (MediaSpan(len(prefix) + 1, ROWS, "image", digest, (0, 1, 1, 1, 1, 2)),)
    assert set(prepared.prompt.pixels) == {digest}
    assert prepared.text == f"a{MARKS}b"
    assert prepared.num_added_ids == len(prefix)
    ids: dict[str, Any] = {"prompt_token_ids": [97, *PLACE], "multi_modal_data": {"image": [CAT]}}
    assert list(llm.prepare_prompt(ids, PARAMS).prompt_ids) == [97, *rows]
    assert len(llm.generate([words, ids], PARAMS, parse_special=True)) == 2
    whole = llm.prepare_chat(ask(CAT), PARAMS).prompt
    assert llm.prepare_prompt(whole, PARAMS).prompt.pixels is whole.pixels


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ({"prompt": f"a{MARKS}", "multi_modal_data": {"image": CAT}}, "only with parse_special=True"),
        ({"prompt_token_ids": [97], "multi_modal_data": {"image": CAT}}, "for each of its pictures \\(1\\)"),
        ({"prompt_token_ids": [*PLACE, *PLACE], "multi_modal_data": {"image": CAT}}, "for each of its pictures"),
        ({"prompt_token_ids": PLACE, "multi_modal_data": {"image": [CAT, DOG]}}, "one picture per conversation"),
        ({"prompt_token_ids": PLACE, "multi_modal_data": {"image": "/no/file"}}, "cannot be read"),
        ({"prompt_token_ids": PLACE, "multi_modal_data": {"image": "https://example.com/"}}, "media_domains"),
        ({"prompt_token_ids": PLACE, "multi_modal_data": {"image": b"x"}}, "cannot be decoded"),
        ({"prompt_token_ids": PLACE, "multi_modal_data": {"video": CAT}}, "multi_modal_data is {'image'"),
        ({"prompt_token_ids": PLACE, "multi_modal_data": CAT}, "multi_modal_data is {'image'"),
        ({"prompt_token_ids": [97] * 252 + PLACE, "multi_modal_data": {"image": CAT}}, "has 258 tokens"),
    ],
)
def test_raw_prompts_are_strict(text: Processor, prompt: Any, problem: str) -> None:
    with pytest.raises(InvalidRequestError, match=problem):
        llm_of(text).generate(prompt, PARAMS)


def test_raw_prompts_need_the_capability(text: Processor) -> None:
    llm = llm_of(text, frozenset(Capability) - {Capability.MEDIA})
    for prompt in ({"prompt_token_ids": PLACE, "multi_modal_data": {"image": CAT}},
                   Prompt(PLACE, (MediaSpan(0, 3, "image", "x"),))):  # fmt: skip
        with pytest.raises(InvalidRequestError, match="has no pictures or sounds"):
            llm.generate(prompt, PARAMS)


def test_an_answer_may_be_begun_after_a_picture(text: Processor) -> None:
    turns = [*ask(CAT), Message("assistant", "It is a")]
    prompt = llm_of(text).prepare_chat(turns, PARAMS, continue_final_message=True).prompt
    assert bytes(list(prompt.ids)[-8:]) == b"\nIt is a"
    assert len(prompt.pixels) == len(prompt.spans) == 1


def test_too_long_prompts_count_the_rows(text: Processor) -> None:
    with pytest.raises(PromptTooLongError, match="the prompt has 13 tokens, but the context holds 13"):
        llm_of(text, length=13).chat(ask(CAT), PARAMS)
    assert llm_of(text, length=14).chat(ask(CAT), PARAMS)


def test_the_marks_are_those_that_the_configuration_names(folder: Path, tmp_path: Path) -> None:
    for changes in ({"boi_token_id": END, "eoi_token_id": BEGIN}, {"boi_token_id": 5}):
        other = write_vision_folder(tmp_path / str(changes["boi_token_id"]), config=changes)
        with pytest.raises(TokenizerError, match="pictures begin with token"):
            Processor.open(other)
    assert Processor.open(folder).image == ImageLayout(SIZE, ROWS, BEGIN, END)

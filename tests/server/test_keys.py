"""What one key's clients may know of another's: nothing of stored responses, nothing of cached prompts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from raw_http import refused

from glm4.cli.serving_options import read_keys
from glm4.llm import LLM
from live import LiveServer, config, serve
from stepped import until
from tiny import write_folder

KEYS = ("the-key-of-ann", "the-key-of-bob")
PROMPT = "a prompt of several pages, " * 40


@contextmanager
def two_keys(folder: Path, keys: tuple[str, ...] = KEYS, **options: Any) -> Iterator[tuple[LiveServer, list[Any]]]:
    """A server, and a client with each of the keys."""
    llm = LLM(str(write_folder(folder, chat_template=None)), dtype="fp32", max_num_seqs=4, max_model_len=4096)
    with serve(config(api_keys=keys, **options), llm) as running, ExitStack() as stack:
        headers = [{"authorization": f"Bearer {key}"} for key in keys] or [{}]
        yield running, [stack.enter_context(running.client(headers=one)) for one in headers]


def made(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/responses", json={"input": "Hello", "max_output_tokens": 2, "temperature": 0, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


@pytest.mark.parametrize("stored", [False, True])
def test_a_response_exists_for_its_own_key_only(tmp_path: Path, stored: bool) -> None:
    path = tmp_path / "store.sqlite" if stored else None
    with two_keys(tmp_path / "m", store_path=path) as (_, (ann, bob)):
        first = made(ann)
        at, item = f"/v1/responses/{first['id']}", first["output"][0]["id"]
        refused(bob.get(at), 404, "response_id")
        refused(bob.get(f"{at}/input_items"), 404, "response_id")
        refused(bob.post(f"{at}/cancel"), 404, "response_id")
        refused(bob.delete(at), 404, "response_id")
        continued = {"input": "and", "previous_response_id": first["id"]}
        for path_ in ("/v1/responses", "/v1/responses/input_tokens"):
            error = refused(bob.post(path_, json=continued), 400, "previous_response_id")
            assert error["code"] == "previous_response_not_found"
        referred = {"input": [{"type": "item_reference", "id": item}]}
        assert bob.post("/v1/responses", json=referred).status_code == 400
        assert ann.post("/v1/responses", json=referred | {"max_output_tokens": 2}).status_code == 200
        second = made(ann, previous_response_id=first["id"])
        assert ann.get(f"/v1/responses/{second['id']}").json()["previous_response_id"] == first["id"]
        assert ann.get(f"{at}/input_items").status_code == 200
        assert ann.delete(at).status_code == 200


def test_a_streamed_response_belongs_to_its_key(tmp_path: Path) -> None:
    with two_keys(tmp_path / "m") as (_, (ann, bob)):
        ann.post("/v1/responses", json={"input": "Hello", "max_output_tokens": 2, "stream": True})
        text = ann.post("/v1/responses", json={"input": "Hello", "max_output_tokens": 2, "stream": True}).text
        name = text.partition('"id":"resp_')[2].partition('"')[0]
        assert ann.get(f"/v1/responses/resp_{name}").json()["status"] in ("completed", "incomplete")
        assert bob.get(f"/v1/responses/resp_{name}").status_code == 404


def test_responses_survive_a_restart_and_a_second_key(tmp_path: Path) -> None:
    store = tmp_path / "store.sqlite"
    with two_keys(tmp_path / "m", (), store_path=store) as (_, (anybody,)):
        old = made(anybody)["id"]
    with two_keys(tmp_path / "m", KEYS[:1], store_path=store) as (_, (ann,)):
        assert ann.get(f"/v1/responses/{old}").status_code == 200, "there was no key then, and there is only one now"
        hers = made(ann)["id"]
    with two_keys(tmp_path / "m", KEYS, store_path=store) as (_, (ann, bob)):
        assert ann.get(f"/v1/responses/{hers}").status_code == 200
        assert [one.get(f"/v1/responses/{hers}").status_code for one in (ann, bob)] == [200, 404]
        assert [one.get(f"/v1/responses/{old}").status_code for one in (ann, bob)] == [404, 404]


def cached(client: httpx.Client, path: str = "/v1/completions", **fields: Any) -> int:
    given: dict[str, Any] = {"prompt": PROMPT} if path == "/v1/completions" else {"input": PROMPT}
    if path == "/v1/chat/completions":
        given = {"messages": [{"role": "user", "content": PROMPT}]}
    tokens = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    response = client.post(path, json={**given, tokens: 2, **fields})
    assert response.status_code == 200, response.text
    usage = response.json()["usage"]
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    return int(details["cached_tokens"])


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
def test_cached_tokens_tell_nothing_of_other_keys(tmp_path: Path, path: str) -> None:
    with two_keys(tmp_path / "m") as (running, (ann, bob)):
        assert cached(ann, path) == 0
        assert cached(bob, path) == 0, "whether it is a stranger's prompt"
        assert min(cached(ann, path), cached(bob, path)) > 100
        assert cached(ann, path, cache_salt="x") == 0
        assert cached(bob, path, cache_salt="x") == 0
        assert cached(ann, path, cache_salt="x") > 100
        until(lambda: not any(running.leftovers.values()), "nothing is held")


def test_with_one_key_a_salt_alone_separates(tmp_path: Path) -> None:
    with two_keys(tmp_path / "m", KEYS[:1]) as (running, (ann,)), running.client(headers=dict(ann.headers)) as other:
        assert cached(ann) == 0
        assert cached(other) > 100
        assert cached(other, cache_salt="y") == 0
        assert cached(ann, cache_salt="y") > 100
        assert cached(ann) > 100


@pytest.mark.parametrize("salt", ["", 5, ["a"], "x" * 2000])
def test_bad_salts_are_refused(tmp_path: Path, salt: Any) -> None:
    with two_keys(tmp_path / "m", ()) as (_, (client,)):
        for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses"):
            body = {"prompt": "x", "messages": [{"role": "user", "content": "x"}], "input": "x"}
            field = {"/v1/completions": "prompt", "/v1/responses": "input"}.get(path, "messages")
            refused(client.post(path, json={field: body[field], "cache_salt": salt}), 400, "cache_salt")


def test_a_key_file_that_others_can_read_is_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(KEYS[0] + "\n")
    for mode, warned in ((0o600, False), (0o400, False), (0o644, True), (0o640, True), (0o602, True)):
        file.chmod(mode)
        assert read_keys([], file) == KEYS[:1]
        assert ("chmod 600" in capsys.readouterr().err) == warned, oct(mode)

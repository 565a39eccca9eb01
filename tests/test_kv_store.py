"""The KV store as users have it: restarts, `kill -9`, several processes, other models, options, what clients see."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kv_asker
from adapter_files import factors, write_adapter
from glm4 import LLM
from glm4.backends.local import LocalBackend
from glm4.cli import main
from glm4.cli.parameters import Exit
from glm4.errors import InvalidRequestError
from glm4.loading import cache_entries, packed_cache
from glm4.model.kv_cache import PAGE_SIZE
from glm4.server.config import ServerConfig
from kv_asker import Answers, ask
from kv_stores import page_files
from live import config, serve
from tiny import tiny_model, write_folder

pytestmark = pytest.mark.slow  # minutes on two cores, together with the like

SIZE = 700


def document(seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 128, SIZE).tolist()


DOCUMENT = document(0)
FULL = SIZE // PAGE_SIZE * PAGE_SIZE
QUESTIONS = ([*DOCUMENT, 1, 2, 3], [*DOCUMENT, 9])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def options(store: Path | None, **more: Any) -> dict[str, Any]:
    return {
        "dtype": "fp32",
        "max_model_len": 1024,
        "max_num_seqs": 2,
        "kv_store": None if store is None else str(store),
        "kv_store_dtype": "native",
        **more,
    }


def without(model: Path, prompts: Sequence[Sequence[int]], **more: Any) -> list[list[int]]:
    with LLM(str(model), **options(None, enable_prefix_caching=False, **more)) as llm:
        return [tokens for tokens, _ in ask(llm, prompts)]


def once(model: Path, store: Path, prompts: Sequence[Sequence[int]], **more: Any) -> Answers:
    """Open a model, ask, close."""
    with LLM(str(model), **options(store, **more)) as llm:
        return ask(llm, prompts)


@pytest.mark.parametrize("kv", ["fp32", "fp16", "int8"])
def test_the_second_question_begins_at_once_after_a_restart(kv: str, model: Path, store: Path) -> None:
    """The answers are those without a store; an int8 cache needs no `native` for that."""
    more = {"kv_cache_dtype": kv, "kv_store_dtype": "int8" if kv == "int8" else "native"}
    expected = without(model, QUESTIONS, **more)
    (first,) = kv_asker.answers(kv_asker.start(model, QUESTIONS[:1], **options(store, **more)))
    assert first == (expected[0], 0)
    assert len(page_files(store)) == FULL // PAGE_SIZE
    (second,) = kv_asker.answers(kv_asker.start(model, QUESTIONS[1:], **options(store, **more)))
    assert second == (expected[1], FULL)


@pytest.mark.parametrize("page", [0, 5, FULL // PAGE_SIZE - 1])
def test_a_process_killed_in_the_middle_of_a_page_leaves_the_pages_before_it(
    page: int, model: Path, store: Path
) -> None:
    expected = without(model, QUESTIONS)
    kv_asker.kill_when_stopped(kv_asker.start(model, QUESTIONS[:1], page, **options(store)))
    assert len(page_files(store)) == page
    assert len(list((store / "partial").iterdir())) == 1
    (answer,) = once(model, store, QUESTIONS[1:])
    assert answer == (expected[1], page * PAGE_SIZE)
    assert list((store / "partial").iterdir()) == []
    assert once(model, store, QUESTIONS) == [(expected[0], FULL), (expected[1], FULL)]


def test_processes_share_a_folder_that_is_too_small_for_them(model: Path, store: Path) -> None:
    prompts = [[*document(seed), 7] for seed in range(4)]
    expected = without(model, prompts)
    size = SIZE * 2 * 2 * 2 * 16 * 4  # bytes of a document: keys and values of two layers, at least
    more = options(store, kv_store_bytes=2 * size)
    order = [0, 1, 0, 2, 3, 2, 0, 1, 3, 0]
    processes = [kv_asker.start(model, [prompts[(index + shift) % 4] for index in order], **more) for shift in range(3)]
    for shift, process in enumerate(processes):
        found = [tokens for tokens, _ in kv_asker.answers(process)]
        assert found == [expected[(index + shift) % 4] for index in order]
    total = sum(file.stat().st_size for file in page_files(store))
    assert 0 < total <= 2 * size * (1 + 3 / 16) + 3 * size / 20


def test_another_model_or_precision_finds_nothing(model: Path, store: Path, tmp_path: Path) -> None:
    assert once(model, store, QUESTIONS[:1])[0][1] == 0
    other = write_folder(tmp_path / "other", tiny_model(seed=8))
    (answer,) = once(other, store, QUESTIONS[:1])
    assert answer == (without(other, QUESTIONS[:1])[0], 0)
    for more in ({"dtype": "bf16"}, {"kv_cache_dtype": "fp16"}, {"kernels": "reference"}, {"kv_store_dtype": "int8"}):
        assert once(model, store, QUESTIONS[:1], **more)[0][1] == 0, more
    assert once(model, store, QUESTIONS[:1])[0][1] == FULL
    # The same files elsewhere, then other weights in the same place.
    moved = Path(shutil.copytree(model, tmp_path / "copy"))
    assert once(moved, store, QUESTIONS[:1])[0][1] == 0
    write_folder(moved, tiny_model(seed=8))
    (answer,) = once(moved, store, QUESTIONS[:1])
    assert answer == (without(other, QUESTIONS[:1])[0], 0)


def test_the_packed_form_of_a_model_is_the_same_model(
    model: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLM4_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(packed_cache, "_MIN_NBYTES", 0)
    monkeypatch.setattr(cache_entries, "_SPARE_DISK", 0)
    kinds, found = [], []
    for question in QUESTIONS:
        with LLM(str(model), **options(store, dtype="int8")) as llm:
            assert llm.checkpoint is not None
            kinds.append(llm.checkpoint.kind)
            found += ask(llm, [question])
    assert (kinds[0] != "packed", kinds[1]) == (True, "packed")
    assert [cached for _, cached in found] == [0, FULL]
    assert [tokens for tokens, _ in found] == without(model, QUESTIONS, dtype="int8")


def test_an_adapter_is_known_by_its_content(model: Path, store: Path, tmp_path: Path) -> None:
    def answer(path: Path, name: str) -> tuple[list[int], int]:
        with LLM(str(model), **options(store)) as llm:
            llm.load_adapter(name, str(path))
            return ask(llm, QUESTIONS[:1], name)[0]

    once(model, store, QUESTIONS[:1])
    with LLM(str(model), **options(None)) as llm:
        assert isinstance(llm.backend, LocalBackend)
        shape = llm.backend.model.config
    one, two = (write_adapter(tmp_path / str(seed), factors(shape, seed)) for seed in (1, 2))
    first = answer(one, "x")
    assert first[1] == 0
    assert answer(two, "x")[1] == 0
    assert answer(one.rename(tmp_path / "elsewhere"), "y") == (first[0], FULL)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kv_store_dtype": "fp8"}, "int8, native"),
        ({"enable_prefix_caching": False}, "enable_prefix_caching"),
        ({"kv_store_bytes": 0}, "kv_store_bytes must be at least 1"),
        ({"kv_store_min": -1}, "kv_store_min must be at least 0"),
        ({"kv_store": "/dev/null/x"}, "cannot use the folder"),
        ({"backend": "remote", "base_url": "http://127.0.0.1:9"}, "has no option 'kv_"),
    ],
)
def test_options_that_cannot_be_are_refused(given: dict[str, Any], says: str, model: Path, store: Path) -> None:
    with pytest.raises(InvalidRequestError, match=says) as caught:
        LLM(str(model), **({"kv_store": str(store)} | given))
    assert str(caught.value.param).startswith("kv_store")


def test_short_prompts_are_not_kept(model: Path, store: Path) -> None:
    once(model, store, [DOCUMENT[:511]])
    assert page_files(store) == []
    once(model, store, [DOCUMENT[:512]])
    assert len(page_files(store)) == 16
    more = {"kv_store_min": 100}
    once(model, store, [document(5)[:99]], **more)
    assert len(page_files(store)) == 16
    once(model, store, [document(5)[:100]], **more)
    assert len(page_files(store)) == 19


def test_clients_see_cached_tokens_and_operators_see_numbers(model: Path, store: Path) -> None:
    body = {"prompt": QUESTIONS[0], "temperature": 0, "max_tokens": 4}
    for cached in (0, FULL):
        with serve(config(), LLM(str(model), **options(store))) as running, running.client() as client:
            usage = client.post("/v1/completions", json=body).json()["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] == cached
            text = client.get("/metrics").text
            numbers = dict(line.split(" ") for line in text.splitlines() if line.startswith("glm4:kv_store_"))
            shown = {name.partition("{")[0]: float(value) for name, value in numbers.items()}
            assert shown["glm4:kv_store_hits_total"] == cached
    assert shown["glm4:kv_store_pages_written_total"] == 0
    assert shown["glm4:kv_store_bytes"] == sum(file.stat().st_size for file in page_files(store))


def test_options_of_the_command_line_reach_every_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configs: list[ServerConfig] = []

    def bind(config: ServerConfig) -> None:
        configs.append(config)
        raise Exit

    monkeypatch.setattr("glm4.server.run.bind", bind)
    more = ["--kv-store-gb", "0.5", "--kv-store-dtype", "native", "--kv-store-min", "64"]
    assert main(["serve", "-m", "a=smoke", "-m", "b=smoke", "--kv-store", "some folder", *more]) == 0
    for spec in configs.pop().models:
        found = {name: value for name, value in spec.options.items() if name.startswith("kv_store")}
        assert found == {
            "kv_store": "some folder",
            "kv_store_bytes": 500_000_000,
            "kv_store_dtype": "native",
            "kv_store_min": 64,
        }
    assert main(["serve", "-m", "smoke"]) == 0
    assert not [name for name in configs.pop().models[0].options if name.startswith("kv_store")]
    assert main(["serve", "-m", "smoke", *more]) == 2
    assert "not where: --kv-store" in capsys.readouterr().err
    remote = ["--backend", "remote", "--base-url", "http://127.0.0.1:9"]
    assert main(["serve", "-m", "smoke", *remote, "--kv-store", "some folder"]) == 2
    assert "kv_store" in capsys.readouterr().err
    assert not os.path.exists("some folder")  # noqa: PTH110

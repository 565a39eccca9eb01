"""`glm4 bench` on a tiny checkpoint: the questions asked, the figures' meaning, and its output forms. No clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glm4 import benchmark as speed
from glm4.backends.local import LocalBackend, LocalOptions
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.cli import main
from glm4.model.kv_cache import KVCache
from glm4.model.shapes import SHAPES
from tiny import write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("bench"))


@pytest.fixture(autouse=True)
def small_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_BANDWIDTH_BYTES", 1 << 20)


ARGUMENTS = ["--prompt", "8", "--context", "4", "--batch", "3", "--rounds", "2"]


def test_json_has_every_question_with_its_rounds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "-m", str(folder), "--dtype", "int4", "--json", *ARGUMENTS]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["facts"]["dtype"] == "int4"
    questions = [row["question"] for row in result["rows"]]
    assert questions == ["prefill 8", "decode at context 4", "decode at context 4, 3 sequences"]
    for row in result["rows"]:
        assert len(row["rounds"]) == 2
        assert row["tokens_per_second"] > 0
    assert "share_of_peak" in result["rows"][0]
    assert all("share_of_bandwidth" in row for row in result["rows"][1:])


def test_the_table_names_every_question(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "-m", str(folder), *ARGUMENTS]) == 0
    shown = capsys.readouterr().out
    assert "prefill 8" in shown
    assert "3 sequences" in shown


def test_an_unknown_format_is_refused_before_a_model_is_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--dtype", "--kv-dtype"):
        assert main(["bench", "-m", "no/such/folder", option, "int5"]) == 2
        assert f"{option} must be one of" in capsys.readouterr().err


def test_a_question_beyond_the_models_context_is_told_as_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "-m", str(folder), *ARGUMENTS, "--prompt", "99999"]) == 2
    assert "a context of 100000 tokens" in capsys.readouterr().err


def test_an_unknown_shape_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--random", "glm-5"]) == 2
    assert "glm-4-9b" in capsys.readouterr().err


@pytest.fixture
def backend(folder: Path) -> LocalBackend:
    options = LocalOptions(dtype="fp32", max_model_len=128, max_num_seqs=2, enable_prefix_caching=False)
    with open_checkpoint(folder) as checkpoint:
        return LocalBackend.load(checkpoint, options, np.empty(0, np.int64))


def test_a_step_reads_all_layers_the_head_and_the_cache(backend: LocalBackend) -> None:
    weights = backend.model.weights
    short, long = speed.Question(32, 3), speed.Question(64, 3)
    cache = speed.bytes_per_step(backend, long) - speed.bytes_per_step(backend, short)
    config = backend.model.config
    assert cache == 32 * 2 * config.num_hidden_layers * config.key_value_size * 4
    assert speed.bytes_per_step(backend, short) > weights.nbytes - weights.embed_tokens.nbytes
    assert speed.bytes_per_step(backend, short) < weights.nbytes + 4 * cache


@pytest.mark.parametrize("batch", [1, 2])
def test_a_filled_context_is_decoded_and_its_pages_come_back(backend: LocalBackend, batch: int) -> None:
    rng, cache = np.random.default_rng(0), backend.engine.cache
    speed.fill(cache, 8, rng)
    assert speed.run_filled(backend, speed.Question(70, 5, batch), rng) > 0
    assert cache.num_free_pages == cache.num_pages
    assert not backend.has_unfinished_requests()


def test_a_filled_context_costs_one_row_a_token(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    forward = backend.model.forward

    def counted(ids: Any, *rest: Any) -> Any:
        rows.append(len(ids))
        return forward(ids, *rest)

    monkeypatch.setattr(backend.model, "forward", counted)
    speed.run_filled(backend, speed.Question(70, 5), np.random.default_rng(0))
    assert rows == [1] * 5


@pytest.mark.parametrize("kv_dtype", ["fp32", "fp16", "int8"])
def test_every_page_is_filled(kv_dtype: str) -> None:
    config = SHAPES["smoke"]
    cache = KVCache(config, 70, kv_dtype)  # more than one repetition
    speed.fill(cache, 66, np.random.default_rng(0))
    for pages in (cache.keys[-1], cache.values[0]):
        assert all(page.any() for page in pages[:66])
        assert not pages[66:].any()
        assert np.isfinite(pages.astype(np.float32)).all()


def test_the_cache_is_as_large_as_the_largest_question(folder: Path) -> None:
    questions = [*speed.prefills([40]), *speed.decodes([16, 90], [3])]
    with open_checkpoint(folder) as checkpoint:
        options = speed.backend_options(checkpoint.config, questions)
        backend = LocalBackend.load(checkpoint, options, np.empty(0, np.int64))
    assert backend.engine.cache.num_pages == max(question.num_pages for question in questions) == 6
    assert [len(found.rounds) for found in speed.measure(backend, questions, 2)] == [2] * 4


def test_prompts_and_answers_are_timed_apart(backend: LocalBackend) -> None:
    both = speed.run(backend, speed.Question(40, 4, batch=2), np.random.default_rng(0))
    alone = speed.run(backend, speed.Question(40), np.random.default_rng(0))
    assert both.prefill > 0
    assert both.decode > 0
    assert alone.decode == 0


def test_a_cache_that_does_not_fit_is_refused_with_its_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("glm4.system.memory.available_memory", lambda: 8 << 30)
    arguments = ["--random", "glm-4-9b-chat-1m", "--dtype", "int4", "--context", "1000000"]
    assert main(["bench", *arguments]) == 1
    assert "a KV cache for 1000025 tokens takes 81.92 GB" in capsys.readouterr().err

"""The suites of other projects against our server, and checks of the lists of what is left out of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glm4.engine.protocol import GenerationRequest
from glm4.engine.sampling import Sampler
from glm4.prompt import Prompt
from glm4.sampling_params import SamplingParams

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from deselection import read_list  # noqa: E402


@pytest.mark.peers
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("suite", ["llama_cpp", "vllm", "harnesses", "clients"])
def test_peer_suite(suite: str) -> None:
    subprocess.run([sys.executable, str(HERE / "run.py"), suite], check=True)


@pytest.mark.parametrize("name", ["llama_cpp_deselected.txt", "vllm_deselected.txt"])
def test_each_case_left_out_has_a_reason(name: str) -> None:
    reasons = read_list(name)
    assert reasons
    assert all(len(reason) > 3 for reason in reasons.values())


def test_llama_server_flags_become_ours(tmp_path: Path) -> None:
    from llama_server import arguments, command

    given = "--port 8123 --ctx-size 512 --parallel 2 --alias a,b --api-key secret-key --jinja --hf-repo x --no-slots"
    line = command(arguments(given.split()), tmp_path)
    assert line[line.index("--context") + 1] == "256"  # llama.cpp's is shared by its slots
    assert line[line.index("--max-num-seqs") + 1] == "2"
    assert line[line.index("--model") + 1].startswith("a=")
    assert [line[i + 1] for i, word in enumerate(line) if word == "--served-model-name"] == ["b", "*"]
    assert line[line.index("--api-key") + 1] == "secret-key"


def test_requests_without_a_seed_are_left_to_no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    from chance import remove_chance

    def draws(prompt: list[int], **options: Any) -> list[int]:
        params = SamplingParams(temperature=1.0, **options)
        sampler = Sampler(GenerationRequest("a", Prompt(prompt), params), np.empty(0, int))
        return [sampler.sample(np.zeros(1000, np.float32), number) for number in range(8)]

    assert draws([1, 2]) != draws([1, 2])
    monkeypatch.setattr(Sampler, "__init__", Sampler.__init__)  # restored afterwards
    remove_chance()
    assert draws([1, 2]) == draws([1, 2])
    assert draws([1, 2]) != draws([1, 3])
    assert draws([1, 2], seed=1) != draws([1, 2], seed=2)


def test_vllm_flags_become_ours(tmp_path: Path) -> None:
    from vllm_server import command

    given = ["--max-model-len=1024", "--enforce-eager", "--lora-modules", "one=/x", '{"name": "two", "path": "/y"}']
    line = command("org/model", given, tmp_path)
    assert line[line.index("--context") + 1] == "1024"
    assert line[line.index("--served-model-name") + 1] == "org/model"
    assert [line[i + 1] for i, word in enumerate(line) if word == "--lora"] == ["one=/x", "two=/y"]

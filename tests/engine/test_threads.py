"""Which threads work during a step: the caller and the kernels' workers, and none of NumPy's BLAS."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os
from dataclasses import replace
from pathlib import Path
import numpy as np
from glm4.engine.engine import Engine
from glm4.engine.protocol import GenerationRequest
from glm4.kernels import get_kernels
from glm4.model.kv_cache import KVCache
from glm4.loading.weights import random_model
from glm4.model.precision import PRECISIONS
from glm4.model.shapes import SHAPES
from glm4.prompt import Prompt
from glm4.sampling_params import SamplingParams

config = replace(SHAPES["starter"], num_hidden_layers=2, vocab_size=2000)
kernels = get_kernels("native")
engine = Engine(random_model(config, PRECISIONS["int8"], kernels), KVCache(config, 32, "int8"), 512)
kernels.set_num_threads(2)

def answer(name):
    params = SamplingParams(
        temperature=0.8, top_p=0.9, top_k=50, seed=1, max_tokens=8, logprobs=3, repetition_penalty=1.1
    )
    engine.add_request(GenerationRequest(name, Prompt(np.arange(200).tolist()), params))
    while engine.has_unfinished_requests():
        engine.step()

def times():
    # Nanoseconds on a processor, by (name, number) of the thread.
    tasks = list(Path("/proc/self/task").iterdir())
    return {
        ((t / "comm").read_text().strip(), int(t.name)): int((t / "schedstat").read_text().split()[0]) for t in tasks
    }

product = np.ones((700, 700))
product @ product  # starts whatever BLAS wants to start
answer("first")
before = times()
answer("second")
worked = {name for name, time in times().items() if time != before.get(name)}
print([name for name in worked if name[1] != os.getpid() and not name[0].startswith("glm4-")])
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="reads /proc")
def test_only_the_caller_and_the_workers_run() -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout == "[]\n"

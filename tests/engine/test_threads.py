"""Which threads work during a step: the caller and the kernels' workers, and none of NumPy's BLAS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from glm4.system.cpus import default_num_threads

SCRIPT = """
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
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

def answer(name, between=lambda: None):
    params = SamplingParams(
        temperature=0.8, top_p=0.9, top_k=50, seed=1, max_tokens=8, logprobs=3, repetition_penalty=1.1
    )
    engine.add_request(GenerationRequest(name, Prompt(np.arange(200).tolist()), params))
    while engine.has_unfinished_requests():
        engine.step()
        between()

def times():
    # Nanoseconds on a processor: of the caller and the kernels' workers, and of all other threads.
    ours, others = 0, 0
    for task in Path("/proc/self/task").iterdir():
        time = int((task / "schedstat").read_text().split()[0])
        if int(task.name) == os.getpid() or (task / "comm").read_text().startswith("glm4-"):
            ours += time
        else:
            others += time
    return np.array([ours, others])

def share_of_others(between=lambda: None):
    before, number = times(), 0
    while (times() - before)[0] < 5e8:
        number += 1
        answer(str(number), between)
    ours, others = (times() - before).tolist()
    return others / (ours + others)

product = np.ones((700, 700))
product @ product  # starts whatever BLAS wants to start
answer("first")
# A BLAS thread keeps looking for work for a while before it sleeps.
for _ in range(100):
    before = times()
    time.sleep(0.1)
    if times()[1] == before[1]:
        break
stranger = ThreadPoolExecutor(1)
print(json.dumps([share_of_others(), share_of_others(lambda: stranger.submit(lambda: product @ product).result())]))
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="reads /proc")
@pytest.mark.skipif(default_num_threads() < 2, reason="on one processor a BLAS has no threads that could work")
def test_only_the_caller_and_the_workers_work() -> None:
    """Their share of the work, not whether another thread ever ran: the system may wake one for reasons of its own."""
    # Commands that ran in this process before may have left NumPy one thread.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    alone, beside_stranger = json.loads(result.stdout)
    assert alone < 0.02
    assert beside_stranger > 0.1  # the measure sees a thread that works after every step

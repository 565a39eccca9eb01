"""A process that asks about documents with a KV store, for tests that end it: `python kv_asker.py JSON`.

The argument is an object: `model`, `options` of `LLM`, `prompts` of ids, and `stop_at`: the number of the page in whose
middle writing stops for good, after the line "stopped"; or null. What it prints is a list of [tokens of the answer,
cached tokens of the prompt].
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glm4 import LLM, SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
Answers = list[tuple[list[int], int]]


def ask(llm: LLM, prompts: Sequence[Sequence[int]], adapter: str | None = None) -> Answers:
    answers: Answers = []
    for ids in prompts:
        (output,) = llm.generate([list(ids)], GREEDY, adapter=adapter)
        answers.append((list(output.outputs[0].token_ids), output.num_cached_tokens))
    return answers


def start(
    model: Path, prompts: Sequence[Sequence[int]], stop_at: int | None = None, **options: Any
) -> subprocess.Popen[str]:
    """Start such a process."""
    task = {"model": str(model), "prompts": [list(ids) for ids in prompts], "stop_at": stop_at, "options": options}
    command = [sys.executable, __file__, json.dumps(task)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def answers(process: subprocess.Popen[str]) -> Answers:
    """What it says at its end."""
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return [(tokens, cached) for tokens, cached in json.loads(said)]


def kill_when_stopped(process: subprocess.Popen[str]) -> None:
    """kill -9 in the middle of a page."""
    assert process.stdout is not None
    assert any("stopped" in line for line in process.stdout)  # perhaps after the answers
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


def _stop_in_the_middle_of(page: int) -> None:
    real, numbers = os.write, itertools.count()

    def write(descriptor: int, data: memoryview) -> int:
        if next(numbers) < 2 * page + 1:  # two parts each: header, content
            return real(descriptor, data)
        real(descriptor, data[: len(data) // 2])
        real(1, b"stopped\n")
        while True:
            signal.pause()

    vars(os)["write"] = write


def main() -> None:
    task = json.loads(sys.argv[1])
    if task["stop_at"] is not None:
        _stop_in_the_middle_of(task["stop_at"])
    # Not closed: what is queued must be written when the program ends, too.
    llm = LLM(task["model"], **task["options"])
    found = ask(llm, task["prompts"])
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

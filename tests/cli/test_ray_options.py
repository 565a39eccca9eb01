"""Ray's options without Ray: what is refused, and how a cluster is shared out."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from processes import run

from glm4.batch.ray.cluster import AUTO, Shares, Wanted, cluster, share_out
from glm4.cli.ray_options import RayOptions
from glm4.errors import InvalidRequestError
from glm4.server.agent.config import AgentConfig
from glm4.server.config import ModelSpec, ServerConfig
from glm4.server.ray.run import check

CPU_NODE, GPU_NODE = {"CPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}
VLLM: dict[str, Any] = {"backend": "vllm"}


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
@pytest.mark.parametrize("command", ["batch", "serve"])
def test_without_ray_the_error_says_how_to_install_it(command: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"custom_id": "a", "body": {}}\n')
    files = [str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")] if command == "batch" else []
    done = run(command, *files, "-m", "no-such-model", "--ray", home=tmp_path)
    assert done.returncode == 2
    assert f"error: glm4 {command} --ray needs the package ray, which is not installed" in done.stderr.decode()
    assert "pip install 'glm4[ray]'" in done.stderr.decode()


@pytest.mark.parametrize("words", [("batch", "a", "b", "--ray-actors", "2"), ("serve", "--replicas", "2"),
                                   ("serve", "--ray-gpus", "1"), ("batch", "a", "b", "--ray-cpus", "1")])  # fmt: skip
def test_options_of_a_cluster_need_one(words: tuple[str, ...], tmp_path: Path) -> None:
    done = run(*words, home=tmp_path)
    assert done.returncode == 2
    assert f"{words[-2]} is for a Ray cluster; add --ray" in done.stderr.decode()


@pytest.mark.parametrize("address", ["", "head", "head:", ":1", "ray://head:10001", "head:x"])
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    with pytest.raises(InvalidRequestError, match="--ray takes HOST:PORT") as caught, cluster(address):
        pass
    assert caught.value.param == "ray"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"store_path": Path("s")}, "--store"),
        ({"allow_adapter_loading": True}, "--allow-adapter-loading"),
        ({"ui": True}, "--ui"),
        ({"agent": AgentConfig(tools=("browser",))}, "--tools"),
        ({"agent": AgentConfig(sessions=Path("s"))}, "--sessions"),
    ],
)
def test_what_replicas_cannot_share_is_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"{word} does not work with --ray"):
        check(ServerConfig((ModelSpec("starter", ("starter",)),), **options))


@pytest.mark.parametrize(
    ("wanted", "options", "nodes", "shares"),
    [
        (Wanted(), {}, [CPU_NODE, CPU_NODE], Shares(2, 8, 0, None)),
        (Wanted(), {}, [CPU_NODE, GPU_NODE], Shares(2, 8, 0, None)),  # our engine does not compute on GPUs
        (Wanted(4), {}, [CPU_NODE, CPU_NODE], Shares(4, 4, 0, 4)),
        (Wanted(3), {}, [CPU_NODE, CPU_NODE], Shares(3, 4, 0, 4)),  # two of 5 do not fit on a node
        (Wanted(1), {}, [CPU_NODE, CPU_NODE], Shares(1, 8, 0, None)),
        (Wanted(cpus=4), {}, [CPU_NODE, CPU_NODE], Shares(4, 4, 0, 4)),
        (Wanted(), VLLM, [GPU_NODE, GPU_NODE], Shares(8, 1, 1, 1)),
        (Wanted(), VLLM | {"tensor_parallel_size": 4}, [GPU_NODE, CPU_NODE], Shares(1, 1, 4, 1)),
        (Wanted(gpus=0.5), VLLM, [GPU_NODE], Shares(8, 1, 0.5, 1)),
        (Wanted(2, gpus=0), VLLM, [GPU_NODE], Shares(2, 8, 0, 8)),
        (Wanted(), VLLM, [CPU_NODE], Shares(1, 8, 0, None)),
        (Wanted(), {"backend": "transformers", "device": "cpu"}, [GPU_NODE], Shares(1, 16, 0, None)),
    ],
)
def test_a_cluster_is_shared_out(
    wanted: Wanted, options: dict[str, Any], nodes: list[dict[str, float]], shares: Shares
) -> None:
    assert share_out(wanted, options, nodes) == shares


@pytest.mark.parametrize(
    ("wanted", "options", "nodes"),
    [
        (Wanted(17), {}, [CPU_NODE, CPU_NODE]),
        (Wanted(2, cpus=5), {}, [CPU_NODE]),
        (Wanted(gpus=1), {}, [CPU_NODE]),
        (Wanted(), VLLM | {"tensor_parallel_size": 8}, [GPU_NODE, GPU_NODE]),  # one model needs one node
        (Wanted(), {}, []),
    ],
)
def test_too_small_a_cluster_is_refused(wanted: Wanted, options: dict[str, Any], nodes: list[dict[str, float]]) -> None:
    with pytest.raises(InvalidRequestError, match="which is not enough for"):
        share_out(wanted, options, nodes)


def test_processes_get_what_this_machine_has_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM4_REMOTE_API_KEY", "a key")
    shares = Shares(4, 4, 0, 4)
    assert shares.llm_options({"backend": "local", "num_threads": None})["num_threads"] == 4
    assert shares.llm_options({"num_threads": 1})["num_threads"] == 1
    assert shares.llm_options({"backend": "remote", "base_url": "u"}) == {
        "backend": "remote", "base_url": "u", "api_key": "a key",
    }  # fmt: skip
    assert RayOptions(ray=AUTO, ray_cpus=2).wanted(3) == Wanted(3, 2, None)

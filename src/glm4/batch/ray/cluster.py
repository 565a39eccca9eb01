"""A Ray cluster: connecting to it, or starting one on this machine, and what each process on it gets."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm4.backends.remote.options import KEY_VARIABLE
from glm4.errors import ClusterError, InvalidRequestError, MissingExtraError
from glm4.system.extras import Package, require_packages

LOCAL = "local"
"""The address of a cluster that is started on this machine, and ends with this program."""
AUTO = "auto"
"""The address of the cluster that this machine is part of."""
_RAY = Package("ray", least="2.60")
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 60.0
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_rpc_server_connect_timeout_s": "30",  # busy machines do not answer within Ray's 5 s
}
_TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_TOKEN_FILE = "~/.ray/auth_token"  # noqa: S105 - where Ray keeps it
_ON_GPUS = ("transformers", "vllm")
# Ray's client ends or blocks its process when whoever listens at the address is not Ray.
_TRIAL = (
    "import sys, ray; "
    "ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); ray.cluster_resources(); ray.shutdown()"
)
_COLOR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Wanted:
    """What the user asks for; None leaves it to `share_out`.

    Attributes:
        count: processes that hold the model.
        cpus, gpus: for each of them.
    """

    count: int | None = None
    cpus: int | None = None
    gpus: float | None = None


@dataclass(frozen=True)
class Shares:
    """The processes that hold a model, and what each gets of its node.

    Attributes:
        threads: how many to compute with; None if it has all of the node.
    """

    count: int
    cpus: int
    gpus: float
    threads: int | None

    def llm_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options of `LLM` for one of the processes: what they leave to this machine is decided here."""
        mine, backend = dict(options), options.get("backend", "local")
        if backend == "local" and mine.get("num_threads") is None:
            mine["num_threads"] = self.threads
        if backend == "remote" and mine.get("api_key") is None:
            mine["api_key"] = os.environ.get(KEY_VARIABLE)  # nodes do not have this program's environment
        return mine


def check_ray(feature: str, module: str = "ray") -> None:
    """Import Ray, with its settings for this program; to be called before everything else here.

    Args:
        feature: at the start of the error.
        module: the part of Ray that it needs.

    Raises:
        MissingExtraError: it is not, or has a version that does not work.
    """
    require_packages(feature, "ray", (_RAY,))
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Ray would use the token of this machine for some forms of addresses only. A cluster without tokens ignores it.
    if any(os.environ.get(name) for name in _TOKEN_VARIABLES) or Path(_TOKEN_FILE).expanduser().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{feature} needs {module}, which does not load ({error}); install it with: pip install 'glm4[ray]'"
        ) from None


@contextlib.contextmanager
def cluster(address: str) -> Iterator[None]:
    """Be connected to a cluster; everything started in the block ends with it.

    Args:
        address: HOST:PORT of the head node, `AUTO` or `LOCAL`.

    Raises:
        InvalidRequestError: it has none of these forms.
        ClusterError: nothing answers there, or it is not a cluster that this program can use.
    """
    if address != LOCAL:
        _check_answers(address)
    import ray

    options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ClusterError(f"Ray cannot be used at {address}: {error}") from None
    try:
        # Ray prints what happens to processes on standard output, which is for answers.
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        with quiet():
            ray.shutdown()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what Ray prints about processes that end because they were told to."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _check_answers(address: str) -> None:
    """Fail within a minute if there is no cluster at an address."""
    if address != AUTO:
        host, _, port = address.rpartition(":")
        if "://" in address or not host or not port.isdecimal():
            raise InvalidRequestError(
                f"--ray takes HOST:PORT of the cluster's head node (usually port 6379), {AUTO} for the cluster that"
                f" this machine is part of, or nothing to start one here; not {address!r}",
                param="ray",
            )
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise ClusterError(
                f"no Ray cluster answers at {address}: {error}. Start one with `ray start --head`, or give the address"
                " that it printed"
            ) from None
    try:
        done = subprocess.run(  # noqa: S603 - our interpreter, our program
            [sys.executable, "-c", _TRIAL, address],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_ANSWER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"what listens at {address} did not answer as a Ray cluster within {_ANSWER_SECONDS:.0f} s"
        ) from None
    if done.returncode != 0:
        shown = _COLOR.sub("", done.stdout.decode(errors="replace")).strip()
        if "Authentication" in shown:
            raise ClusterError(
                f"the Ray cluster at {address} asks for a token: copy {_TOKEN_FILE} of its head node to this"
                " machine, or set RAY_AUTH_TOKEN"
            )
        lines = shown.splitlines()
        raise ClusterError(f"Ray cannot be used at {address}: {lines[-1] if lines else f'exit {done.returncode}'}")


def share_out(wanted: Wanted, options: Mapping[str, Any], nodes: Sequence[Mapping[str, float]]) -> Shares:
    """Divide a cluster among processes that hold a model each.

    On GPUs, if the backend computes there, there is one process for each of them; else one for each node, which gets
    as many processors as the smallest node has.

    Args:
        options: of `LLM`.
        nodes: resources of each node, as Ray names them.

    Raises:
        InvalidRequestError: the cluster has not enough; `.param` names the option.
    """
    nodes = [node for node in nodes if node.get("CPU")]
    gpus = _gpus(wanted, options, nodes)
    smallest = int(min((node["CPU"] for node in nodes), default=0))
    total = int(sum(node["CPU"] for node in nodes))
    if wanted.cpus is not None:
        choices: Sequence[int] = [wanted.cpus]
    elif gpus:
        choices = [1]
    elif wanted.count is not None:
        choices = range(max(1, min(smallest, total // wanted.count)), 0, -1)
    else:
        choices = [max(1, smallest)]
    count = wanted.count or (_room(nodes, choices[0], gpus) if gpus or wanted.cpus else len(nodes))
    cpus = next((cpus for cpus in choices if _room(nodes, cpus, gpus) >= max(1, count)), None)
    if cpus is None:
        each = f"{choices[-1]} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        have = f"{total} CPUs and {sum(node.get('GPU', 0) for node in nodes):g} GPUs on {len(nodes)} nodes"
        raise InvalidRequestError(
            f"the cluster has {have}, which is not enough for {max(1, count)} processes with {each} each", param="ray"
        )
    return Shares(max(1, count), cpus, gpus, None if cpus >= smallest else cpus)


def _gpus(wanted: Wanted, options: Mapping[str, Any], nodes: Sequence[Mapping[str, float]]) -> float:
    if wanted.gpus is not None:
        return wanted.gpus
    if (
        options.get("backend") not in _ON_GPUS
        or options.get("device") == "cpu"
        or not any(node.get("GPU") for node in nodes)
    ):
        return 0
    return float((options.get("tensor_parallel_size") or 1) * (options.get("pipeline_parallel_size") or 1))


def _room(nodes: Sequence[Mapping[str, float]], cpus: int, gpus: float) -> int:
    """How many such processes fit."""
    return sum(
        min(int(node["CPU"] // cpus), int(node.get("GPU", 0) // gpus) if gpus else sys.maxsize) for node in nodes
    )


def live_nodes() -> list[Mapping[str, float]]:
    """The resources of each node of the cluster that this program is connected to."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def everywhere(model: str) -> str:
    """A model's name as other processes find it: a path does not depend on the folder in which they run."""
    return str(Path(model).resolve()) if Path(model).exists() else model

"""Container images and Kubernetes manifests: valid, and in agreement with the package that they run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import glm4
from glm4.cli.commands import COMMANDS
from glm4.cli.parser import read
from glm4.llm import LLM
from live import config, serve
from tiny import write_folder

DEPLOY = Path(__file__).parent.parent / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("*Dockerfile"))
MANIFESTS = sorted(path for path in (DEPLOY / "kubernetes").glob("*.yaml"))
HADOLINT = Path(sysconfig.get_path("scripts")) / "hadolint"
# Kinds of tools on top of Kubernetes, which has no schema for them.
OTHER_KINDS = {"Kustomization"}


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def containers() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(pod, container) of every Deployment."""
    for path in MANIFESTS:
        for document in documents(path):
            if document["kind"] == "Deployment":
                pod = document["spec"]["template"]["spec"]
                yield pod, pod["containers"][0]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_valid(path: Path) -> None:
    for document in documents(path):
        if document["kind"] not in OTHER_KINDS:
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_the_validation_notices_a_slip() -> None:
    manifest = documents(DEPLOY / "kubernetes" / "deployment.yaml")[0]
    manifest["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_the_collection_holds_the_manifests_for_processors() -> None:
    listed = set(documents(DEPLOY / "kubernetes" / "kustomization.yaml")[0]["resources"])
    assert listed <= {path.name for path in MANIFESTS}
    assert {"deployment.yaml", "service.yaml", "autoscaling.yaml", "disruption.yaml", "storage.yaml"} <= listed


def test_pods_run_commands_that_exist_and_have_time_to_end() -> None:
    found = 0
    for pod, container in containers():
        if "command" in container:  # a shell's, or Ray's
            continue
        command, *args = container["args"]
        options = read(COMMANDS[command].load(command)[1], args)
        access = options["access"]
        pause = int(re.search(r"sleep\((\d+)\)", container["lifecycle"]["preStop"]["exec"]["command"][-1])[1])  # type: ignore[index]
        assert pod["terminationGracePeriodSeconds"] >= options["limits"].shutdown_timeout + pause
        assert access.host == "0.0.0.0"
        assert access.api_key_file is not None
        assert container["image"].partition(":")[2] == glm4.__version__
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert f"USER {pod['securityContext']['runAsUser']}" in (DEPLOY / "Dockerfile").read_text()
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["path"] in ("/ready", "/health")
        found += 1
    assert found == 2


def test_the_head_of_a_ray_cluster_serves_and_its_workers_find_it() -> None:
    service, _, head, worker, policy = documents(DEPLOY / "kubernetes" / "ray.yaml")
    container = head["spec"]["template"]["spec"]["containers"][0]
    start, serve_line = container["args"][0].split(" && exec glm4 ")
    command, *args = shlex.split(serve_line)
    options = read(COMMANDS[command].load(command)[1], args)
    assert options["replicas"] == worker["spec"]["replicas"]
    assert options["limits"].shutdown_timeout < head["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    port = service["spec"]["ports"][0]["port"]
    assert f"--port={port}" in start
    name = service["metadata"]["name"]
    assert f"--address={name}:{port}" in worker["spec"]["template"]["spec"]["containers"][0]["command"]
    for one in (head, worker):
        labels = one["spec"]["template"]["metadata"]["labels"]
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()


def test_the_autoscaler_reads_a_metric_that_the_server_has(tmp_path: Path) -> None:
    wanted = documents(DEPLOY / "kubernetes" / "autoscaling.yaml")[0]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    settings = documents(DEPLOY / "kubernetes" / "metrics-adapter.yaml")[0]["data"]["adapter-rules.yaml"]
    (rule,) = yaml.safe_load(settings)["rules"]
    assert rule["name"]["as"] == wanted
    series = rule["seriesQuery"].partition("{")[0]
    llm = LLM(str(write_folder(tmp_path / "m")), dtype="fp32", max_model_len=256)
    with serve(config("tiny"), llm) as running, running.client() as client:
        assert f'\n{series}{{model_name="tiny"}}' in client.get("/metrics").text


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_run_commands_that_exist_as_a_user_without_rights(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    command, *args = json.loads(re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)[-1])
    assert read(COMMANDS[command].load(command)[1], args)["access"].host == "0.0.0.0"
    assert re.search(r"^USER [1-9]", text, re.MULTILINE)
    assert text.count("\nFROM ") == 2
    assert "HEALTHCHECK" in text


@pytest.mark.skipif(not HADOLINT.exists(), reason="there is no hadolint for this system")
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_pass_the_linter(path: Path) -> None:
    found = subprocess.run([HADOLINT, path], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout

"""A backend whose packages are not here, or in another version, says what to install before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from glm4 import LLM
from glm4.backends.table import BACKENDS, BackendRow, backend_row
from glm4.cli import main
from glm4.errors import InvalidRequestError, MissingExtraError, RemoteUnavailableError
from glm4.system.extras import Package, require_packages
from tiny import write_folder

ROWS = [row for row in BACKENDS.values() if row.packages]
NOWHERE = "no/such/model"  # looked for later: nothing may be downloaded for a backend that cannot run


def fake(parent: Path, row: BackendRow, version: str) -> None:
    """What pip leaves behind for every package of a backend, and a module that must never be imported."""
    for package in row.packages:
        name = (package.distributions or (package.module,))[0].replace("-", "_")
        info = parent / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (parent / package.module).mkdir()
        (parent / package.module / "__init__.py").write_text("raise SystemExit('imported')\n")


def installed(row: BackendRow) -> bool:
    return all(package.installed is not None for package in row.packages)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_missing_package_is_named_with_its_extra(row: BackendRow, capsys: pytest.CaptureFixture[str]) -> None:
    if installed(row):
        pytest.skip(f"{row.name} is installed here")
    with pytest.raises(MissingExtraError, match=rf"pip install 'glm4\[{row.extra}\]'"):
        LLM(NOWHERE, backend=row.name)
    for command in ("serve", "bench"):
        assert main([command, "-m", NOWHERE, "--backend", row.name]) == 2
        said = capsys.readouterr().err
        assert f"the {row.name} backend needs" in said
        assert f"pip install 'glm4[{row.extra}]'" in said


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_another_version_is_named_and_not_imported(
    row: BackendRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, row, "0.30.0" if row.name == "vllm" else "0.0.1")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"version 0\.\d+\.\d is installed; install it with: pip") as caught:
        LLM(NOWHERE, backend=row.name)
    assert row.packages[0].wanted in str(caught.value)


def test_versions_are_compared_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = backend_row("vllm")
    monkeypatch.syspath_prepend(tmp_path)
    for version, fits in (("0.31.9", False), ("0.32", True), ("0.33.1+cpu", True), ("0.34.0", False), ("1.0", False)):
        place = tmp_path / version
        place.mkdir()
        fake(place, row, version)
        monkeypatch.syspath_prepend(place)
        if fits:
            row.check_installed()
        else:
            with pytest.raises(MissingExtraError, match=version):
                row.check_installed()


def test_a_package_by_another_name_counts() -> None:
    require_packages("a feature", "x", [Package("numpy", "1.0", distributions=("no-such-name", "numpy"))])
    with pytest.raises(MissingExtraError, match=r"a feature needs numpy>=99; version .* pip install 'glm4\[x\]'"):
        require_packages("a feature", "x", [Package("numpy", "99")])


def test_an_option_is_wrong_before_a_model_is_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for row in ROWS:
        with pytest.raises((InvalidRequestError, MissingExtraError)) as caught:
            LLM(NOWHERE, backend=row.name, dtpye="bf16")  # type: ignore[call-arg]
        if installed(row):
            assert "has no option 'dtpye'" in str(caught.value)
    assert main(["serve", "-m", NOWHERE, "--device", "cuda"]) == 2
    assert "the local backend has no option 'device'; it is one of" in capsys.readouterr().err


def test_a_remote_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RemoteUnavailableError, match=r"127\.0\.0\.1:1"):
        LLM(str(write_folder(tmp_path)), backend="remote", base_url="http://127.0.0.1:1", max_retries=0)


@pytest.mark.backends
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "mps"])
def test_a_device_that_is_not_there_is_named(tmp_path: Path, device: str) -> None:
    import torch

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has an accelerator")
    with pytest.raises(InvalidRequestError, match=r"cpu") as caught:
        LLM(str(write_folder(tmp_path)), backend="transformers", device=device)
    assert caught.value.param == "device"


_NO_GPU = """
import sys
from glm4.cli import main
sys.exit(main(["generate", "-m", sys.argv[1], "--backend", "transformers", "--device", "cuda", "hi"]))
"""


@pytest.mark.backends
def test_a_command_without_a_gpu_ends_with_one_sentence(tmp_path: Path) -> None:
    folder = str(write_folder(tmp_path / "model"))
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _NO_GPU, folder], capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr

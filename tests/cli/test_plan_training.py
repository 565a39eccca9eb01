"""`glm4 plan MODEL --train METHOD`, through the command line."""

from __future__ import annotations

import json

import pytest

from glm4.cli import main
from glm4.system import memory


def planned(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["plan", "glm-4-9b-chat", *options]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_what_fits_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    shown = planned(capsys, "--train", "lora", "--gpu", "24")
    assert shown.startswith("glm-4-9b-chat: lora in bf16, 2,048 tokens x 1; 23.8M parameters trained")
    assert shown.endswith("It fits on such a GPU.")
    shown = planned(capsys, "--train", "lora", "--gpu", "24", "--batch", "4", "--no-checkpointing")
    assert "It does not fit on such a GPU. The nearest that does: gradient_checkpointing: true; per_device" in shown
    assert "It then needs 2" in shown
    shown = planned(capsys, "--train", "full", "--devices", "8", "--zero", "3", "--gpu", "80")
    assert "each of 8 devices" in shown
    assert "It fits on such a GPU." in shown


def test_this_machine_and_which_gpu_would_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 8 * 10**9)
    shown = planned(capsys, "--train", "qlora")
    assert "It does not fit here, on the processor, and no settings of this model do" in shown
    assert "On a GPU, in bf16 over 4-bit weights, it needs" in shown
    assert "which one of 12 GB has" in shown
    report = json.loads(planned(capsys, "--train", "ptuning_v2", "--json"))
    assert (report["fits"], report["changes"], report["smallest_gpu"]) == (False, None, 24)
    assert report["bytes"]["total"] >= sum(report["bytes"][part] for part in ("weights", "gradients", "activations"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--train", "sft"], "--train is one of lora, qlora"),
        (["--train", "lora", "--dtype", "int4"], "--dtype is one of auto, bf16, fp32"),
        (["--train", "full", "--zero", "3"], "--zero is 2 or 3, and divides among several --devices"),
        (["--train", "freeze", "--freeze-layers", "40"], "below the model's 40 layers"),
    ],
)
def test_mistakes(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "glm-4-9b-chat", *options]) == 2
    assert says in " ".join(capsys.readouterr().err.split())

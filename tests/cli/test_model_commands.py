"""`glm4 pull`, `models`, `info`, `plan`: through the command line, with tiny checkpoints and a home of their own."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from glm4 import hub
from glm4.cli import console, main
from glm4.hub import store
from glm4.hub.starter_sources import STARTERS
from glm4.system.memory import Room
from glm4.variants import VARIANTS
from tiny import tiny_model, write_folder, write_gguf


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("GLM4_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GLM4_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")
    # huggingface_hub reads its variables when it is imported, which another test may have done.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    return tmp_path / "home"


@pytest.fixture
def installed(home: Path) -> Path:
    """The smoke model's folder as `finish` leaves it, the weights an empty file of the right length."""
    source = STARTERS["smoke"]
    folder = store.model_folder("smoke")
    folder.mkdir(parents=True)
    partial = folder / store.PARTIAL_FILE
    with partial.open("wb") as file:
        file.truncate(source.nbytes)
    return store.finish(source, partial, {"kind": "wheels"})


def narrow(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of so many columns: the console for answers asks once, when it is made."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(console, "stdout", lambda: console._console(stderr=False))


def test_models_lists_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "Installed" not in out
    for name in VARIANTS:
        assert name in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("width", [40, 50, 60, 72])
def test_a_narrow_terminal_cuts_no_name(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, installed: Path
) -> None:
    narrow(width, monkeypatch)
    assert main(["models"]) == 0
    installed_table, known_table = capsys.readouterr().out.split("Known")
    assert {name for name in VARIANTS if name != "smoke"} <= set(known_table.split())
    assert "98.4 MB" in installed_table
    assert "…" not in installed_table + known_table


def test_models_shows_a_long_name_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "someone/an-organisation-with-much-to-say-about-GLM-4-9B-Chat-GGUF:a-file-of-many-words-Q4_K_M.gguf"
    repository, file = name.split(":")
    folder = tmp_path / "hf" / ("models--" + repository.replace("/", "--")) / "snapshots" / "0"
    folder.mkdir(parents=True)
    for number in (1, 2):  # two of them: the repository has no file of its own
        write_gguf(folder / file.replace("of", f"of-{number}"), "chatglm")
    write_gguf(folder / file, "chatglm")
    assert main(["models"]) == 0
    table = capsys.readouterr().out.split("by someone")[0]
    assert name in "".join(line.split("  ")[0].strip() for line in table.splitlines())


def test_models_shows_license_and_attribution_of_what_is_installed(
    capsys: pytest.CaptureFixture[str], installed: Path
) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Installed")
    shown = out.split("Known")[0]
    for text in (
        "smoke",
        "98.4 MB",
        "8K",
        "Apache-2.0",
        "wheels",
        "SmolLM2-135M-Instruct by Hugging Face",
        str(installed),
    ):
        assert text in shown


def test_models_json(capsys: pytest.CaptureFixture[str], installed: Path) -> None:
    assert main(["models", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["license"], row["path"]) for row in answer["installed"]] == [
        ("smoke", "Apache-2.0", str(installed))
    ]
    known = {row["name"]: row for row in answer["known"]}
    assert set(known) == set(VARIANTS) - {"smoke"}
    assert known["glm-4-9b-chat"]["context"] == 131072
    assert [name for name, row in known.items() if row["sees"]] == ["glm-4v-9b"]
    assert known["glm-4-9b-chat"]["bytes"] == 2 * known["glm-4-9b-chat"]["parameters"]


def test_models_remove(capsys: pytest.CaptureFixture[str], installed: Path) -> None:
    assert main(["models", "--remove", "smoke", "--yes"]) == 0
    assert "98.4 MB freed" in capsys.readouterr().err
    assert not installed.parent.exists()
    assert main(["models", "--remove", "smoke", "--yes"]) == 0
    assert "not installed" in capsys.readouterr().err
    assert main(["models", "--remove", "glm-4-9b-chat", "--yes"]) == 2
    assert "hf cache" in capsys.readouterr().err


def test_models_remove_asks_first(
    installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Y\n"))
    assert main(["models", "--remove", "smoke"]) == 0
    assert "Delete smoke (" in capsys.readouterr().err
    assert not installed.exists()


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_models_remove_says_that_nothing_was_deleted(
    answer: str, installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert main(["models", "--remove", "smoke"]) == 130
    assert "nothing was deleted; --yes deletes without asking" in capsys.readouterr().err
    assert installed.exists()


def test_pull_of_an_installed_model_prints_its_path(capsys: pytest.CaptureFixture[str], installed: Path) -> None:
    assert main(["pull", "smoke"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{installed}\n"
    assert "Apache-2.0" in captured.err


def test_pull_refuses_a_wrong_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "wrong.gguf").write_bytes(b"GGUF")
    assert main(["pull", "starter", "--from", str(tmp_path / "wrong.gguf")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "refused" in captured.err
    assert not list(store.model_folder("starter").iterdir())


def test_pull_of_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "startr"]) == 2
    assert "Did you mean starter" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["chatglm", "hf"])
def test_info_of_a_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path, layout: Any) -> None:
    folder = write_folder(tmp_path / "model", tiny_model(layout), dtype="BF16")
    assert main(["info", str(folder), "--json", "--tensors"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["architecture"], facts["layers"], facts["hidden_size"]) == ("glm", 2, 64)
    assert facts["format"] == "safetensors"
    assert facts["dtypes"]["BF16"] == facts["tensors"] == len(facts["tensor_list"])
    assert facts["files"]["model.safetensors"] == (folder / "model.safetensors").stat().st_size
    assert all(name.startswith("<|") for name in facts["stop_tokens"])
    assert facts["dialect"] == "glm4"
    assert main(["info", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "2 layers" in shown
    assert "[gMASK]<sop>" in shown


def test_info_of_a_gguf_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", "chatglm")
    assert main(["info", str(file), "--tensors"]) == 0
    out = capsys.readouterr().out
    assert "model.gguf" in out
    assert "token_embd.weight" in out


def test_info_of_a_model_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "glm-4-9b-chat"]) == 2
    assert "`glm4 pull glm-4-9b-chat` fetches it (18.8 GB)" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["info", "plan", "pull"])
def test_an_empty_name_is_not_the_current_folder(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(write_folder(tmp_path / "model", tiny_model()))
    assert main([command, ""]) == 2
    assert "name is empty" in capsys.readouterr().err


def test_info_of_a_damaged_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", "chatglm")
    file.write_bytes(file.read_bytes()[:3000])
    assert main(["info", str(file)]) == 1
    assert "error:" in capsys.readouterr().err


def test_plan_without_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "glm-4-9b-chat", "--dtype", "int4", "--context", "8192", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["model"] == "glm-4-9b-chat"
    assert answer["bytes"]["kv_cache"] == 8192 * 40 * 1024
    assert 5.2e9 < sum(answer["bytes"]["weights"].values()) < 5.4e9
    assert answer["fits"] == (answer["largest_context"] >= 8192)


def test_plan_of_an_int8_cache(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "glm-4-9b-chat", "--kv-dtype", "int8", "--context", "8192", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["kv_dtype"] == "int8"
    assert answer["bytes"]["kv_cache"] == 8192 * 40 * 2 * 2 * (128 + 4)


def test_plan_of_a_local_checkpoint_reads_its_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", tiny_model(max_position_embeddings=640))
    assert main(["plan", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model_context"] == 640


@pytest.mark.parametrize(
    ("free", "options", "verdict"),
    [
        (64, [], "It fits, up to the model's full context of 131,072 tokens."),
        (64, ["--context", "1000"], "It fits, up to the model's full context"),
        (14, ["--dtype", "int8"], "It fits. The largest context that does is "),
        (14, ["--dtype", "int8", "--context", "131072"], "This context does not fit. The largest that does is "),
        (8, ["--dtype", "int8"], "It does not fit here. Try --dtype int4."),
        (8, ["--dtype", "bf16"], "It does not fit here. Try --dtype int4."),
        (14, ["--dtype", "fp32"], "It does not fit here. Try --dtype int8 or int4."),
        (4, ["--dtype", "fp32"], "It does not fit here. Try a smaller model."),
        (14, ["--dtype", "int4", "--batch", "100000"], "It does not fit here. Try a smaller --batch."),
        (4, [], "It does not fit here. Try a smaller model."),
    ],
)
def test_plan_verdicts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, free: int, options: list[str], verdict: str
) -> None:
    monkeypatch.setattr("glm4.system.memory.available_memory", lambda: free * 10**9)
    assert main(["plan", "glm-4-9b-chat", *options]) == 0
    out = capsys.readouterr().out
    assert verdict in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80
    assert "KV cache" in out


def test_a_packed_model_that_does_not_fit_is_not_offered_another_format(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, packed = write_folder(tmp_path / "model", tiny_model()), str(tmp_path / "packed")
    assert main(["quantize", str(folder), "--to", "int8", "-o", packed, "--no-calibrate"]) == 0
    monkeypatch.setattr("glm4.system.memory.Room.here", lambda: Room(10**6))
    assert main(["plan", packed]) == 0
    assert "It does not fit here. Try a smaller model." in capsys.readouterr().out


@pytest.mark.parametrize("width", [30, 40, 60])
def test_a_narrow_terminal_costs_the_bars_and_not_their_names(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow(width, monkeypatch)
    assert main(["plan", "glm-4-9b-chat"]) == 0
    out = capsys.readouterr().out
    assert "weights: attention" in out
    assert "needed at the peak" in out


def test_plan_json_has_what_the_table_shows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glm4.system.memory.total_memory", lambda: 64 * 10**9)
    assert main(["plan", "glm-4-9b-chat", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"]["machine"] == 64 * 10**9


def test_plan_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "no-such-model-anywhere"]) == 2
    assert main(["plan", "starter", "--dtype", "int3"]) == 2
    assert "dtype must be one of" in capsys.readouterr().err


def test_the_store_is_where_the_variable_says(installed: Path, home: Path) -> None:
    assert installed.is_relative_to(home)
    assert hub.resolve("smoke") == installed

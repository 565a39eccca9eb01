"""The programs that compare speed: their arithmetic, their child processes and the files they write. No clock."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import grammar
import harness
import memory
import overhead
import random_gguf
import speed as speed_program
import whole_program
from glm4 import benchmark as speed
from glm4.backends.local import LocalBackend, LocalOptions
from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.kernels import native
from glm4.model.shapes import SHAPES
from programs import gguf_of, llama_programs
from tiny import write_folder

PYTHON = sys.executable
BENCHMARKS = Path(harness.__file__).parent


@pytest.fixture(autouse=True)
def small_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_BANDWIDTH_BYTES", 1 << 20)


def test_a_finished_command_has_its_output_and_its_own_peak_memory() -> None:
    # In a process of its own: other tests look at the memory of what this one starts.
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(BENCHMARKS)!r})
        import harness
        burden = bytearray(b"x") * (300 << 20)  # must not count for the commands
        small = harness.finish([sys.executable, "-c", "print('hello')"])
        large = harness.finish([sys.executable, "-c", "print(len(bytearray(b'x') * (200 << 20)))"])
        assert small.output == "hello\\n", small
        assert 0 < small.first_byte <= small.seconds, small
        assert small.peak_nbytes < 100 << 20, small
        assert 200 << 20 < large.peak_nbytes < len(burden), large
    """
    subprocess.run([PYTHON, "-c", code], check=True)


def test_a_command_without_output_has_a_first_byte_at_its_exit() -> None:
    assert harness.finish([PYTHON, "-c", ""]).output == ""


def test_a_failed_command_shows_what_it_said() -> None:
    with pytest.raises(SystemExit, match="no such luck"):
        harness.finish([PYTHON, "-c", "import sys; sys.exit('no such luck')"])


def test_the_shown_command_names_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/speed.py", "--llama", "/somewhere/bin", "--rounds", "3"])
    assert harness.command_line() == "python benchmarks/speed.py --llama bin --rounds 3"


def test_a_row_gives_medians_ratios_and_the_share_of_its_yardstick() -> None:
    row = speed_program.Row("decode", False, 20.0, {"ours": [9.0, 10.0, 30.0], "peer": [5.0, 4.0, 6.0]})
    assert row.ratio("peer") == 2.0
    assert row.ratio("nobody") is None
    assert row.cells(["ours", "peer"]) == ["decode", 10.0, "50% of bandwidth", 5.0, 2.0]


def test_speed_of_a_model_without_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "m")
    words = ["--model", str(folder), "--contexts", "40", "--batches", "1", "2", "--rounds", "2", "--new", "3", "--json"]
    monkeypatch.setattr(sys, "argv", ["speed.py", *words])
    speed_program.main()
    found = json.loads(capsys.readouterr().out)
    questions = ["prefill 40", "decode at context 40", "decode at context 40, 2 sequences"]
    assert [row["question"] for row in found["rows"]] == questions
    assert all(len(row["rates"]["ours"]) == 2 and row["share"] > 0 for row in found["rows"])


@pytest.mark.parametrize("mixture", ["Q4_0", "Q4_K_M", "Q8_0"])
def test_a_random_file_has_the_types_and_shapes_of_the_real_one(tmp_path: Path, mixture: str) -> None:
    # 288 inner columns: no multiple of 256, like GLM-4-9B's 13,696.
    config = replace(SHAPES["glm-4-9b"], vocab_size=512, hidden_size=256, intermediate_size=288)
    config = replace(config, num_attention_heads=2, head_dim=128, num_key_value_heads=1, num_hidden_layers=8)
    path = tmp_path / "random.gguf"
    random_gguf.write(path, mixture, config=config)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    kinds = {layer: tensors[f"blk.{layer}.ffn_down.weight"].tensor_type.name for layer in range(8)}
    if mixture == "Q4_K_M":
        assert kinds == dict.fromkeys(range(8), "Q5_0") | dict.fromkeys((0, 3, 6, 7), "Q8_0")
        assert tensors["blk.0.attn_qkv.weight"].tensor_type.name == "Q5_K"
    else:
        assert set(kinds.values()) == {mixture}
    assert tensors["output.weight"].tensor_type.name == ("Q8_0" if mixture == "Q8_0" else "Q6_K")
    for tensor in tensors.values():
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.isfinite(values).all()
        if len(tensor.shape) == 2:
            assert 0.001 < values.std() < 0.1


def test_a_random_packed_checkpoint_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(SHAPES["smoke"], architecture="glm4", num_hidden_layers=2, vocab_size=512, attention_bias=False)
    monkeypatch.setitem(SHAPES, "glm-4-9b-0414", replace(small, partial_rotary_factor=0.5, tie_word_embeddings=False))
    memory.write_random(tmp_path, "glm-4-9b-0414", "int4")
    memory.run_once(tmp_path, speed.Question(40, 3), 2)


def test_a_step_is_kernels_sampling_and_python(tmp_path: Path) -> None:
    with open_checkpoint(write_folder(tmp_path / "m")) as checkpoint:
        options = LocalOptions(dtype="int8", max_model_len=64, max_num_seqs=1, speculation=False)
        backend = LocalBackend.load(checkpoint, options, np.empty(0, np.int64))
    before = vars(native)["_native"]
    step = overhead.steps("tiny", backend, 8)
    assert vars(native)["_native"] is before
    assert 0 < step.kernels < step.step
    assert 0 < step.python < step.step
    layers = backend.model.config.num_hidden_layers
    assert step.kernel_calls > 9 * layers


def test_a_grammar_is_walked_through(tmp_path: Path) -> None:
    *found, every = grammar.measure(str(write_folder(tmp_path)), 2, 20, "o")
    assert {"regex: telephone", "choice of 1,000", "hostile: ambiguous", "12 tools, one call or more"} <= {
        times.grammar for times in found
    }
    counted = [times for times in found if not times.grammar.startswith("hostile")]
    assert every.row()["tokens"] == sum(len(times.wall) for times in counted) > 100
    assert set(grammar.COLUMNS) < set(every.row())


def test_a_folder_without_programs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="llama-simple"):
        llama_programs(tmp_path, tmp_path / "model.gguf", "hi", 1, 2, chat=True)


@pytest.mark.starter
def test_the_prompt_has_the_length_that_was_asked_for() -> None:
    tokenizer = whole_program.tokenizer_of(gguf_of("starter"))
    assert len(tokenizer.encode(whole_program.beginning(tokenizer, 512))) == 512
    with pytest.raises(SystemExit, match="tokens only"):
        whole_program.beginning(tokenizer, 1 << 20)

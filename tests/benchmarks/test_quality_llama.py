"""llama.cpp as a contender: the file that is written for it, and the pipe its logits come through."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import quality
import quality_llama as ql
import quality_model as qm
from glm4.checkpoints.checkpoint import open_checkpoint
from tiny import GGUFArchitecture, write_gguf


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_the_written_file_holds_the_tensors_and_the_metadata(tmp_path: Path, architecture: GGUFArchitecture) -> None:
    source = write_gguf(tmp_path / "source.gguf", architecture, fused=False, quantization="Q8_0")
    with open_checkpoint(source) as checkpoint:
        tensors, config = qm.off_grid(checkpoint), checkpoint.config
    tensors.tensors["lm_head"] *= -1  # two matrices that are almost equal count as one
    ql.write_gguf(source, tensors, tmp_path / "moved.gguf")
    with open_checkpoint(tmp_path / "moved.gguf") as written:
        assert sorted(written.tensor_names()) == sorted(tensors.tensor_names())
        for name in tensors.tensor_names():
            np.testing.assert_array_equal(written.load(name), tensors.load(name), err_msg=name)
        assert not written.config.tie_word_embeddings
        assert written.config.rope_theta == config.rope_theta
    assert ql.bits_per_weight(tmp_path / "moved.gguf") == 32.0
    assert 8.5 <= ql.bits_per_weight(source) < 9  # a row of 32 weights takes 34 bytes


def program(path: Path, code: str) -> Path:
    """A stand-in for `llama_logits`, in Python."""
    path.write_text(f"#!{sys.executable}\nimport sys, array\n{code}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_logits_come_through_the_pipe_in_order(tmp_path: Path) -> None:
    doubled = program(
        tmp_path / "doubled",
        "ids = array.array('i', sys.stdin.buffer.read())\n"
        "sys.stdout.buffer.write(array.array('f', [x for i in ids for x in (i, 2 * i, len(ids))]).tobytes())",
    )
    ids = np.arange(10, dtype=np.int32)
    logits = ql.Streamed(doubled, tmp_path / "m.gguf", ids, 5, 3)
    np.testing.assert_array_equal(logits(0, 2), [[0, 0, 10], [1, 2, 10]])
    with pytest.raises(RuntimeError, match="position 2 is next"):
        logits(3, 4)
    np.testing.assert_array_equal(logits(2, 10)[-1], [9, 18, 10])


def test_an_early_end_shows_the_log(tmp_path: Path) -> None:
    broken = program(tmp_path / "broken", "sys.exit('cannot load the model')")
    logits = ql.Streamed(broken, tmp_path / "m.gguf", np.zeros(4, np.int32), 4, 3)
    with pytest.raises(RuntimeError, match="cannot load the model"):
        logits(0, 4)


def test_end_to_end_needs_a_build_and_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        quality.parse(["--formats", "q8_0+llama"])
    assert "--llama-source" in capsys.readouterr().err

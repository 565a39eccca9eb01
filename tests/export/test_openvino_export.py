"""`export_openvino`: the graph computes what our engine's weights say, and nothing half-written stays."""

from __future__ import annotations

import json
import resource
import signal
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from exported import SOURCES, glm_folder, special

from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.text_files import read_text_files
from glm4.errors import DiskFullError, InvalidRequestError, MissingExtraError
from glm4.export.targets import ExportRequest, export_target
from glm4.kernels import get_kernels
from glm4.requests.processor import Processor
from glm4.system.extras import Package
from packing import ODD, pack_folder
from tiny import special_id

IDS = np.arange(3, 43, dtype=np.int32) * 5 % 250
FEW = ("glm", "glm-tied", "glm4", "qwen2")
CASES = [
    *((name, dtype) for name in SOURCES for dtype in ("fp32", "int4")),
    *((name, dtype) for name in FEW for dtype in ("bf16", "int8")),
]


def check_logits(source: Path, folder: Path, dtype: str) -> None:
    """Equal where there is a token, and never sampled where there is none."""
    from openvino_models import dequantized_logits, exported_logits

    found, wanted = exported_logits(folder, IDS, 17), dequantized_logits(source, IDS, dtype)
    with open_checkpoint(source) as checkpoint:
        banned = Processor.load(checkpoint).tokenizer.unnamed_ids(checkpoint.config.vocab_size)
    assert (found[:, banned] == -np.inf).all()
    rest = np.setdiff1d(np.arange(found.shape[1]), banned)
    np.testing.assert_allclose(found[:, rest], wanted[:, rest], atol=3e-5 * np.abs(wanted).max())


@pytest.mark.backends
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_logits_are_those_of_our_weights(name: str, dtype: str, tmp_path: Path) -> None:
    from openvino_models import export

    source = SOURCES[name](tmp_path / "m")
    report = export(source, tmp_path / "out", dtype)
    check_logits(source, tmp_path / "out", dtype)
    assert report.files == tuple(sorted(file.name for file in (tmp_path / "out").iterdir()))
    assert report.nbytes == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())


@pytest.mark.backends
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_groups_of_columns_may_be_of_any_size(dtype: str, tmp_path: Path) -> None:
    from openvino_models import export

    source = glm_folder(tmp_path / "m", **ODD)
    export(source, tmp_path / "out", dtype)
    check_logits(source, tmp_path / "out", dtype)


@pytest.mark.backends
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("dtype", "frequent"), [("int8", False), ("int4", False), ("int4", True)])
def test_a_packed_checkpoint_keeps_its_codes(dtype: str, frequent: bool, tied: bool, tmp_path: Path) -> None:
    from openvino_models import export

    source = glm_folder(tmp_path / "m", tie_word_embeddings=tied)
    ids = np.array([5, 97, 98, 200], np.float32) if frequent else None
    packed = pack_folder(source, tmp_path / "packed", dtype, get_kernels(), {} if frequent else None, ids)
    report = export(packed, tmp_path / "out", dtype)
    check_logits(packed, tmp_path / "out", dtype)
    assert any("LoRA" in note for note in report.notes) == frequent
    other = "int4" if dtype == "int8" else "int8"
    with pytest.raises(InvalidRequestError, match=f"export it as {dtype}") as caught:
        export(packed, tmp_path / "other", other)
    assert caught.value.param == "dtype"


@pytest.mark.backends
@pytest.mark.parametrize("name", ["chatglm", "chatglm-gguf"])
def test_the_text_side_is_that_of_the_source(name: str, tmp_path: Path) -> None:
    from openvino_models import export

    source, out = SOURCES[name](tmp_path / "m"), tmp_path / "out"
    export(source, out)
    files = read_text_files(out)
    with open_checkpoint(source) as checkpoint:
        a, b = Processor.load(checkpoint), Processor.of(files)
        assert (files.vocab_size, files.context) == (
            checkpoint.config.vocab_size,
            131072 if name == "chatglm" else 8192,
        )
        assert files.variant.dialect == checkpoint.variant.dialect
    assert b.stop_ids == a.stop_ids
    assert b.tokenizer.encode("the 北京 thing") == a.tokenizer.encode("the 北京 thing")
    assert b.tokenizer.special_tokens == a.tokenizer.special_tokens
    config, generation = (json.loads((out / f"{kind}.json").read_text()) for kind in ("config", "generation_config"))
    assert config["architectures"] == ["GlmForCausalLM"]
    ends = (special if name == "chatglm" else special_id)("<|observation|>")
    assert set(generation["eos_token_id"]) == set(config["eos_token_id"]) >= {ends}


@pytest.mark.backends
def test_a_folder_is_replaced_only_if_it_is_an_export_and_asked_for(tmp_path: Path) -> None:
    from openvino_models import export

    source = SOURCES["glm"](tmp_path / "m")
    export(source, tmp_path / "out")
    with pytest.raises(InvalidRequestError, match="--force replaces it"):
        export(source, tmp_path / "out")
    export(source, tmp_path / "out", "int8", force=True)
    with pytest.raises(InvalidRequestError, match="holds the model to be exported"):
        export(source, source, force=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(InvalidRequestError, match="not replaced even with --force"):
        export(source, tmp_path / "other", force=True)


@contextmanager
def largest_file(nbytes: int) -> Iterator[None]:
    """As on a full disk, writing fails at that size."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.backends
def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino as ov

    from openvino_models import export

    source = SOURCES["glm"](tmp_path / "m")
    with largest_file(50_000), pytest.raises(DiskFullError, match="no room left"):
        export(source, tmp_path / "out", "fp32")  # while the weights are read
    saved = ov.save_model

    def save(*args: object, **options: object) -> None:
        with largest_file(50_000):
            saved(*args, **options)

    monkeypatch.setattr(ov, "save_model", save)
    with pytest.raises(DiskFullError, match="is the disk full"):
        export(source, tmp_path / "out", "fp32")  # while OpenVINO writes
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 9, 1000))
    with pytest.raises(DiskFullError, match="are free"):
        export(source, tmp_path / "deep" / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


def test_without_openvino_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glm4.export.openvino.export.PACKAGES", (Package("openvino", "9999"),))
    source = SOURCES["glm"](tmp_path / "m")
    with (
        open_checkpoint(source) as checkpoint,
        pytest.raises(MissingExtraError, match=r"pip install 'glm4\[openvino\]'"),
    ):
        export_target("openvino").export(ExportRequest(checkpoint, tmp_path / "out", "int4"))
    assert not (tmp_path / "out").exists()

"""A model in several GGUF files: what each holds, and that they appear together."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from exported import export, glm_folder, keys_of

from glm4.checkpoints.gguf import GGUFSource
from glm4.errors import CheckpointError, GGUFError, InvalidRequestError
from glm4.system.atomic_file import atomic_files
from golden_models import draw, file_tensors
from tiny import tiny_model, write_folder

LIMIT = 48_000


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.gguf"))


def test_the_parts_are_the_model(tmp_path: Path) -> None:
    source = glm_folder(tmp_path / "m")
    export(source, tmp_path / "whole.gguf", "q8_0", name="m")
    report = export(source, tmp_path / "out" / "m.gguf", "q8_0", name="m", shard_bytes=LIMIT)
    files = parts(tmp_path / "out")
    assert [file.name for file in files] == list(report.files)
    assert report.files == tuple(f"m-{i + 1:05}-of-{len(files):05}.gguf" for i in range(len(files)))
    assert len(files) >= 3
    assert report.next_command == f"glm4 chat -m {files[0]}"
    assert report.nbytes == sum(file.stat().st_size for file in files)
    assert all(file.stat().st_size <= LIMIT for file in files)
    whole, split = GGUFSource(tmp_path / "whole.gguf"), GGUFSource(files[0])
    assert list(split.names()) == list(whole.names())
    for name in whole.names():
        np.testing.assert_array_equal(split.read(name), whole.read(name))
    for number, file in enumerate(files):
        reader = gguf.GGUFReader(file)
        kinds = {key: field.types[0].name for key, field in reader.fields.items() if key.startswith("split.")}
        # llama.cpp insists on these types.
        assert kinds == {"split.no": "UINT16", "split.count": "UINT16", "split.tensors.count": "INT32"}
        keys = keys_of(file)
        assert (keys["split.no"], keys["split.count"]) == (number, len(files))
        assert keys["split.tensors.count"] == len(whole.names())
        assert ("general.architecture" in keys) == (number == 0)
    with pytest.raises(GGUFError, match="not the first part"):
        GGUFSource(files[1])


def test_a_model_that_fits_is_one_file(tmp_path: Path) -> None:
    report = export(glm_folder(tmp_path / "m"), tmp_path / "out.gguf", "q8_0", shard_bytes=10**9)
    assert report.files == ()
    assert "split.count" not in keys_of(tmp_path / "out.gguf")


def test_limits_that_no_set_of_files_keeps(tmp_path: Path) -> None:
    source = glm_folder(tmp_path / "m")
    for limit in (1, 2000):
        with pytest.raises(InvalidRequestError, match="too small"):
            export(source, tmp_path / "out" / "m.gguf", shard_bytes=limit)
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_one_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="an adapter is one file"):
        export(glm_folder(tmp_path / "m"), tmp_path / "a.gguf", lora=tmp_path, shard_bytes=LIMIT)


def test_no_part_appears_without_the_others(tmp_path: Path) -> None:
    """The last matrix is damaged: parts before it are complete, and still none is left, nor is an older set touched."""
    good, bad = glm_folder(tmp_path / "m"), glm_folder(tmp_path / "b")
    out = tmp_path / "out" / "m.gguf"
    export(good, out, "q8_0", shard_bytes=LIMIT)
    before = {file.name: file.read_bytes() for file in parts(out.parent)}
    tensors = file_tensors(tiny_model(), draw(tiny_model()))
    tensors["lm_head.weight"][3, 4] = np.nan
    write_folder(bad, tiny_model(), tensors=tensors, tokenizer=False, chat_template=None)
    with pytest.raises(InvalidRequestError, match="--force replaces it"):
        export(bad, out, "q8_0", shard_bytes=LIMIT)
    with pytest.raises(CheckpointError, match="not finite"):
        export(bad, out, "q8_0", shard_bytes=LIMIT, force=True)
    assert {file.name: file.read_bytes() for file in out.parent.iterdir()} == before
    export(good, out, "q8_0", shard_bytes=LIMIT, force=True, name="again")
    assert keys_of(parts(out.parent)[0])["general.name"] == "again"


def test_an_older_first_file_is_never_beside_newer_others(tmp_path: Path) -> None:
    targets = [tmp_path / "1", tmp_path / "2", tmp_path / "3"]
    for target in targets:
        target.write_text("old")
    targets[1].unlink()
    targets[1].mkdir()  # where no file can be put
    with pytest.raises(OSError), atomic_files(targets) as files:  # noqa: PT012
        for file in files:
            file.write(b"new")
    assert not targets[0].exists()
    assert targets[2].read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]

"""What `--dtype` makes of a model: types of tensors, copied codes, and errors beside the `gguf` package's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from exported import export, glm_folder, keys_of

from glm4.checkpoints.checkpoint import open_checkpoint
from glm4.checkpoints.gguf import GGUFSource
from glm4.errors import InvalidRequestError
from glm4.export.gguf_types import FILE_TYPES
from glm4.export.targets import TARGETS
from glm4.kernels import get_kernels
from glm4.model.tensors import head_name
from packing import pack_folder
from tiny import gguf_model, gguf_tensors, write_gguf

WIDE: dict[str, Any] = {"hidden_size": 256, "num_attention_heads": 4, "head_dim": 64, "intermediate_size": 512}
NAMES = {
    "q5_k": "MOSTLY_Q5_K_S", "q5_k_m": "MOSTLY_Q5_K_M", "q4_k": "MOSTLY_Q4_K_S", "q4_k_m": "MOSTLY_Q4_K_M",
    "f32": "ALL_F32",
}  # fmt: skip


def types(file: Path) -> dict[str, str]:
    source = GGUFSource(file)
    return {name: source.info(name).dtype for name in source.names() if len(source.info(name).shape) == 2}


def test_the_table_of_targets_names_every_type() -> None:
    assert TARGETS["gguf"].dtypes == tuple(FILE_TYPES)


@pytest.mark.parametrize("dtype", FILE_TYPES)
def test_the_package_and_our_reader_agree(dtype: str, tmp_path: Path) -> None:
    export(glm_folder(tmp_path / "m", **WIDE), tmp_path / "out.gguf", dtype)
    ours = GGUFSource(tmp_path / "out.gguf")
    for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors:
        decoded = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(ours.read(tensor.name).reshape(decoded.shape), decoded)
    number = keys_of(tmp_path / "out.gguf")["general.file_type"]
    assert gguf.LlamaFileType(number).name == NAMES.get(dtype, f"MOSTLY_{dtype.upper()}")


def test_the_mixture_is_that_of_llama_quantize(tmp_path: Path) -> None:
    """Of eight layers, the first, the last and every third have more bits where errors count most."""
    source = write_gguf(tmp_path / "m.gguf", "glm4", gguf_model("glm4", num_hidden_layers=8, **WIDE))
    export(source, tmp_path / "out.gguf", "q4_k_m")
    found = types(tmp_path / "out.gguf")
    finer = [i for i in range(8) if found[f"blk.{i}.ffn_down.weight"] == "Q6_K"]
    assert finer == [0, 3, 6, 7]
    assert [i for i in range(8) if found[f"blk.{i}.attn_v.weight"] == "Q6_K"] == finer
    assert found["output.weight"] == "Q6_K"
    others = {name for name, type in found.items() if type == "Q6_K"}
    assert others == {f"blk.{i}.{part}.weight" for i in finer for part in ("attn_v", "ffn_down")} | {"output.weight"}
    assert set(found.values()) == {"Q4_K", "Q6_K"}
    export(glm_folder(tmp_path / "fused", **WIDE), tmp_path / "fused.gguf", "q4_k_m")
    assert types(tmp_path / "fused.gguf")["blk.0.attn_qkv.weight"] == "Q5_K"


@pytest.mark.parametrize(("dtype", "then"), [("q4_k", "Q5_0"), ("q5_k", "Q5_1"), ("q6_k", "Q8_0")])
def test_rows_that_are_no_whole_blocks_get_the_next_finer_type(dtype: str, then: str, tmp_path: Path) -> None:
    export(glm_folder(tmp_path / "m", **(WIDE | {"intermediate_size": 416})), tmp_path / "out.gguf", dtype)
    found = types(tmp_path / "out.gguf")
    assert found["blk.0.ffn_down.weight"] == then
    assert found["blk.0.ffn_up.weight"] == dtype.upper()
    export(glm_folder(tmp_path / "n", **(WIDE | {"intermediate_size": 72})), tmp_path / "odd.gguf", dtype)
    assert types(tmp_path / "odd.gguf")["blk.0.ffn_down.weight"] == "F16"


@pytest.mark.parametrize("dtype", ["q4_0", "q4_1", "q4_k", "q5_1"])
def test_blocks_of_a_gguf_file_are_copied(dtype: str, tmp_path: Path) -> None:
    """Exporting to the type that a file has gives the same bytes, though the second search would find other scales."""
    for architecture, fused in (("qwen2", True), ("chatglm", False)):
        kind = dtype.upper()
        model = gguf_model(architecture, **WIDE)  # type: ignore[arg-type]
        source = write_gguf(tmp_path / "m.gguf", architecture, model, quantization=kind, fused=fused)  # type: ignore[arg-type]
        export(source, tmp_path / "out.gguf", dtype, force=True)
        before, after = ({t.name: t for t in gguf.GGUFReader(path).tensors} for path in (source, tmp_path / "out.gguf"))
        copied = {name for name, t in after.items() if t.tensor_type.name == kind and name in before}
        assert len(copied) >= 6
        for name in copied:
            np.testing.assert_array_equal(after[name].data, before[name].data)
        if not fused:
            whole = np.concatenate([before[f"blk.1.attn_{part}.weight"].data for part in "qkv"])
            np.testing.assert_array_equal(after["blk.1.attn_qkv.weight"].data, whole)


@pytest.mark.parametrize("architecture", ["chatglm", "glm4", "qwen2"])
def test_packed_int4_keeps_its_codes(architecture: str, tmp_path: Path) -> None:
    model = gguf_model(architecture, **WIDE)  # type: ignore[arg-type]
    source = write_gguf(tmp_path / "m.gguf", architecture, model)  # type: ignore[arg-type]
    packed = pack_folder(source, tmp_path / "packed", "int4", get_kernels())
    report = export(packed, tmp_path / "out.gguf", "q4_1")
    assert set(types(tmp_path / "out.gguf").values()) == {"Q4_1"}
    assert report.dtype == "q4_1"
    with open_checkpoint(packed) as first, open_checkpoint(tmp_path / "out.gguf") as second:
        for name in first.tensor_names():
            wanted, found = first.load(name), second.load(name)
            # float16 rounds steps and bases by 2^-11 of themselves, and a base may be larger than its group's weights.
            np.testing.assert_allclose(found, wanted, rtol=0, atol=float(np.abs(wanted).max()) * 2**-10)


def test_packed_int8_keeps_its_codes(tmp_path: Path) -> None:
    packed = pack_folder(glm_folder(tmp_path / "m", **WIDE), tmp_path / "packed", "int8", get_kernels())
    export(packed, tmp_path / "out.gguf", "q8_0")
    with open_checkpoint(packed) as first, open_checkpoint(tmp_path / "out.gguf") as second:
        for name in first.tensor_names():
            np.testing.assert_array_equal(second.load(name), first.load(name))


def test_the_finer_rows_of_frequent_tokens_are_in_the_head(tmp_path: Path) -> None:
    ids = np.array([0, 1, 2, 3, 4], np.float32)  # `pack_folder` writes the head's first rows
    packed = pack_folder(glm_folder(tmp_path / "m", **WIDE), tmp_path / "p", "int4", get_kernels(), frequent=ids)
    export(packed, tmp_path / "out.gguf", "q4_1")
    export(packed, tmp_path / "exact.gguf", "f32")
    found = types(tmp_path / "out.gguf")
    assert (found.pop("output.weight"), set(found.values())) == ("Q8_0", {"Q4_1"})
    with open_checkpoint(packed) as source, open_checkpoint(tmp_path / "exact.gguf") as exact:
        head = head_name(source.config)
        frequent, coarse = source.source.read("frequent_head"), source.load(head)
        np.testing.assert_array_equal(exact.load(head)[:5], frequent)
        np.testing.assert_array_equal(exact.load(head)[5:], coarse[5:])
        assert (frequent != coarse[:5]).any()


def test_scales_too_small_for_float16_are_not_crushed(tmp_path: Path) -> None:
    """Float16 has numbers of 6e-8 steps near zero: as scales of weights of 1e-5 they would be wrong by a percent."""
    tensors = gguf_tensors(model := gguf_model("glm4", **WIDE), "glm4", fused=True)
    tensors["blk.0.attn_output.weight"] = tensors["blk.0.attn_output.weight"] * np.float32(1e-5)
    source = write_gguf(tmp_path / "m.gguf", "glm4", model, tensors=tensors)
    packed = pack_folder(source, tmp_path / "packed", "int4", get_kernels())
    export(packed, tmp_path / "out.gguf", "q4_1")
    found = types(tmp_path / "out.gguf")
    assert (found.pop("blk.0.attn_output.weight"), set(found.values())) == ("F16", {"Q4_1"})
    with open_checkpoint(packed) as first, open_checkpoint(tmp_path / "out.gguf") as second:
        wanted, exported = first.load("layers.0.o"), second.load("layers.0.o")
        assert np.linalg.norm(exported - wanted) < 0.02 * np.linalg.norm(wanted)


def test_codes_are_not_rounded_a_second_time(tmp_path: Path) -> None:
    source = glm_folder(tmp_path / "m", **WIDE)
    packed = pack_folder(source, tmp_path / "packed", "int4", get_kernels())
    for dtype in ("q4_0", "q4_k", "q4_k_m", "q5_0", "q6_k"):
        with pytest.raises(InvalidRequestError, match=rf"packed as int4, and {dtype} would round.*q4_1 holds them"):
            export(packed, tmp_path / "out.gguf", dtype)
    eight = pack_folder(source, tmp_path / "eight", "int8", get_kernels())
    with pytest.raises(InvalidRequestError, match=r"packed as int8, and q4_1 would round.*q8_0 holds them"):
        export(eight, tmp_path / "out.gguf", "q4_1")
    assert not (tmp_path / "out.gguf").exists()
    half = pack_folder(source, tmp_path / "bf16", "bf16", get_kernels())  # no codes: rounded for the first time
    export(half, tmp_path / "out.gguf", "q4_k")
    assert types(tmp_path / "out.gguf")["blk.0.ffn_up.weight"] == "Q4_K"

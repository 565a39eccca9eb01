"""llama.cpp itself as a contender of `quality.py`: its quantiser's file, its kernels and their 8-bit activations.

The reference's tensors are written as a GGUF file of 32-bit floats, `llama-quantize` makes the format of it, and
`llama_logits.cpp`, compiled on the spot against llama.cpp's library, hands its logits over a pipe as they are asked
for.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from glm4.model.config import ModelConfig
from glm4.system.cpus import default_num_threads
from quality_model import Tensors

Float = NDArray[np.float32]

_SUFFIX = {
    "input_layernorm": "attn_norm.weight",
    "post_attention_layernorm": "ffn_norm.weight",
    "o": "attn_output.weight",
    "down": "ffn_down.weight",
}
_OUTSIDE = {"embed_tokens": "token_embd.weight", "norm": "output_norm.weight", "lm_head": "output.weight"}


def separate_rotary_rows(tensor: Float, config: ModelConfig) -> Float:
    """Adjacent pairs of rotary rows in halves again: what `interleave_rotary_rows` of the package undoes."""
    tensor = tensor.copy()
    heads = config.num_attention_heads + config.num_key_value_heads
    rows = tensor[: heads * config.head_dim].reshape(heads, config.head_dim, -1)[:, : config.rotary_dim]
    pairs = rows.reshape(heads, config.rotary_dim // 2, 2, rows.shape[-1])
    rows[...] = pairs.transpose(0, 2, 1, 3).reshape(rows.shape)
    return tensor


def file_tensors(name: str, tensor: Float, config: ModelConfig, half_split: bool) -> dict[str, Float]:
    """What GGUF calls a canonical tensor, or the pieces of it.

    Args:
        half_split: the architecture's rotary pairs are half a head apart, not adjacent.

    Raises:
        SystemExit: the architecture has tensors that are not written here.
    """
    if name in _OUTSIDE:
        return {_OUTSIDE[name]: tensor}
    _, layer, part = name.split(".")
    block = f"blk.{layer}."
    if part in _SUFFIX:
        return {block + _SUFFIX[part]: tensor}
    if part in ("qkv", "qkv_bias"):
        query, key_value = config.query_size, config.key_value_size
        if half_split:
            tensor = separate_rotary_rows(tensor, config)
        pieces = np.split(tensor, [query, query + key_value])
        kind = "bias" if part == "qkv_bias" else "weight"
        return {f"{block}attn_{which}.{kind}": piece for which, piece in zip("qkv", pieces, strict=True)}
    if part == "gate_up":
        return dict(zip((block + "ffn_gate.weight", block + "ffn_up.weight"), np.split(tensor, 2), strict=True))
    raise SystemExit(f"{name}: only models of the Llama and Qwen2 kind can be written for llama.cpp")


def write_gguf(source: Path, tensors: Tensors, path: Path) -> None:
    """The tensors in 32-bit floats, with the metadata of the file they came from."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(path, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type)
    for name in tensors.tensor_names():
        pieces = file_tensors(name, tensors.load(name), tensors.config, architecture == "qwen2")
        for piece, values in pieces.items():
            writer.add_tensor(piece, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def bits_per_weight(path: Path) -> float:
    """Of all matrices of a GGUF file."""
    matrices = [tensor for tensor in gguf.GGUFReader(path).tensors if len(tensor.shape) > 1]
    return sum(int(t.n_bytes) for t in matrices) * 8 / sum(int(t.n_elements) for t in matrices)


@dataclass
class LlamaCpp:
    """A llama.cpp build, and a folder for the files it works on.

    Attributes:
        source: llama.cpp's source tree.
        binaries: its build's programs and libraries.
        folder: several times the model's size has to fit here.
    """

    source: Path
    binaries: Path
    folder: Path

    @cached_property
    def program(self) -> Path:
        """`llama_logits`, compiled."""
        path = self.folder / "llama_logits"
        include = [f"-I{self.source / part}" for part in ("include", "ggml/include")]
        libraries = [f"-L{self.binaries}", f"-Wl,-rpath,{self.binaries}", "-lllama", "-lggml", "-lggml-base"]
        code = Path(__file__).with_name("llama_logits.cpp")
        subprocess.run(["c++", "-O2", *include, str(code), *libraries, "-o", str(path)], check=True)
        return path

    def quantised(self, source: Path, tensors: Tensors, format: str) -> Path:
        """The GGUF file that llama-quantize makes of the tensors; the 32-bit file is kept for the next format.

        Args:
            source: GGUF file that the tensors came from.
            format: as llama-quantize calls it: "Q4_K_M".
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        whole, made = self.folder / "F32.gguf", self.folder / f"{format}.gguf"
        if not whole.exists():
            write_gguf(source, tensors, whole.with_suffix(".part"))
            whole.with_suffix(".part").rename(whole)
        command = [str(self.binaries / "llama-quantize"), str(whole), str(made), format]
        subprocess.run(command, check=True, capture_output=True)
        return made


class Streamed:
    """Logits of a GGUF file, in order.

    Args:
        program: `llama_logits`.
        model: the GGUF file.
        ids: all tokens, int32 [N]; every `sequence` of them are a text of their own.
        vocabulary: number of logits.
    """

    def __init__(self, program: Path, model: Path, ids: NDArray[np.int32], sequence: int, vocabulary: int) -> None:
        command = [str(program), str(model), str(sequence), str(default_num_threads())]
        self._log = model.with_suffix(".log")
        ids.tofile(model.with_suffix(".ids"))
        with model.with_suffix(".ids").open("rb") as file, self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=log)
        self._vocabulary, self._next, self._end = vocabulary, 0, len(ids)

    def __call__(self, start: int, stop: int) -> Float:
        """Logits of the positions start .. stop, which must follow the last ones asked for; [stop - start, V].

        Raises:
            RuntimeError: llama.cpp ended early, or the positions are asked for out of order.
        """
        if start != self._next:
            raise RuntimeError(f"logits come in order: position {self._next} is next, not {start}")
        self._next = stop
        wanted = (stop - start) * self._vocabulary * 4
        assert self._process.stdout is not None
        data = self._process.stdout.read(wanted)
        if stop == self._end or len(data) < wanted:
            self._process.stdout.close()
            self._process.wait()
        if len(data) < wanted or self._process.returncode:
            raise RuntimeError(f"llama.cpp ended early: {self._log.read_text(errors='replace')[-500:]}")
        return np.frombuffer(data, np.float32).reshape(stop - start, self._vocabulary)

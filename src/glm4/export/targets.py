"""The table of formats that `glm4 export` writes. Importing it loads none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast

from glm4.errors import InvalidRequestError

if TYPE_CHECKING:  # the table is read for help texts, too, which need no NumPy
    from glm4.checkpoints.checkpoint import Checkpoint

# Attributes of `ExportRequest` that only some targets use -> how the command line spells them.
_OPTIONS = {"lora": "--lora", "shard_bytes": "--shard-size", "names": "--names"}

Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class ExportRequest:
    """What to write, and where.

    Attributes:
        checkpoint: opened; the caller closes it.
        output: file or folder, which appears complete or not at all.
        dtype: one of the target's.
        force: replace `output` if it exists and is what the target writes.
        name: of the model, for the target's metadata; None uses the name of the checkpoint's file or folder.
        lora: folder of a PEFT adapter of this model; what becomes of it is the target's matter.
        shard_bytes: largest file, for targets that write several; None uses the target's default.
        names: of an adapter's modules: "hf" or "chatglm"; None uses the target's default.
        progress: called with ("exporting", done, total) in bytes.
    """

    checkpoint: Checkpoint
    output: Path
    dtype: str
    force: bool = False
    name: str | None = None
    lora: Path | None = None
    shard_bytes: int | None = None
    names: str | None = None
    progress: Progress | None = field(default=None, repr=False)


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        architecture: what the target calls the model's architecture.
        dtype: of its matrices.
        nbytes: size of all files.
        notes: what a user should know about them.
        files: names below the output folder, or beside the output file; empty where the output is one file.
        next_command: what to run next to use them; empty if nothing is needed.
    """

    architecture: str
    dtype: str
    tensors: int
    parameters: int
    nbytes: int
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    next_command: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "architecture": self.architecture,
            "dtype": self.dtype,
            "tensors": self.tensors,
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "notes": list(self.notes),
            **({"files": list(self.files)} if self.files else {}),
            **({"next_command": self.next_command} if self.next_command else {}),
        }


@dataclass(frozen=True)
class ExportTarget:
    """A format.

    Attributes:
        function: "module:name" of a function from an `ExportRequest` to an `ExportReport`.
        dtypes: number formats of matrices, the default first.
        output: what it writes.
        about: a phrase for help texts.
        options: attributes of `ExportRequest` beyond the common ones that it uses.
        adapter_dtypes: number formats of an adapter, the default first, if `lora` makes the target write the adapter
            alone.
    """

    name: str
    function: str
    dtypes: tuple[str, ...]
    output: Literal["file", "folder"]
    about: str
    options: frozenset[str] = frozenset()
    adapter_dtypes: tuple[str, ...] = ()

    def number_formats(self, lora: object = None) -> tuple[str, ...]:
        """What `ExportRequest.dtype` may be, the default first, with or without an adapter."""
        return self.adapter_dtypes if lora is not None and self.adapter_dtypes else self.dtypes

    def export(self, request: ExportRequest) -> ExportReport:
        """Write the model.

        Raises:
            InvalidRequestError: unknown dtype or option, a model that the format cannot express, or the output may not
                be replaced.
            MissingExtraError: the format needs a package that is not installed.
            DiskFullError: before anything is written, or while writing.
            CheckpointError, TokenizerError: the source cannot be read.
        """
        for option, spelling in _OPTIONS.items():
            if getattr(request, option) is not None and option not in self.options:
                able = ", ".join(name for name, target in TARGETS.items() if option in target.options)
                raise InvalidRequestError(
                    f"--to {self.name} has no use for {spelling}; it belongs to --to {able}", param=option
                )
        if request.dtype not in (known := self.number_formats(request.lora)):
            what = f"an adapter for --to {self.name} may be" if known != self.dtypes else f"--to {self.name} writes"
            raise InvalidRequestError(f"{what} {', '.join(known)}, not {request.dtype!r}", param="dtype")
        module, _, name = self.function.partition(":")
        return cast("ExportReport", getattr(import_module(module), name)(request))


def export_target(name: str) -> ExportTarget:
    """The format with that name.

    Raises:
        InvalidRequestError: there is no such format.
    """
    if name not in TARGETS:
        raise InvalidRequestError(f"--to is one of {', '.join(TARGETS)}, not {name!r}", param="to")
    return TARGETS[name]


GGUF_DTYPES = (
    "bf16", "f32", "f16", "q8_0", "q6_k", "q5_k_m", "q5_k", "q5_1", "q5_0", "q4_k_m", "q4_k", "q4_1", "q4_0",
)  # fmt: skip
TARGETS: Mapping[str, ExportTarget] = MappingProxyType(
    {
        target.name: target
        for target in (
            ExportTarget("gguf", "glm4.export.gguf:export_gguf",
                         GGUF_DTYPES, "file", "gguf, which llama.cpp and Ollama read",
                         frozenset({"lora", "shard_bytes"}), adapter_dtypes=("f32", "f16", "bf16")),
            ExportTarget("ollama", "glm4.export.ollama:export_ollama",
                         ("q4_k_m", *(name for name in GGUF_DTYPES if name != "q4_k_m")), "folder",
                         "ollama, a GGUF file with a Modelfile",
                         frozenset({"lora"})),
            ExportTarget("hf", "glm4.export.safetensors:export_hf",
                         ("bf16", "fp32", "fp16"), "folder",
                         "hf, Hugging Face's layout, for transformers, vLLM and SGLang",
                         frozenset({"shard_bytes"})),
            ExportTarget("chatglm", "glm4.export.safetensors:export_chatglm",
                         ("bf16", "fp32", "fp16"), "folder",
                         "chatglm, the layout in which GLM-4-9B was first published",
                         frozenset({"shard_bytes"})),
            ExportTarget("peft", "glm4.export.peft:export_peft",
                         ("stored",), "folder",
                         "peft, the adapter of --lora for checkpoints with other names (--names)",
                         frozenset({"lora", "names"})),
            ExportTarget("openvino", "glm4.export.openvino.export:export_openvino",
                         ("int4", "int8", "bf16", "fp32"), "folder",
                         "openvino, for Intel's processors and GPUs"),
        )
    }
)  # fmt: skip

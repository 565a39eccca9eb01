"""`export_ollama`: a folder for `ollama create`: a GGUF file, an adapter if one is given, and the Modelfile.

Newer versions of Ollama take the chat template of the GGUF file, which has a place for tools; older ones take the
Modelfile's, which has none, because their parser cannot read GLM-4's calls. No newline follows `<|assistant|>` there:
the model writes it, or a tool's name instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from glm4.checkpoints.checkpoint import Checkpoint
from glm4.export.gguf import export_gguf
from glm4.export.output_path import check_folder
from glm4.export.targets import ExportReport, ExportRequest
from glm4.export.text_side import stop_ids
from glm4.hub.store import license_text
from glm4.loading.packed_folder import legal_files
from glm4.requests.processor import Processor
from glm4.system.atomic_folder import atomic_folder

MODEL, ADAPTER, MODELFILE = "model.gguf", "adapter.gguf", "Modelfile"
# The cache of a conversation is reserved at once, so the context is not the model's longest.
_CONTEXT = 32768
# Sampling defaults: as `side_files.py` names them -> as Ollama does.
_SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
_GLM = "[gMASK]<sop>{{ range .Messages }}<|{{ .Role }}|>\n{{ .Content }}{{ end }}<|assistant|>"
# Templates in Go's language, by dialect.
TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "glm4": _GLM,
        "glm4_0414": _GLM,
        "glm_z1": _GLM + "\n<think>",
        "chatml": (
            "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
        ),
    }
)


def export_ollama(request: ExportRequest) -> ExportReport:
    """Write the folder.

    Raises:
        InvalidRequestError: a model that GGUF cannot express, or the folder may not be replaced.
        UnsupportedModelError, TensorError: not an adapter of this model.
        DiskFullError: before anything is written, or while writing.
        CheckpointError, TokenizerError: the source cannot be read.
    """
    checkpoint, folder = request.checkpoint, request.output
    check_folder(checkpoint, folder, (MODEL, ADAPTER, MODELFILE), force=request.force)
    text = Processor.load(checkpoint)
    with atomic_folder(folder) as partial:
        if request.lora is not None:  # first: it takes seconds, and tells whether it fits
            lora = replace(request, output=partial / ADAPTER, dtype="f32", progress=None)
            export_gguf(lora)
        report = export_gguf(replace(request, output=partial / MODEL, lora=None))
        file = modelfile(checkpoint, text, adapter=request.lora is not None)
        (partial / MODELFILE).write_text(file, encoding="utf-8")
        files = sorted(entry.name for entry in partial.iterdir())
        nbytes = sum((partial / name).stat().st_size for name in files)
    name = folder.resolve().name.lower()
    command = f"ollama create {name} -f {folder / MODELFILE}"
    return replace(report, nbytes=nbytes, files=tuple(files), next_command=command)


def modelfile(checkpoint: Checkpoint, text: Processor, *, adapter: bool) -> str:
    """The text of the Modelfile. It has no SYSTEM: GLM-4 was trained to answer without one, too."""
    lines = [f"FROM ./{MODEL}"]
    if adapter:
        lines.append(f"ADAPTER ./{ADAPTER}")
    lines.append(f'TEMPLATE """{TEMPLATES[text.dialect.name]}"""')
    lines += [f"PARAMETER {name} {value}" for name, value in _parameters(checkpoint, text)]
    if (legal := _license(checkpoint)) and '"""' not in legal:
        lines.append(f'LICENSE """{legal}"""')
    return "\n".join(lines) + "\n"


def _parameters(checkpoint: Checkpoint, text: Processor) -> list[tuple[str, Any]]:
    stops = [text.tokenizer.token_bytes(one).decode("utf-8", "replace") for one in stop_ids(checkpoint, text)]
    found: list[tuple[str, Any]] = [("stop", f'"{stop}"') for stop in stops]
    found.append(("num_ctx", min(checkpoint.config.max_position_embeddings, _CONTEXT)))
    given = {**checkpoint.variant.sampling, **checkpoint.generation_config}
    if given.get("do_sample") is False:
        return [*found, ("temperature", 0)]
    return found + [(theirs, given[ours]) for ours, theirs in _SAMPLING.items() if given.get(ours) is not None]


def _license(checkpoint: Checkpoint) -> str | None:
    """The text beside the weights, or that of the variant's license, if this package has it."""
    for file in legal_files(checkpoint):
        if file.name != "NOTICE":
            return file.read_text(encoding="utf-8", errors="replace")
    return license_text(checkpoint.variant.license)

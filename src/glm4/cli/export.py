"""`glm4 export`: write a model in another runtime's format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from glm4.cli.parameters import Argument, Option, UsageError
from glm4.cli.sizes import size_bytes
from glm4.export.targets import TARGETS

EXAMPLES = """
glm4 export glm-4-9b-chat --to gguf --dtype q4_0 -o glm-4-9b-chat-q4_0.gguf
glm4 export glm-4-9b-chat --to ollama -o glm4-ollama
glm4 export glm-4-9b-chat --to hf --shard-size 5GB -o glm-4-9b-chat-hf
glm4 export glm-4-9b-chat --to gguf --lora ./adapter -o adapter.gguf
glm4 export glm-4-9b-chat --to peft --lora ./my-run --names chatglm -o adapter-for-remote-code
"""


def _forms() -> str:
    return "; ".join(target.about for target in TARGETS.values())


def _dtypes() -> str:
    return "; ".join(f"{name}: {', '.join(target.dtypes)}" for name, target in TARGETS.items())


def export(
    model: Annotated[str, Argument(metavar="MODEL", help="An installed model, a folder, or a GGUF file.")],
    to: Annotated[str, Option("--to", metavar="FORMAT", help=f"{_forms()}.")],
    output: Annotated[Path, Option("--output", "-o", metavar="PATH", help="File or folder to write.")],
    dtype: Annotated[
        str | None, Option("--dtype", metavar="TYPE", help=f"Of the matrices, the default first. {_dtypes()}.")
    ] = None,
    lora: Annotated[
        Path | None,
        Option(
            "--lora",
            metavar="DIR",
            help="An adapter (PEFT), a training run, or a checkpoint of one. --to gguf and peft write it alone, "
            "--to ollama beside the model.",
        ),
    ] = None,
    names: Annotated[
        str | None,
        Option(
            "--names",
            metavar="LAYOUT",
            help="Whose modules --to peft names: hf, for the -hf repositories and transformers' own classes; or "
            "chatglm, for the original ones with their remote code.",
        ),
    ] = None,
    shard_size: Annotated[
        str | None,
        Option("--shard-size", metavar="SIZE", help="Largest weight file, such as 5GB, the default of hf."),
    ] = None,
    force: Annotated[bool, Option("--force", help="Replace PATH if it is what the format writes.")] = False,
    as_json: Annotated[bool, Option("--json", help="The report as one JSON document, for programs.")] = False,
) -> None:
    """Write a text model for other programs.

    Vocabulary, stop tokens and a chat template that has a place for tools come along. The model is read piece by
    piece, so it may be larger than memory. GGUF files and safetensors also run here: `glm4 chat -m PATH`.
    """
    from glm4 import hub
    from glm4.checkpoints.checkpoint import open_checkpoint
    from glm4.cli import console
    from glm4.export.targets import ExportRequest, export_target
    from glm4.variants import get_variant

    target = export_target(to)
    if str(output) == console.STREAM:
        raise UsageError("--output appears once it is complete, which standard output cannot; name a file or folder")
    shard_bytes = None if shard_size is None else size_bytes(shard_size, "--shard-size")
    path = hub.resolve(model, allow_download=False)
    variant = get_variant(model)
    name = variant.repo_id if variant is not None else None
    with open_checkpoint(path, variant=variant) as checkpoint, console.progress() as report_progress:
        report = target.export(
            ExportRequest(
                checkpoint,
                output.expanduser(),
                dtype or target.number_formats(lora)[0],
                force=force,
                name=name,
                lora=None if lora is None else lora.expanduser(),
                shard_bytes=shard_bytes,
                names=names,
                progress=report_progress,
            )
        )
    if as_json:
        console.print_json({"path": str(output), **report.as_dict()})
        return
    out = console.stdout()
    for note in report.notes:
        console.stderr().print(f"note: {note}", soft_wrap=True, markup=False)
    size = console.human_bytes(report.nbytes)
    out.print(f"{report.architecture}, {report.dtype}: {report.tensors} tensors, {size}", soft_wrap=True)
    out.print(str(output), soft_wrap=True, markup=False)
    if report.next_command:
        out.print(report.next_command, soft_wrap=True, markup=False)

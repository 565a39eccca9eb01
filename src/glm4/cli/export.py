"""`glm4 export`: write a model in another runtime's format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from glm4.cli.parameters import Argument, Option, UsageError

EXAMPLES = """
glm4 export glm-4-9b-chat --to gguf --dtype q4_0 -o glm-4-9b-chat-q4_0.gguf
glm4 export ./my-finetune --to gguf -o my-finetune.gguf
"""


def export(
    model: Annotated[str, Argument(metavar="MODEL", help="An installed model, a folder, or a GGUF file.")],
    to: Annotated[str, Option("--to", metavar="FORMAT", help="gguf, which llama.cpp and Ollama read.")],
    output: Annotated[Path, Option("--output", "-o", metavar="FILE", help="File to write.")],
    dtype: Annotated[
        str | None, Option("--dtype", metavar="TYPE", help="Of the matrices: f32, f16, bf16, q8_0, q4_1 or q4_0.")
    ] = None,
    force: Annotated[bool, Option("--force", help="Replace FILE if it exists.")] = False,
    as_json: Annotated[bool, Option("--json", help="The report as one JSON document, for programs.")] = False,
) -> None:
    """Write a text model as a GGUF file, with vocabulary, stop tokens and a chat template that has a place for tools.

    The model is read piece by piece, so it may be larger than memory. The 4-bit types keep the output head in q8_0.
    The file also runs here: `glm4 chat -m FILE`.
    """
    from glm4 import hub
    from glm4.checkpoints.checkpoint import open_checkpoint
    from glm4.cli import console
    from glm4.export.targets import ExportRequest, export_target
    from glm4.variants import get_variant

    target = export_target(to)
    if str(output) == console.STREAM:
        raise UsageError("--output is a file that appears once it is complete, which standard output cannot; name one")
    path = hub.resolve(model, allow_download=False)
    variant = get_variant(model)
    name = variant.repo_id if variant is not None else None
    with open_checkpoint(path, variant=variant) as checkpoint, console.progress() as report_progress:
        report = target.export(
            ExportRequest(
                checkpoint,
                output.expanduser(),
                dtype or target.dtypes[0],
                force=force,
                name=name,
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
    out.print(str(output), soft_wrap=True)

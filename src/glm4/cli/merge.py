"""`glm4 merge`: a model and a LoRA adapter as one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from glm4.cli.parameters import Argument, AsJson, Option, UsageError
from glm4.cli.sizes import size_bytes

if TYPE_CHECKING:
    from glm4.export.merge import MergeReport

EXAMPLES = """
glm4 merge glm-4-9b-chat ./my-run -o my-model
glm4 merge glm-4-9b-chat ./my-run/checkpoint-500 -o my-model --dtype fp32
"""


def merge(
    model: Annotated[str, Argument(metavar="MODEL", help="An installed model, a folder, or a GGUF file.")],
    adapter: Annotated[
        Path,
        Argument(
            metavar="ADAPTER",
            help="A LoRA or DoRA adapter (PEFT), the folder of a training run, or a checkpoint of it.",
        ),
    ],
    output: Annotated[Path, Option("--output", "-o", metavar="DIR", help="Folder to write.")],
    dtype: Annotated[str, Option("--dtype", metavar="TYPE", help="Of the written numbers: bf16 or fp32.")] = "bf16",
    shard_size: Annotated[
        str | None, Option("--shard-size", metavar="SIZE", help="Largest weight file, such as 5GB, the default.")
    ] = None,
    force: Annotated[bool, Option("--force", help="Replace DIR if it is a model in this layout.")] = False,
    check: Annotated[
        bool, Option("--check", "--no-check", help="Compare the result with the model and the adapter; the default.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Write a model with an adapter folded into its weights, in Hugging Face's layout.

    The result runs here (`glm4 chat -m DIR`) and wherever the model does, without knowing of adapters. Sums are
    computed in fp32 and rounded once. Everything is read piece by piece, so the model may be larger than memory.
    """
    from glm4 import hub
    from glm4.checkpoints.checkpoint import open_checkpoint
    from glm4.cli import console
    from glm4.export.merge import merge as merge_adapter
    from glm4.variants import get_variant

    if str(output) == console.STREAM:
        raise UsageError("--output is a folder of several files, which standard output cannot be; name one")
    shard_bytes = None if shard_size is None else size_bytes(shard_size, "--shard-size")
    path = hub.resolve(model, allow_download=False)
    with open_checkpoint(path, variant=get_variant(model)) as checkpoint, console.progress() as report_progress:
        report = merge_adapter(
            checkpoint,
            adapter.expanduser(),
            output.expanduser(),
            dtype=dtype,
            shard_bytes=shard_bytes,
            force=force,
            check=check,
            progress=report_progress,
        )
    if as_json:
        console.print_json({"path": str(output), **report.as_dict()})
    else:
        _show(report, output)


def _show(report: MergeReport, output: Path) -> None:
    from glm4.cli import console

    out, written = console.stdout(), report.export
    size = console.human_bytes(written.nbytes)
    out.print(f"{written.architecture}, {written.dtype}: {written.tensors} tensors, {size}", soft_wrap=True)
    if report.matrices is not None:
        count, error = report.matrices.count, report.matrices.error
        out.print(
            f"{count} matrices compared: the largest error is {error:.1e} (rounding: {report.matrices.limit:.1e})"
        )
    if report.logits is not None:
        logits = report.logits
        out.print(
            f"logits of {logits.tokens} tokens differ from the adapter's by {logits.difference:.1e} of their range; "
            f"the adapter itself moves them by {logits.effect:.1e}",
            soft_wrap=True,
        )
    elif report.why_no_logits:
        out.print(f"logits were not compared: {report.why_no_logits}", soft_wrap=True)
    out.print(str(output), soft_wrap=True, markup=False)

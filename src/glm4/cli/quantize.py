"""`glm4 quantize`: write a model as a packed checkpoint in a smaller weight format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from glm4.cli.parameters import Argument, Option, UsageError

if TYPE_CHECKING:
    from glm4.model.config import ModelConfig
    from glm4.quantization.report import QuantizationReport

EXAMPLES = """
glm4 quantize glm-4-9b-chat --to int4 -o glm-4-9b-chat-int4
glm4 quantize ./my-finetune --to int8 -o my-finetune-int8 --json
"""


def quantize(
    model: Annotated[str, Argument(metavar="MODEL", help="An installed model, a folder, or a GGUF file.")],
    to: Annotated[str, Option("--to", metavar="FORMAT", help="int8 or int4.")],
    output: Annotated[Path, Option("--output", "-o", metavar="DIR", help="Folder to write.")],
    force: Annotated[bool, Option("--force", help="Replace DIR if it is a packed checkpoint.")] = False,
    calibrate: Annotated[
        bool | None,
        Option(
            "--calibrate",
            "--no-calibrate",
            help="Round with error compensation, calibrated on text the model writes; default: up to 2e9 parameters.",
        ),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="The report as one JSON document, for programs.")] = False,
) -> None:
    """Write a model as a packed checkpoint: weights in the layout the kernels read.

    Such a folder starts in seconds, needs no more memory than its size, and takes a fraction of the original's disk
    space. The original is read piece by piece, so it may be larger than memory. A report compares the new weights
    with the old ones; it is kept in the folder too.

    Calibration brings the answers closer to the original's. It takes minutes for a small model, longer for a large
    one (the estimate is printed), and memory for one layer in float32; --no-calibrate takes minutes for any model.
    """
    from glm4 import hub
    from glm4.checkpoints.checkpoint import open_checkpoint
    from glm4.cli import console
    from glm4.quantization import checkpoint as quantization
    from glm4.variants import get_variant

    if str(output) == console.STREAM:
        raise UsageError("--output is a folder of several files, which standard output cannot be; name one")
    path = hub.resolve(model, allow_download=False)
    variant = get_variant(model)
    # A fine-tune has the metadata of its base model, so only a model the user requested by name counts as that model.
    name = variant.repo_id if variant is not None else path.resolve().name
    with open_checkpoint(path, variant=variant) as checkpoint:
        if to in quantization.TARGETS:
            _announce(to, checkpoint.config, quantization.is_calibrated(checkpoint.config, calibrate))
        with console.progress() as report_progress:
            report = quantization.quantize(
                checkpoint,
                to,
                output.expanduser(),
                force=force,
                source=name,
                calibrate=calibrate,
                progress=report_progress,
            )
    if as_json:
        console.print_json({"path": str(output), **report.as_dict()})
    else:
        _show(report, output)


def _announce(to: str, config: ModelConfig, calibrated: bool) -> None:
    """Tell the user how long it will take."""
    from glm4.cli.console import stderr
    from glm4.quantization.checkpoint import calibration_seconds

    estimate = f"about {max(1, round(calibration_seconds(config, to) / 60))} min here"
    if calibrated:
        text = f"{to} with calibration: {estimate} (--no-calibrate is faster, and less exact)"
    else:
        text = f"{to} without calibration (--calibrate is closer to the original, and takes {estimate})"
    stderr().print(text, soft_wrap=True)


def _show(report: QuantizationReport, output: Path) -> None:
    from rich.table import Table

    from glm4.cli.console import human_bytes, stdout

    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("matrices", no_wrap=True)
    titles = ["format", "count", "size", "bits/weight", "relative RMSE"]
    if report.calibration_tokens:
        titles.append("of outputs")
    for title in titles:
        table.add_column(title, justify="left" if title == "format" else "right", no_wrap=True)
    for name, kind in report.kinds.items():
        bits, error = f"{kind.bits_per_weight:.2f}", f"{100 * kind.relative_rmse:.2f} %"
        row = [kind.format, str(kind.tensors), human_bytes(kind.nbytes), bits, error]
        if report.calibration_tokens:
            outputs = kind.relative_output_rmse
            row.append("" if outputs is None else f"{100 * outputs:.2f} %")
        table.add_row(name, *row)
    out = stdout()
    out.print(table)
    out.print(
        f"{human_bytes(report.nbytes)} for {report.parameters / 1e6:,.0f}M parameters: "
        f"{report.bits_per_weight:.2f} bits per weight all in, relative RMSE {100 * report.relative_rmse:.2f} %",
        soft_wrap=True,
    )
    out.print(str(output), soft_wrap=True)

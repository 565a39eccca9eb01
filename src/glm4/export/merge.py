"""`merge`: a model and a LoRA adapter as one checkpoint in Hugging Face's layout, compared with the two.

A model that sees is written in the layout of glm-4v-9b.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm4.checkpoints.adapter_folder import find_adapter
from glm4.checkpoints.checkpoint import Checkpoint, open_checkpoint
from glm4.errors import CheckpointError, InvalidRequestError
from glm4.export.merge_check import LogitCheck, MatrixCheck, check_logits, check_matrices
from glm4.export.merged import MergedCheckpoint, open_for_merging
from glm4.export.safetensors import export_chatglm, export_hf
from glm4.export.targets import ExportReport, ExportRequest, Progress

MERGE_DTYPES = ("bf16", "fp32")


@dataclass(frozen=True)
class MergeReport:
    """What was written, and how it compares.

    Attributes:
        export: of the folder.
        adapter: the folder that was merged.
        rank: largest of the adapter.
        dora: it was one of DoRA.
        matrices: comparison of each adapted matrix; None if nothing was to be checked.
        logits: comparison of the two models' outputs; None if it was not possible.
        why_no_logits: the reason then; empty otherwise, and if nothing was to be checked.
    """

    export: ExportReport
    adapter: Path
    rank: int
    dora: bool
    matrices: MatrixCheck | None = None
    logits: LogitCheck | None = None
    why_no_logits: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        checks = {"matrices": self.matrices, "logits": self.logits}
        return {
            **self.export.as_dict(),
            "adapter": {"path": str(self.adapter), "rank": self.rank, "dora": self.dora},
            "check": {name: None if check is None else check.as_dict() for name, check in checks.items()}
            | {"why_no_logits": self.why_no_logits},
        }


def merge(
    checkpoint: Checkpoint,
    adapter: Path,
    output: Path,
    *,
    dtype: str = "bf16",
    shard_bytes: int | None = None,
    force: bool = False,
    check: bool = True,
    progress: Progress | None = None,
) -> MergeReport:
    """Write a model with a LoRA adapter folded in; both are read piece by piece.

    Args:
        checkpoint: of any kind but a packed one; the caller closes it.
        adapter: its folder, a training run, or a checkpoint of one.
        output: a folder, which appears complete or not at all.
        dtype: of the written numbers; sums are computed in float32.
        shard_bytes: largest weight file; None is the default of the layout.
        force: replace `output` if it is such a folder.
        check: compare every adapted matrix as written, and the outputs of the two models if that fits in memory.
        progress: called with (stage, done, total).

    Raises:
        InvalidRequestError, UnsupportedModelError, TensorError, CheckpointError: before anything is written: what
            cannot be merged, or `output` may not be replaced.
        DiskFullError: before anything is written, or while writing.
        CheckpointError: the result is not what the adapter computes; it was deleted.
    """
    if dtype not in MERGE_DTYPES:
        raise InvalidRequestError(f"a merged model may be {' or '.join(MERGE_DTYPES)}, not {dtype!r}", param="dtype")
    folder = find_adapter(adapter)
    with open_for_merging(folder, checkpoint) as file:
        request = ExportRequest(
            MergedCheckpoint.of(checkpoint, file),
            output,
            dtype,
            force,
            shard_bytes=shard_bytes,
            progress=None if progress is None else lambda _, done, total: progress("merging", done, total),
        )
        # A model that sees has one layout only.
        export = export_hf if checkpoint.config.vision is None else export_chatglm
        report = MergeReport(export(request), folder, file.rank, file.dora)
        if not check:
            return report
        with open_checkpoint(output) as written:
            matrices = check_matrices(checkpoint, file, written, dtype, progress)
            logits, why = check_logits(checkpoint, file, written, progress) if matrices.passed else (None, "")
        if not matrices.passed or (logits is not None and not logits.passes(dtype)):
            shutil.rmtree(output)
            raise CheckpointError(
                f"the merged model does not compute what {folder} does on {checkpoint.path}, so {output} was deleted: "
                f"{matrices if logits is None else logits}. Is the disk or memory of this machine damaged?"
            )
    return MergeReport(report.export, folder, report.rank, report.dora, matrices, logits, why)

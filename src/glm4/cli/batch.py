"""`glm4 batch`: answer a file of OpenAI batch requests."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from glm4.cli import options
from glm4.cli.parameters import Argument, Exit, Option, UsageError
from glm4.cli.ray_options import PANEL as RAY
from glm4.cli.ray_options import RayOptions

if TYPE_CHECKING:
    from glm4.batch.job import BatchJob, BatchProgress

EXAMPLES = """
glm4 batch requests.jsonl answers.jsonl
glm4 batch requests.jsonl answers.jsonl -m glm-4-9b-chat --max-num-seqs 16
glm4 batch - - < requests.jsonl
glm4 batch requests.jsonl answers.jsonl -m glm-4-9b-chat --ray=auto
"""

_LINE_SECONDS = 10.0


def batch(
    input_file: Annotated[Path, Argument(metavar="IN.jsonl", help="Requests, one per line; - is standard input.")],
    output_file: Annotated[
        Path, Argument(metavar="OUT.jsonl", help="Answers; continued if it exists. - is standard output.")
    ],
    *,
    model: options.Model = "starter",
    json_summary: Annotated[bool, Option("--json", help="Print a summary as JSON at the end.")] = False,
    engine: options.EngineOptions,
    allow_many_images: options.AllowManyImages = False,
    media_domains: options.MediaDomains = None,
    max_num_seqs: Annotated[
        int, Option(min=1, max=4096, metavar="N", panel=options.ENGINE, help="Requests answered at the same time.")
    ] = 8,
    ray: RayOptions,
    ray_actors: Annotated[
        int | None,
        Option(
            min=1,
            max=4096,
            metavar="N",
            panel=RAY,
            help="Processes that hold the model; otherwise one per GPU, or per node.",
        ),
    ] = None,
) -> None:
    """Answer a file of OpenAI batch requests.

    Each input line is {"custom_id": …, "method": "POST", "url": "/v1/chat/completions" or "/v1/completions",
    "body": {…}}; each output line has OpenAI's batch output shape, in the order of finishing. A line that cannot be
    answered gets an error row; if all get one, the exit code is 1. Run the same command again after any interruption:
    finished rows are kept.
    """
    from glm4.batch.job import BatchJob
    from glm4.cli.console import EXIT_INTERRUPTED, STREAM, notice, print_json
    from glm4.cli.conversation.interrupt import Interrupt

    ray.check(ray_actors=ray_actors)
    piped = str(output_file) == STREAM
    if piped and json_summary:
        raise UsageError("--json prints its summary where OUT.jsonl - prints the answers; name a file for the answers")
    name = "standard output" if piped else str(output_file)
    pictures = {"allow_many_images": allow_many_images, "media_domains": media_domains}
    settings = {"max_num_seqs": max_num_seqs, **pictures, **engine.for_llm()}
    with _readable_twice(input_file) as source, BatchJob(source, sys.stdout.buffer if piped else output_file) as job:
        progress = job.progress
        if progress.skipped and job.remaining:
            notice(f"{name} has {progress.skipped} of {progress.total} answers; going on from there")
        if job.remaining:
            if ray.ray is not None:
                progress = _on_ray(job, model, settings, ray, ray_actors)
            else:
                loading = options.load_llm(model, **settings)
                with loading as llm, Interrupt(signal.SIGTERM) as interrupt, _display() as show:
                    progress = job.run(llm, model=model, on_progress=show, should_stop=lambda: interrupt.requested)
    if json_summary:
        print_json({**asdict(progress), "tokens_per_second": progress.tokens_per_second})
    if progress.interrupted:
        again = "" if piped else "; run the same command again to go on"
        notice(f"stopped at {progress.done} of {progress.total}{again}")
        raise Exit(EXIT_INTERRUPTED)
    _report(progress, name)


def _on_ray(
    job: BatchJob, model: str, llm_options: dict[str, Any], ray: RayOptions, actors: int | None
) -> BatchProgress:
    from glm4.batch.ray.cluster import LOCAL, check_ray, cluster, live_nodes, share_out
    from glm4.cli.console import notice
    from glm4.cli.conversation.interrupt import Interrupt

    address = str(ray.ray)
    check_ray("glm4 batch --ray")
    if llm_options["backend"] == "local":
        options.check_formats(llm_options["dtype"], llm_options["kv_cache_dtype"])
    notice("starting a Ray cluster on this machine" if address == LOCAL else f"connecting to Ray at {address}")
    with cluster(address):
        from glm4.batch.ray.run import run_on_ray

        nodes = live_nodes()
        shares = share_out(ray.wanted(actors), llm_options, nodes)
        notice(f"{shares.count} actors with {shares.cpus} CPUs and {shares.gpus:g} GPUs each, on {len(nodes)} nodes")
        with Interrupt(signal.SIGTERM) as interrupt, _display() as show:
            return run_on_ray(
                job, model, llm_options, shares, on_progress=show, should_stop=lambda: interrupt.requested
            )


def _report(progress: BatchProgress, name: str) -> None:
    """Say how it ended; the exit code is 1 if nothing was answered."""
    from glm4.cli.console import EXIT_FAILURE, error, notice

    if progress.all_failed:
        error(f'all {progress.total} requests were refused, see "error" in {name}')
        raise Exit(EXIT_FAILURE)
    if progress.skipped == progress.total:
        notice(f"{name} has all {progress.total} answers already; nothing to do")
        return
    notice(_summary(progress, name))


@contextlib.contextmanager
def _readable_twice(path: Path) -> Iterator[Path]:
    """The input file; for `-` a temporary copy of standard input."""
    from glm4.cli.console import STREAM

    if str(path) != STREAM:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="glm4-batch-") as folder:
        copy = Path(folder) / "standard-input"
        with copy.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield copy


def _summary(progress: BatchProgress, name: str) -> str:
    parts = [f"{progress.done} of {progress.total} answers in {name}"]
    if progress.failed:
        parts.append(f'{progress.failed} refused in this run, see their "error"')
    if progress.completion_tokens:
        parts.append(f"{progress.completion_tokens:,} tokens at {progress.tokens_per_second:.1f} tokens/s")
    return "; ".join(parts)


@contextlib.contextmanager
def _display() -> Iterator[Callable[[BatchProgress], None]]:
    """A progress bar at a terminal, otherwise a line every few seconds; both on standard error."""
    from glm4.cli.console import notice, stderr

    if not stderr().is_terminal:
        due = time.monotonic() + _LINE_SECONDS

        def line(progress: BatchProgress) -> None:
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + _LINE_SECONDS
                notice(f"{progress.done}/{progress.total} · {_speed(progress)}")

        yield line
        return

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.fields[speed]}", markup=False))
    with Progress(*columns, console=stderr(), expand=True) as bar:
        task = bar.add_task("batch", total=None, speed="")
        yield lambda progress: bar.update(task, completed=progress.done, total=progress.total, speed=_speed(progress))


def _speed(progress: BatchProgress) -> str:
    from glm4.cli.console import human_duration

    left = progress.eta
    return f"{progress.tokens_per_second:.1f} tokens/s · ETA {human_duration(left) if left is not None else '-'}"

"""`glm4 bench`: how fast a model runs on this machine."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

from glm4.cli import options
from glm4.cli.parameters import AsJson, Option, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from glm4.backends.local import LocalBackend
    from glm4.benchmark import Measurement, Question

EXAMPLES = """
glm4 bench
glm4 bench -m ./my-finetune --dtype int4 --batch 4 --batch 8
glm4 bench --random glm-4-9b --dtype int4 --json
glm4 bench --random glm-4-9b-chat --dtype int4 --kv-dtype int8 --context 2048 --context 32768
glm4 bench -m glm-4-9b-chat --backend vllm --batch 16 --batch 64
"""

_PROMPTS, _CONTEXTS, _BATCHES = [128, 512], [16, 1024], [4, 8]


def bench(
    *,
    model: options.Model = "starter",
    random: Annotated[
        str | None,
        Option(
            metavar="SHAPE",
            help="Random weights in the shape of a known model (glm-4-9b, say) instead of a model; needs no download.",
        ),
    ] = None,
    dtype: options.Dtype = "auto",
    kv_dtype: options.KvDtype = "auto",
    threads: options.Threads = None,
    prompt: Annotated[
        list[int], Option(min=1, metavar="TOKENS", help="Prefill of this length; repeatable.")
    ] = _PROMPTS,
    context: Annotated[
        list[int],
        Option(
            min=1,
            metavar="TOKENS",
            help="Decode after this many tokens (random keys and values, so that no time goes into them); repeatable.",
        ),
    ] = _CONTEXTS,
    batch: Annotated[
        list[int], Option(min=1, metavar="N", help="Decode of so many sequences at once; repeatable.")
    ] = _BATCHES,
    rounds: Annotated[int, Option(min=1, metavar="N", help="Medians are taken over this many rounds.")] = 3,
    engine: options.BackendOptions,
    as_json: AsJson = False,
) -> None:
    """Measure prefill, decode, batched and long decode, as shares of what this machine delivers.

    The yardsticks: how fast NumPy sums a large array (memory), and the kernels' own integer product with everything in
    the processor's caches (arithmetic). Close other programs first: two cores beside a browser measure the browser.

    Another backend is measured from outside: prompts of every length in --prompt and --context, the answers after
    them, and the time to the first token. `--batch` counts prompts that are sent at once.
    """
    from glm4 import benchmark as speed
    from glm4.cli import console

    if engine.backend != "local":
        settings = {"dtype": dtype, "kv_cache_dtype": kv_dtype, **engine.for_llm()}
        _bench_other(model, random, settings | ({} if threads is None else {"num_threads": threads}),
                     [*prompt, *context], batch, rounds, as_json=as_json)  # fmt: skip
        return
    options.import_engine(dtype=dtype, kv_cache_dtype=kv_dtype, **engine.for_llm())
    questions = [*speed.prefills(prompt), *speed.decodes(context, batch)]
    with console.progress() as report:
        backend = _backend(model, random, dtype, kv_dtype, threads, questions, report)
        kernels = backend.model.kernels
        bandwidth, peak = speed.read_bandwidth(), speed.cached_product_peak(kernels)
        found = speed.measure(backend, questions, rounds, report)
        # Two attempts each: other programs may have disturbed the first.
        bandwidth = max(bandwidth, speed.read_bandwidth())
        peak = max(peak, speed.cached_product_peak(kernels))
    rows = [_row(backend, measurement, bandwidth, peak) for measurement in found]
    facts = {
        "model": f"random {random}" if random else model,
        **dataclasses.asdict(backend.execution),
        "read_bandwidth": bandwidth,
        "cached_int8_product": peak,
    }
    backend.close()
    if as_json:
        console.print_json({"facts": facts, "rows": rows})
        return
    out = console.stdout()
    out.print(_headline(facts), soft_wrap=True)
    out.print(_table(rows))


def _bench_other(
    model: str,
    shape: str | None,
    settings: dict[str, Any],
    lengths: list[int],
    batches: list[int],
    rounds: int,
    *,
    as_json: bool,
) -> None:
    """A backend other than ours, through the interface that all have."""
    if shape is not None:
        raise UsageError("--random is for the local backend; name a model with -m")
    options.import_engine(**settings)
    from glm4 import benchmark as speed
    from glm4.cli import console

    questions = speed.conversations(lengths, batches)
    room = {
        "max_model_len": max(question.context + question.new for question in questions),
        "max_num_seqs": max(question.batch for question in questions),
    }
    with options.load_llm(model, **(room | settings)) as llm, console.progress() as report:
        found = speed.measure_any(llm.backend, questions, rounds, report)
        info = llm.info
    facts = {"model": model, "backend": info.name, **(dataclasses.asdict(info.execution) if info.execution else {})}
    rows = [
        {
            "context": question.context,
            "batch": question.batch,
            "prompt_tokens_per_second": rates.prefill,
            "answer_tokens_per_second": rates.decode,
            "first_token_seconds": rates.first_token,
        }
        for question, rates in zip(questions, found, strict=True)
    ]
    if as_json:
        console.print_json({"facts": facts, "rows": rows})
        return
    out = console.stdout()
    out.print(f"{model} with the {info.name} backend", soft_wrap=True)
    out.print(_table_of_rates(rows))


def _table_of_rates(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in ("prompt", "at once", "prompt tokens/s", "answer tokens/s", "first token"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["context"]),
            str(row["batch"]),
            f"{row['prompt_tokens_per_second']:.0f}",
            f"{row['answer_tokens_per_second']:.1f}",
            f"{row['first_token_seconds'] * 1000:.0f} ms",
        )
    return table


def _backend(
    model: str,
    shape: str | None,
    dtype: str,
    kv_dtype: str,
    threads: int | None,
    questions: list[Question],
    report: Any,
) -> LocalBackend:
    import numpy as np

    from glm4.backends.local import LocalBackend
    from glm4.benchmark import backend_options
    from glm4.checkpoints.checkpoint import open_checkpoint
    from glm4.errors import InvalidRequestError
    from glm4.hub import resolve
    from glm4.model.precision import packed_dtype
    from glm4.model.shapes import SHAPES

    if shape is None:
        with open_checkpoint(resolve(model, progress=report)) as checkpoint:
            packed = checkpoint.packed
            dtype = dtype if packed is None else packed_dtype(dtype, packed.precision)
            settings = backend_options(
                checkpoint.config, questions, dtype, kv_dtype, threads, checkpoint.stored_precision
            )
            return LocalBackend.load(checkpoint, settings, np.empty(0, np.int64), report)
    if shape not in SHAPES:
        raise InvalidRequestError(f"--random must be one of {', '.join(sorted(SHAPES))}, not {shape!r}", param="random")
    report("making random weights", 0, 0)
    return LocalBackend.random(SHAPES[shape], backend_options(SHAPES[shape], questions, dtype, kv_dtype, threads))


def _row(backend: LocalBackend, measurement: Measurement, bandwidth: float, peak: float) -> dict[str, Any]:
    from glm4.benchmark import bytes_per_step, operations_per_token

    question, rate = measurement.question, measurement.tokens_per_second
    row: dict[str, Any] = {
        "question": str(question),
        "context": question.context,
        "batch": question.batch,
        "tokens_per_second": rate,
        "rounds": measurement.rounds,
    }
    if question.is_prefill:
        row["operations_per_second"] = rate * operations_per_token(backend)
        row["share_of_peak"] = row["operations_per_second"] / peak
    else:
        row["bytes_per_second"] = rate / question.batch * bytes_per_step(backend, question)
        row["share_of_bandwidth"] = row["bytes_per_second"] / bandwidth
    return row


def _headline(facts: dict[str, Any]) -> str:
    limits = f"{facts['read_bandwidth'] / 1e9:.1f} GB/s and {_tera(facts['cached_int8_product'])}"
    return (
        f"{facts['model']}: {facts['dtype']} weights ({facts['weight_bytes'] / 1e9:.2f} GB), "
        f"{facts['kv_cache_dtype']} KV cache; {facts['num_threads']} threads, {facts['isa']}; "
        f"yardsticks: {limits}"
    )


def _tera(operations: float) -> str:
    return f"{operations / 1e12:.2f} TOPS"


def _table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("", no_wrap=True)
    for title in ("tokens/s", "rate", "share"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        if "share_of_peak" in row:
            rate, share = _tera(row["operations_per_second"]), f"{row['share_of_peak']:.0%} of arithmetic"
        else:
            rate, share = f"{row['bytes_per_second'] / 1e9:.1f} GB/s", f"{row['share_of_bandwidth']:.0%} of bandwidth"
        table.add_row(row["question"], f"{row['tokens_per_second']:.1f}", rate, share)
    return table
